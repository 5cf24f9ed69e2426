"""Metrics of a model on a split. They are computed in fp32, whatever precision training used, so that they can be
recomputed.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.data.dataset import to_float
from cifarctl.data.fingerprint import class_differences
from cifarctl.distributed import ALONE, Ranks
from cifarctl.errors import DataError
from cifarctl.inference import predict_logits, reconstruct
from cifarctl.models.base import Autoencoder, Classifier
from cifarctl.models.pca import pca_reconstruct

# Higher is better, unless the metric is among these.
LOWER_IS_BETTER = frozenset({"nll", "ece", "mse", "latent_floats"})


@dataclass(frozen=True)
class ClassMetrics:
    """One class: precision, the fraction of the predictions of it that are right; recall, the fraction of its images
    that are recognised; F1, their harmonic mean. support: how many images it has; where it has none, the others are
    None."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class ClassifierReport:
    """A classifier on a split.

    metrics: accuracy, accuracy_ci95 (low, high: Wilson's interval), balanced_accuracy and macro_f1 (means of the
    recall and of the F1 of the classes that have images), nll (mean negative log-likelihood, nats), ece (expected
    calibration error, 15 bins of confidence). confusion_matrix: counts, rows are the truth.
    probabilities: float32 (N, classes).
    """

    n: int
    metrics: dict[str, float | tuple[float, float]]
    per_class: list[ClassMetrics]
    confusion_matrix: list[list[int]]
    images_per_second: float
    probabilities: Tensor


@dataclass(frozen=True)
class AutoencoderReport:
    """An autoencoder on a split.

    metrics: mse (mean over all pixels of all images, in [0, 1]), psnr (dB, of that mean), psnr_image_mean (mean of the
    images' own PSNR), ssim (mean over the images; Gaussian window of 11, sigma 1.5), latent_floats, compression_ratio
    (3,072 over latent_floats), pca_psnr and pca_ssim (of as many principal components of the training images).
    reconstructions: float32 (N, 3, 32, 32). image_psnr: float32 (N,).
    """

    n: int
    metrics: dict[str, float | int]
    images_per_second: float
    reconstructions: Tensor
    image_psnr: Tensor


def require_classes(known: tuple[str, ...], found: tuple[str, ...], model: object) -> None:
    """Raise DataError, which names the `model`, unless the classes that it knows are those `found` in the data, in that
    order.
    """
    if known != found:
        raise DataError(
            f"{model}: knows the classes of other data ({class_differences(known, 'the model', found, 'the data')})",
            hint="--data names the data set that the model was trained for",
        )


def evaluate_classifier(
    model: Classifier, data: Dataset, *, tta: bool = False, ranks: Ranks = ALONE
) -> ClassifierReport:
    """Measure `model` on `data`. tta: average over six views of each image. Several `ranks` share out the images."""
    started = time.perf_counter()
    logits = predict_logits(model, data.images, tta=tta, ranks=ranks).cpu()
    seconds = time.perf_counter() - started

    labels, classes = data.labels.cpu(), len(data.classes)
    probabilities = logits.softmax(1)
    # Not torchmetrics': to import it takes 3 s, and the first half of a small evaluation.
    matrix = torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
    per_class = _per_class(matrix, data.classes)
    correct = int(matrix.diagonal().sum())
    metrics: dict[str, float | tuple[float, float]] = {
        "accuracy": correct / len(data),
        "accuracy_ci95": wilson_interval(correct, len(data)),
        "balanced_accuracy": _mean(row.recall for row in per_class),
        "macro_f1": _mean(row.f1 for row in per_class),
        "nll": F.cross_entropy(logits, labels).item(),
        "ece": _calibration_error(probabilities, labels),
    }
    return ClassifierReport(len(data), metrics, per_class, matrix.tolist(), len(data) / seconds, probabilities)


def evaluate_autoencoder(
    model: Autoencoder, data: Dataset, train_images: Tensor, *, ranks: Ranks = ALONE
) -> AutoencoderReport:
    """Measure `model` on `data`, and PCA fitted on `train_images`, uint8 (M, 3, 32, 32), beside it. Several `ranks`
    share out the images.
    """
    started = time.perf_counter()
    reconstructions = reconstruct(model, data.images, ranks=ranks)
    seconds = time.perf_counter() - started

    originals = to_float(data.images)
    error = reconstructions - originals
    image_mse = error.square().flatten(1).mean(1)
    image_psnr = psnr(image_mse)
    linear = pca_reconstruct(train_images, data.images, model.latent_dim)
    linear_error = linear - originals
    metrics = {
        "mse": image_mse.mean().item(),
        "psnr": psnr(image_mse.mean()).item(),
        "psnr_image_mean": image_psnr.mean().item(),
        "psnr_chroma": psnr(_chroma(error).square().mean()).item(),
        "ssim": _mean_ssim(reconstructions, originals),
        "latent_floats": model.latent_dim,
        "compression_ratio": 3 * 32 * 32 / model.latent_dim,
        "pca_psnr": psnr(linear_error.square().mean()).item(),
        "pca_psnr_chroma": psnr(_chroma(linear_error).square().mean()).item(),
        "pca_ssim": _mean_ssim(linear, originals),
    }
    return AutoencoderReport(len(data), metrics, len(data) / seconds, reconstructions.cpu(), image_psnr.cpu())


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors of pixels in [0, 1]. An exact copy has 120 dB."""
    return -10 * mse.clamp_min(1e-12).log10()


def reliability_bins(probabilities: Tensor, labels: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """How many images fall into each of equal bins of confidence, int64 (bins,), which part of them is right, and their
    mean confidence, float64 (bins,), 0 where there are none.

    probabilities: float (N, classes). labels: int64 (N,).
    """
    confidence, predicted = probabilities.max(1)
    index = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1)[1:-1])
    count = torch.bincount(index, minlength=bins)
    accuracy, mean_confidence = (
        torch.bincount(index, weights=values.double(), minlength=bins) / count.clamp_min(1)
        for values in (predicted == labels, confidence)
    )
    return count, accuracy, mean_confidence


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion: Wilson, 1927. It stays in [0, 1] and holds for small `n`."""
    z = 1.959964
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error: how far accuracy and confidence are apart in the mean, over 15 bins of confidence.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    count, accuracy, confidence = reliability_bins(probabilities, labels)
    return ((accuracy - confidence).abs() * count).sum().item() / len(labels)


def _per_class(matrix: Tensor, classes: tuple[str, ...]) -> list[ClassMetrics]:
    """Precision, recall and F1 from a confusion matrix, int64 (C, C); 0 where a class is never predicted."""
    rows = []
    for i, label in enumerate(classes):
        hits, predicted, support = int(matrix[i, i]), int(matrix[:, i].sum()), int(matrix[i].sum())
        if support:
            precision = hits / predicted if predicted else 0.0
            rows.append(ClassMetrics(label, precision, hits / support, 2 * hits / (predicted + support), support))
        else:
            rows.append(ClassMetrics(label, None, None, None, 0))
    return rows


def _mean(values: Iterable[float | None]) -> float:
    """The mean of those that are not None; there is at least one."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _chroma(rgb: Tensor) -> Tensor:
    """Differences of RGB, float (N, 3, H, W) -> differences of Cb and Cr, (N, 2, H, W), in [-1, 1] as well.
    Source: JFIF 1.02, 1992, after ITU-R BT.601.
    """
    weights = torch.tensor([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], device=rgb.device)
    return torch.einsum("yc,nchw->nyhw", weights, rgb)


def _mean_ssim(images: Tensor, originals: Tensor) -> float:
    from torchmetrics.functional.image import structural_similarity_index_measure

    each = [
        torch.as_tensor(structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")).flatten()
        for pair in zip(images.split(1000), originals.split(1000), strict=True)
    ]
    return torch.cat(each).mean().item()
