"""Is one model better than another? Confidence intervals, differences on the same images, and their p-values."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Z_95 = 1.959964  # half the width of a two-sided 95 % interval of a normal distribution, in standard deviations


@dataclass(frozen=True)
class Difference:
    """The second model's metric minus the first's, on the same images.

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


@dataclass(frozen=True)
class Comparison:
    """How two models of a kind are compared. test: what gives the p-value. verb: what a model does to an image that it
    does better than the other: it gets it "right", or it is "better".
    """

    compare: "Callable[[Tensor, Tensor], Difference]"
    test: str
    verb: str


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion: Wilson, 1927. It stays in [0, 1] and holds for small `n`."""
    rate, z = successes / n, Z_95
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test (1947).

    Of the n images on which two equally good models disagree, each is right on half of them by chance: this is the
    probability that a Binomial(n, 1/2) is as far from its mean as the smaller count is, or further.
    """
    fewer, n = sorted((only_first, only_second))[0], only_first + only_second
    if 2 * fewer >= n - 1:
        return 1.0
    # The largest term of the tail by logarithms, since it may be below the smallest float; from there each term is the
    # next one's k / (n - k + 1), which is below 1.
    largest = math.lgamma(n + 1) - math.lgamma(fewer + 1) - math.lgamma(n - fewer + 1) - n * math.log(2)
    terms, term = [1.0], 1.0
    for k in range(fewer, 0, -1):
        term *= k / (n - k + 1)
        if term < 1e-18:
            break
        terms.append(term)
    return min(1.0, 2 * math.exp(largest + math.log(math.fsum(terms))))


def compare_accuracy(first: "Tensor", second: "Tensor") -> Difference:
    """first, second: bool (N,), whether each image was classified correctly.

    The p-value is that of McNemar's exact test. The interval is Agresti and Min's (2005), which adds half a case to
    each of the four counts.
    """
    n = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    b, c, total = only_first + 0.5, only_second + 0.5, n + 2
    centre = (c - b) / total
    half = Z_95 * math.sqrt(b + c - (c - b) ** 2 / total) / total
    return Difference(
        "accuracy",
        (only_second - only_first) / n,
        (centre - half, centre + half),
        mcnemar_p_value(only_first, only_second),
        only_first,
        only_second,
    )


def compare_psnr(first: "Tensor", second: "Tensor") -> Difference:
    """first, second: float (N,), each image's PSNR in dB. The test is a paired z-test, so N should not be tiny."""
    differences = (second - first).double()
    mean, n = differences.mean().item(), len(differences)
    error = differences.std().item() / math.sqrt(n) if n > 1 else math.inf
    p_value = math.erfc(abs(mean) / max(error, 1e-300) / math.sqrt(2))
    return Difference(
        "psnr_image_mean",
        mean,
        (mean - Z_95 * error, mean + Z_95 * error),
        p_value,
        int((differences < 0).sum()),
        int((differences > 0).sum()),
    )


COMPARISONS = {
    "classifier": Comparison(compare_accuracy, "McNemar's exact test", "right"),
    "autoencoder": Comparison(compare_psnr, "a paired z-test of the images' PSNR", "better"),
}
