"""A training step that a GPU takes without being told of its hundreds of kernels one by one."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class CapturedStep:
    """`step` as a CUDA graph: recorded at its third call, and replayed from then on.

    step: indices, int64 (B,), of a batch's images in the data set, and the epoch, int64 () -> the loss, (); all on the
    GPU. It may change tensors there that outlive it, but must not wait for the GPU. What Python decides in it is
    decided once for each `kind` of step.

    The first two calls run it as it is, since libraries set themselves up in them. Random numbers are those that it
    draws without a graph: a replay starts from the generator's seed of its moment.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._step = step
        self._kind: Hashable = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, indices: Tensor, epoch: int, kind: Hashable) -> Tensor:
        """Take a step; another `kind` than before is recorded anew. Raises what `step` raises."""
        if kind != self._kind:
            self._kind, self._calls, self._graph = kind, 0, None
        self._calls += 1
        if self._calls <= 2:
            return self._step(indices, torch.tensor(epoch, device=indices.device))
        if self._graph is None:
            self._indices, self._epoch = indices.clone(), torch.tensor(epoch, device=indices.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._loss = self._step(self._indices, self._epoch)
            self._graph = graph
        self._indices.copy_(indices)
        self._epoch.fill_(epoch)
        self._graph.replay()
        return self._loss.clone()
