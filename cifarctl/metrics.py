"""The one table of metrics: what each is called and means, how it is measured, and how its value is written.

Evaluation, tables, reports, figures, the JSON and the thresholds that a user sets all read it. A new metric needs its
entry in the table, and its key in the kind's TypedDict, which tells type checkers what `report.metrics` holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, cast

from cifarctl.comparison import wilson_interval

if TYPE_CHECKING:
    from cifarctl.model_outputs import Predictions, Reconstructions

Kind = Literal["classifier", "autoencoder"]
Value = float | tuple[float, float]


class ClassifierMetrics(TypedDict):
    """The metrics of a classifier on a split. `METRICS` says what each means."""

    accuracy: float
    accuracy_ci95: tuple[float, float]
    top5_accuracy: NotRequired[float]
    balanced_accuracy: float
    macro_f1: float
    nll: float
    ece: float


class AutoencoderMetrics(TypedDict):
    """The metrics of an autoencoder on a split. `METRICS` says what each means."""

    mse: float
    psnr: float
    psnr_image_mean: float
    psnr_chroma: float
    ssim: float
    latent_floats: int
    compression_ratio: float
    pca_psnr: float
    pca_psnr_chroma: float
    pca_ssim: float


@dataclass(frozen=True)
class Metric:
    """One metric.

    name: its key in JSON. title: what it is called. meaning: what it says, in one sentence. measure: gives its value
    from a classifier's `Predictions` or an autoencoder's `Reconstructions`: a number, or the two ends of an interval.
    better: "higher" or "lower"; None if it says nothing of how good a model is, and `--fail-under` refuses it.
    column: its heading in tables of several models; those without one are left out. unit, spec: how a value is written;
    "%" is for fractions, and spec is that of `format`. beside: the metric at which a report shows it, instead of on its
    own. min_classes: classifiers of fewer classes are not measured by it.
    """

    name: str
    kind: Kind
    title: str
    meaning: str
    measure: Callable[[Any], Value]
    better: Literal["higher", "lower"] | None = "higher"
    column: str = ""
    unit: Literal["%", "dB", "nats", ": 1", ""] = ""
    spec: str = ".4f"
    beside: str | None = None
    min_classes: int = 0

    def applies(self, kind: str, classes: int) -> bool:
        """Whether models of this kind, with this number of classes, are measured by it."""
        return self.kind == kind and classes >= self.min_classes

    def misses(self, value: float, bound: float) -> bool:
        """Whether a value is worse than the bound."""
        return value > bound if self.better == "lower" else value < bound

    def text(self, value: Value) -> str:
        """A value with its unit; an interval as "1.00 to 2.00 dB"."""
        percent = "%" if self.unit == "%" else ""
        text = " to ".join(number + percent for number in self._numbers(value))
        return text if percent else text + self._unit

    def cell(self, value: Value) -> str:
        """A value for a narrow column, without a unit that is a word; an interval as "1.00–2.00"."""
        numbers = self._numbers(value)
        return "–".join(numbers) + ("%" if self.unit == "%" and len(numbers) == 1 else "")

    def signed(self, difference: float) -> str:
        """A difference of two values without its unit; of fractions, in percentage points."""
        return f"{self._scaled(difference):+{self.spec}}"

    def difference(self, difference: float) -> str:
        """A difference of two values, with its sign and unit."""
        return self.signed(difference) + (" points" if self.unit == "%" else self._unit)

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def _scaled(self, value: float) -> float:
        return 100 * value if self.unit == "%" else value

    def _numbers(self, value: Value) -> list[str]:
        ends = value if isinstance(value, tuple | list) else (value,)  # JSON has made lists of tuples
        return [f"{self._scaled(end):{self.spec}}" for end in ends]


def measure_classifier(predictions: "Predictions") -> ClassifierMetrics:
    """All metrics of a classifier with its number of classes, in the table's order."""
    return cast("ClassifierMetrics", _measure("classifier", len(predictions.classes), predictions))


def measure_autoencoder(reconstructions: "Reconstructions") -> AutoencoderMetrics:
    """All metrics of an autoencoder, in the table's order."""
    return cast("AutoencoderMetrics", _measure("autoencoder", 0, reconstructions))


def headline(kind: str) -> Metric:
    """The metric that counts most for a kind of model."""
    return METRICS["accuracy" if kind == "classifier" else "psnr"]


def compared(kind: str) -> list[Metric]:
    """The metrics that tables of several models show, the headline first."""
    columns = [metric for metric in METRICS.values() if metric.kind == kind and metric.column]
    return sorted(columns, key=lambda metric: metric is not headline(kind))


def _measure(kind: Kind, classes: int, outputs: "Predictions | Reconstructions") -> dict[str, Value]:
    return {name: metric.measure(outputs) for name, metric in METRICS.items() if metric.applies(kind, classes)}


def _correct(predictions: "Predictions") -> int:
    return int(predictions.confusion_matrix.diagonal().sum())


def _accuracy(predictions: "Predictions") -> float:
    return _correct(predictions) / len(predictions.labels)


def _accuracy_interval(predictions: "Predictions") -> tuple[float, float]:
    return wilson_interval(_correct(predictions), len(predictions.labels))


def _top5_accuracy(predictions: "Predictions") -> float:
    hits = (predictions.logits.topk(5).indices == predictions.labels[:, None]).any(1)
    return int(hits.sum()) / len(predictions.labels)


def _balanced_accuracy(predictions: "Predictions") -> float:
    return _mean([row.recall for row in predictions.per_class])


def _macro_f1(predictions: "Predictions") -> float:
    return _mean([row.f1 for row in predictions.per_class])


def _nll(predictions: "Predictions") -> float:
    from torch.nn.functional import cross_entropy

    return cross_entropy(predictions.logits, predictions.labels).item()


def _calibration_error(predictions: "Predictions") -> float:
    """Source: Guo et al., "On Calibration of Modern Neural Networks", 2017."""
    from cifarctl.model_outputs import calibration_bins

    bins = calibration_bins(predictions.probabilities, predictions.labels)
    return ((bins.accuracy - bins.confidence).abs() * bins.count).sum().item() / len(predictions.labels)


def _mse(images: "Reconstructions") -> float:
    return images.image_mse.mean().item()


def _psnr(images: "Reconstructions") -> float:
    from cifarctl.model_outputs import psnr

    return psnr(images.image_mse.mean()).item()


def _psnr_image_mean(images: "Reconstructions") -> float:
    return images.image_psnr.mean().item()


def _psnr_chroma(images: "Reconstructions") -> float:
    from cifarctl.model_outputs import chroma, psnr

    return psnr(chroma(images.outputs - images.originals).square().mean()).item()


def _ssim(images: "Reconstructions") -> float:
    from cifarctl.model_outputs import mean_ssim

    return mean_ssim(images.outputs, images.originals)


def _latent_floats(images: "Reconstructions") -> int:
    return images.latent_dim


def _compression_ratio(images: "Reconstructions") -> float:
    return images.originals[0].numel() / images.latent_dim


def _of_pca(measure: "Callable[[Reconstructions], float]") -> "Callable[[Reconstructions], float]":
    return lambda images: measure(images.pca)


def _mean(values: list[float | None]) -> float:
    """The mean of those that are not None; there is at least one."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


_TABLE = (
    Metric(
        name="accuracy",
        kind="classifier",
        title="accuracy",
        meaning="The fraction of images whose most likely label is right.",
        measure=_accuracy,
        column="accuracy",
        unit="%",
        spec=".2f",
    ),
    Metric(
        name="accuracy_ci95",
        kind="classifier",
        title="accuracy, 95 % interval",
        meaning="An interval that holds the accuracy on many more such images with 95 % confidence (Wilson's).",
        measure=_accuracy_interval,
        better=None,
        column="95 %",
        unit="%",
        spec=".2f",
        beside="accuracy",
    ),
    Metric(
        name="top5_accuracy",
        kind="classifier",
        title="top-5 accuracy",
        meaning="The fraction of images whose right label is among the five most likely ones.",
        measure=_top5_accuracy,
        column="top 5",
        unit="%",
        spec=".2f",
        min_classes=11,
    ),
    Metric(
        name="balanced_accuracy",
        kind="classifier",
        title="balanced accuracy",
        meaning="The mean of the classes' recall: every class that has images counts the same.",
        measure=_balanced_accuracy,
        unit="%",
        spec=".2f",
    ),
    Metric(
        name="macro_f1",
        kind="classifier",
        title="macro F1",
        meaning="The mean of the classes' F1, the harmonic mean of precision and recall, over classes with images.",
        measure=_macro_f1,
        column="F1",
    ),
    Metric(
        name="nll",
        kind="classifier",
        title="negative log-likelihood",
        meaning="Minus the logarithm of the right label's probability, on average. Certain and right is 0.",
        measure=_nll,
        better="lower",
        column="NLL",
        unit="nats",
    ),
    Metric(
        name="ece",
        kind="classifier",
        title="expected calibration error",
        meaning="The mean gap between confidence and accuracy, over 15 bins of confidence.",
        measure=_calibration_error,
        better="lower",
        column="ECE",
    ),
    Metric(
        name="mse",
        kind="autoencoder",
        title="mean squared error",
        meaning="The mean squared difference of pixel values in [0, 1], over all pixels of all images.",
        measure=_mse,
        better="lower",
        spec=".6f",
    ),
    Metric(
        name="psnr",
        kind="autoencoder",
        title="PSNR of the mean squared error",
        meaning="The peak signal-to-noise ratio over all pixels; 3 dB more is half the squared error.",
        measure=_psnr,
        column="PSNR",
        unit="dB",
        spec=".2f",
    ),
    Metric(
        name="psnr_image_mean",
        kind="autoencoder",
        title="PSNR, mean of the images'",
        meaning="Each image's own PSNR, averaged: easy images count as much as hard ones.",
        measure=_psnr_image_mean,
        column="mean",
        unit="dB",
        spec=".2f",
    ),
    Metric(
        name="psnr_chroma",
        kind="autoencoder",
        title="PSNR of the colours, Cb and Cr",
        meaning="The PSNR of the two colour channels, without brightness.",
        measure=_psnr_chroma,
        unit="dB",
        spec=".2f",
    ),
    Metric(
        name="ssim",
        kind="autoencoder",
        title="SSIM, mean of the images'",
        meaning="Structural similarity: contrast and structure in a window around each pixel. A perfect copy has 1.",
        measure=_ssim,
        column="SSIM",
    ),
    Metric(
        name="pca_psnr",
        kind="autoencoder",
        title="PSNR of PCA at that size",
        meaning="PCA, fitted on the training images, is the best linear autoencoder with as many floats.",
        measure=_of_pca(_psnr),
        column="PCA",
        unit="dB",
        spec=".2f",
        beside="psnr",
    ),
    Metric(
        name="latent_floats",
        kind="autoencoder",
        title="latent floats",
        meaning="How many floats an image is encoded as; its pixels are 3,072 values.",
        measure=_latent_floats,
        better="lower",
        column="floats",
        spec="d",
    ),
    Metric(
        name="compression_ratio",
        kind="autoencoder",
        title="compression ratio",
        meaning="How many times fewer floats than pixel values there are.",
        measure=_compression_ratio,
        unit=": 1",
        spec="g",
        beside="latent_floats",
    ),
    Metric(
        name="pca_psnr_chroma",
        kind="autoencoder",
        title="PSNR of PCA's colours",
        meaning="The PSNR of the two colour channels with PCA of as many floats.",
        measure=_of_pca(_psnr_chroma),
        unit="dB",
        spec=".2f",
        beside="psnr_chroma",
    ),
    Metric(
        name="pca_ssim",
        kind="autoencoder",
        title="SSIM of PCA at that size",
        meaning="The structural similarity with PCA of as many floats.",
        measure=_of_pca(_ssim),
        beside="ssim",
    ),
)
METRICS = {metric.name: metric for metric in _TABLE}
