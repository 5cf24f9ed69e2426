"""A training step as a CUDA graph: one call starts its hundreds of kernels."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Recording:
    """One kind of step. calls: how often it was taken. graph: once recorded, it reads the tensors `indices` and `epoch`
    and writes `loss`.
    """

    calls: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    indices: Tensor | None = None
    epoch: Tensor | None = None
    loss: Tensor | None = None


class CapturedStep:
    """`step` as CUDA graphs: one for each kind of step, recorded at its third call, and replayed from then on.

    step: indices, int64 (B,), of a batch's images in the data set, and the epoch, int64 () -> the loss, (); all on the
    GPU. What it must keep to is listed at `training.objectives.Objective`.

    The first two calls run `step` without a graph, since libraries initialise themselves in them. A replay draws the
    same random numbers as the step would without a graph, since it reads torch's generator as it then is.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._step = step
        self._phase: Hashable = None
        self._recordings: dict[Hashable, _Recording] = {}

    def __call__(self, indices: Tensor, epoch: int, phase: Hashable, variant: Hashable = None) -> Tensor:
        """Take a step. A kind of step is a phase and a variant: a new `phase` discards all graphs, and each `variant`
        has its own. Raises what `step` raises.
        """
        if phase != self._phase:
            self._phase, self._recordings = phase, {}
        recording = self._recordings.setdefault(variant, _Recording())
        recording.calls += 1
        if recording.calls <= 2:
            return self._step(indices, torch.tensor(epoch, device=indices.device))
        if recording.graph is None:
            recording.indices, recording.epoch = indices.clone(), torch.tensor(epoch, device=indices.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                recording.loss = self._step(recording.indices, recording.epoch)
            recording.graph = graph
        assert recording.indices is not None
        assert recording.epoch is not None
        assert recording.loss is not None
        recording.indices.copy_(indices)
        recording.epoch.fill_(epoch)
        recording.graph.replay()
        return recording.loss.clone()
