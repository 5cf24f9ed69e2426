"""Is one model better than another? Differences on the same images, with their intervals and p-values."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

_Z = 1.959964  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Difference:
    """The second model less the first, on the same images.

    metric: "accuracy", or "psnr_image_mean" in dB. ci95: its 95 % confidence interval. p_value: the probability of at
    least such a difference if the models were equally good. only_first, only_second: how many images only that model
    gets right, or reconstructs better.
    """

    metric: Literal["accuracy", "psnr_image_mean"]
    difference: float
    ci95: tuple[float, float]
    p_value: float
    only_first: int
    only_second: int


def compare_accuracy(first: Tensor, second: Tensor) -> Difference:
    """first, second: bool (N,), whether each image was classified correctly.

    The p-value is that of McNemar's exact test (1947): of the images on which the models disagree, each is right on
    half of them by chance. The interval is Agresti and Min's (2005), which adds half a case to each of the four.
    """
    n = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    fewer, discordant = min(only_first, only_second), only_first + only_second
    # Integers, since the terms span hundreds of orders of magnitude.
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    p_value = min(1.0, 2 * tail / 2**discordant) if discordant else 1.0

    b, c, total = only_first + 0.5, only_second + 0.5, n + 2
    centre = (c - b) / total
    half = _Z * math.sqrt(b + c - (c - b) ** 2 / total) / total
    return Difference(
        "accuracy", (only_second - only_first) / n, (centre - half, centre + half), p_value, only_first, only_second
    )


def compare_psnr(first: Tensor, second: Tensor) -> Difference:
    """first, second: float (N,), each image's PSNR in dB. The test is a paired z-test, so N should not be tiny."""
    differences = (second - first).double()
    mean, n = differences.mean().item(), len(differences)
    error = differences.std().item() / math.sqrt(n) if n > 1 else math.inf
    p_value = math.erfc(abs(mean) / max(error, 1e-300) / math.sqrt(2))
    return Difference(
        "psnr_image_mean",
        mean,
        (mean - _Z * error, mean + _Z * error),
        p_value,
        int((differences < 0).sum()),
        int((differences > 0).sum()),
    )
