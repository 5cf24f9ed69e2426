"""How like its training images a picture looks to a classifier: a linear score of what its layers saw, as a fraction of
the validation images. `training.outliers` fits it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cifarctl.models.base import STAGE_WIDTH

PREFIX = "typicality."
_CLAMP = 5.0  # standard deviations; a sum of features should not hang on one of them


@dataclass(frozen=True)
class Typicality:
    """A fitted score. mean, scale: of the training images' summaries, float32 (D,). weight: of each number in a
    standardised summary, float32 (D,). quantiles: of the validation images' scores, ascending, float32 (Q,).
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    quantiles: Tensor

    def scores(self, summaries: Tensor) -> Tensor:
        """Summaries, float (N, D) -> scores, float32 (N,); the higher, the more like the training images."""
        mean, scale, weight = (tensor.to(summaries.device) for tensor in (self.mean, self.scale, self.weight))
        return standardized(summaries, mean, scale) @ weight

    def fractions(self, scores: Tensor) -> Tensor:
        """Scores -> the fraction of validation images with a lower one, float32 (N,) in [0, 1], interpolated."""
        quantiles, scores = self.quantiles.cpu(), scores.cpu().contiguous()
        above = torch.searchsorted(quantiles, scores).clamp(1, len(quantiles) - 1)
        low, high = quantiles[above - 1], quantiles[above]
        between = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        return (above - 1 + between) / (len(quantiles) - 1)

    def tensors(self) -> dict[str, Tensor]:
        """What a weights file holds, by name."""
        return {PREFIX + field.name: getattr(self, field.name) for field in fields(self)}


NAMES = frozenset(PREFIX + field.name for field in fields(Typicality))


def from_tensors(tensors: Mapping[str, Tensor], size: int) -> Typicality:
    """The score that a weights file holds, for summaries of `size` numbers. Raises ValueError, which names the tensor
    that cannot be.
    """
    for name in sorted(NAMES):
        tensor = tensors[name]
        if not tensor.is_floating_point() or tensor.ndim != 1:
            raise ValueError(f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, expected one row of floats")
        if name != f"{PREFIX}quantiles" and len(tensor) != size:
            raise ValueError(f"tensor {name} has {len(tensor)} values, expected {size}")
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {name} holds values that are not finite")
    if not (tensors[f"{PREFIX}scale"] > 0).all():
        raise ValueError(f"tensor {PREFIX}scale holds values that are not above 0")
    quantiles = tensors[f"{PREFIX}quantiles"]
    if len(quantiles) < 2 or (quantiles.diff() < 0).any():
        raise ValueError(f"tensor {PREFIX}quantiles does not ascend")
    return Typicality(**{field.name: tensors[PREFIX + field.name].float() for field in fields(Typicality)})


def summarize(stages: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """What `Classifier.stages` gives -> the logits, float32 (N, classes), and each image's summary, float32 (N, D):
    the mean and the standard deviation of every channel; of vectors the units, their mean and their norm; the
    sorted logits and their energy (Liu et al., "Energy-based Out-of-distribution Detection", 2020).
    """
    parts: list[list[Tensor]] = []
    for stage in stages:
        parts.append(_moments(stage[:, :STAGE_WIDTH]))
    logits = stage.float()
    layers = (part for of_stage in parts[:-1] for part in of_stage)
    return logits, torch.cat((*layers, logits.sort(1, descending=True).values, logits.logsumexp(1, keepdim=True)), 1)


def standardized(summaries: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Summaries in standard deviations from the mean, clamped, (N, D)."""
    return ((summaries - mean) / scale).clamp(-_CLAMP, _CLAMP)


def auroc(familiar: Tensor, unfamiliar: Tensor) -> float:
    """The probability that a familiar image has the higher value; equal ones count half. Both float (N,)."""
    ascending = unfamiliar.sort().values
    below = torch.searchsorted(ascending, familiar) + torch.searchsorted(ascending, familiar, right=True)
    return (below.double().mean() / (2 * len(unfamiliar))).item()


def false_positives(familiar: Tensor, unfamiliar: Tensor, true_positives: float = 0.95) -> float:
    """The fraction of unfamiliar images that pass the bound which that fraction of the familiar ones pass."""
    bound = familiar.sort(descending=True).values[max(0, round(true_positives * len(familiar)) - 1)]
    return (unfamiliar >= bound).double().mean().item()


def _moments(x: Tensor) -> list[Tensor]:
    x = x.float()
    if x.ndim == 2:
        return [x, x.mean(1, keepdim=True), x.square().mean(1, keepdim=True).sqrt()]
    mean = x.mean((2, 3))
    return [mean, (x.square().mean((2, 3)) - mean.square()).clamp_min(0).sqrt()]
