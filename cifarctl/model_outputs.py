"""What models answered on a split, and the quantities that metrics and figures share. Nothing here is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from cifarctl.caches import room_for_caches

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassMetrics:
    """How well one class is recognised.

    precision: the fraction of the predictions of this class that are right. recall: the fraction of its images that
    are recognised. f1: the harmonic mean of the two. support: how many images it has; if it has none, the others are
    None.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Predictions:
    """A classifier's answers. logits: float32 (N, C). labels: int64 (N,), the truth. classes: the C names. All tensors
    are on the CPU.
    """

    logits: Tensor
    labels: Tensor
    classes: Sequence[str]

    @cached_property
    def probabilities(self) -> Tensor:
        """float32 (N, C)."""
        return self.logits.softmax(1)

    @cached_property
    def confusion_matrix(self) -> Tensor:
        """Counts, int64 (C, C); rows are the truth."""
        # Not torchmetrics': importing it takes 3 s.
        count = len(self.classes)
        return torch.bincount(self.labels * count + self.logits.argmax(1), minlength=count**2).view(count, count)

    @cached_property
    def per_class(self) -> list[ClassMetrics]:
        """Every class; the precision of one that is never predicted is 0."""
        rows = []
        for i, label in enumerate(self.classes):
            hits = int(self.confusion_matrix[i, i])
            predicted, support = int(self.confusion_matrix[:, i].sum()), int(self.confusion_matrix[i].sum())
            if support:
                precision = hits / predicted if predicted else 0.0
                rows.append(ClassMetrics(label, precision, hits / support, 2 * hits / (predicted + support), support))
            else:
                rows.append(ClassMetrics(label, None, None, None, 0))
        return rows


@dataclass(frozen=True)
class Reconstructions:
    """What an autoencoder made of images, and what PCA with as many floats made of them.

    originals, outputs, pca_outputs: float32 (N, 3, 32, 32) in [0, 1], on one device. latent_dim: floats per image.
    """

    originals: Tensor
    outputs: Tensor
    pca_outputs: Tensor
    latent_dim: int

    @cached_property
    def image_mse(self) -> Tensor:
        """Each image's mean squared error, float32 (N,)."""
        return (self.outputs - self.originals).square().flatten(1).mean(1)

    @cached_property
    def image_psnr(self) -> Tensor:
        """Each image's PSNR in dB, float32 (N,)."""
        return psnr(self.image_mse)

    @cached_property
    def pca(self) -> "Reconstructions":
        """What PCA made of the same images, in place of the autoencoder."""
        return replace(self, outputs=self.pca_outputs)


@dataclass(frozen=True)
class CalibrationBins:
    """Images in equal bins of confidence, B of them: edges, float32 (B + 1,); how many images each bin has, int64 (B,);
    the fraction of them that is right, and their mean confidence, float64 (B,), 0 in empty bins.
    """

    edges: Tensor
    count: Tensor
    accuracy: Tensor
    confidence: Tensor


def calibration_bins(probabilities: Tensor, labels: Tensor) -> CalibrationBins:
    """probabilities: float (N, C). labels: int64 (N,)."""
    confidence, predicted = probabilities.max(1)
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1)
    index = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(index, minlength=CALIBRATION_BINS)
    accuracy, mean_confidence = (
        torch.bincount(index, weights=values.double(), minlength=CALIBRATION_BINS) / count.clamp_min(1)
        for values in (predicted == labels, confidence)
    )
    return CalibrationBins(edges, count, accuracy, mean_confidence)


def confident_mistakes(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The indices of the images that are classified wrongly, int64 (M,), the most confident mistake first."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True)]


def psnr(mse: Tensor | float) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors of pixels in [0, 1]. An exact copy has 120 dB."""
    errors = mse if isinstance(mse, Tensor) else torch.tensor(mse, dtype=torch.float64)
    return -10 * errors.clamp_min(1e-12).log10()


def chroma(rgb: Tensor) -> Tensor:
    """Differences of RGB, float (N, 3, H, W) -> differences of Cb and Cr, (N, 2, H, W), in [-1, 1] as well.
    Source: JFIF 1.02, 1992, after ITU-R BT.601.
    """
    weights = torch.tensor([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], device=rgb.device)
    return torch.einsum("yc,nchw->nyhw", weights, rgb)


def mean_ssim(images: Tensor, originals: Tensor) -> float:
    """The mean over the images of structural similarity (SSIM): Gaussian window of 11, sigma 1.5.

    Both float (N, 3, H, W) in [0, 1]. Source: Wang et al., "Image quality assessment", 2004.
    """
    with room_for_caches():  # torchmetrics imports Matplotlib
        from torchmetrics.functional.image import structural_similarity_index_measure

    each = [
        torch.as_tensor(structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")).flatten()
        for pair in zip(images.split(1000), originals.split(1000), strict=True)
    ]
    return torch.cat(each).mean().item()
