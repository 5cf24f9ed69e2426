"""Metrics of a model on a split. They are computed in fp32, whatever precision training used, so that they can be
recomputed.
"""

import time
from dataclasses import dataclass

from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.data.dataset import to_float
from cifarctl.data.fingerprint import class_differences
from cifarctl.distributed import ALONE, Ranks
from cifarctl.errors import DataError
from cifarctl.inference import answer, reconstruct
from cifarctl.metrics import AutoencoderMetrics, ClassifierMetrics, measure_autoencoder, measure_classifier
from cifarctl.model_outputs import ClassMetrics, Predictions, Reconstructions
from cifarctl.models.base import Autoencoder, Classifier
from cifarctl.models.pca import pca_reconstruct
from cifarctl.progress import OnEvent, Progress, ignore


@dataclass(frozen=True)
class ClassifierReport:
    """A classifier on a split of n images.

    confusion_matrix: counts, rows are the truth. probabilities: float32 (N, classes). typicality: of each
    image, float32 (N,) in [0, 1]; None if the model has no such score.
    """

    n: int
    metrics: ClassifierMetrics
    per_class: list[ClassMetrics]
    confusion_matrix: list[list[int]]
    images_per_second: float
    probabilities: Tensor
    typicality: Tensor | None = None


@dataclass(frozen=True)
class AutoencoderReport:
    """An autoencoder on a split of n images.

    reconstructions: float32 (N, 3, 32, 32). image_psnr: each image's PSNR in dB, float32 (N,).
    """

    n: int
    metrics: AutoencoderMetrics
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
            hint="measure it on the data set that it was trained for",
        )


def evaluate_classifier(
    model: Classifier, data: Dataset, *, tta: bool = False, ranks: Ranks = ALONE, on_event: OnEvent = ignore
) -> ClassifierReport:
    """Measure `model` on `data`. tta: average over six views of each image. Several `ranks` share out the images.

    on_event: called with a Progress after each batch.
    """
    started = time.perf_counter()
    answers = answer(model, data.images, tta=tta, ranks=ranks, on_event=on_event)
    logits = answers.logits.cpu()
    seconds = time.perf_counter() - started

    predictions = Predictions(logits, data.labels.cpu(), data.classes)
    return ClassifierReport(
        len(data),
        measure_classifier(predictions),
        predictions.per_class,
        predictions.confusion_matrix.tolist(),
        len(data) / seconds,
        predictions.probabilities,
        answers.typicality,
    )


def evaluate_autoencoder(
    model: Autoencoder, data: Dataset, train_images: Tensor, *, ranks: Ranks = ALONE, on_event: OnEvent = ignore
) -> AutoencoderReport:
    """Measure `model` on `data`, and PCA fitted on `train_images`, uint8 (M, 3, 32, 32), beside it. Several `ranks`
    share out the images.

    on_event: called with a Progress after each batch, and before each longer computation.
    """
    started = time.perf_counter()
    reconstructions = reconstruct(model, data.images, ranks=ranks, on_event=on_event)
    seconds = time.perf_counter() - started

    on_event(Progress(f"Computing PCA of {len(train_images):,} training images"))
    pca_outputs = pca_reconstruct(train_images, data.images, model.latent_dim)
    images = Reconstructions(to_float(data.images), reconstructions, pca_outputs, model.latent_dim)
    on_event(Progress("Computing the metrics"))
    metrics = measure_autoencoder(images)
    return AutoencoderReport(len(data), metrics, len(data) / seconds, reconstructions.cpu(), images.image_psnr.cpu())
