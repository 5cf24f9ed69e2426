"""Batches in; logits, reconstructions or latents out. They are finite, or WeightsError is raised."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarctl.data.dataset import to_float
from cifarctl.distributed import ALONE, Ranks
from cifarctl.errors import WeightsError
from cifarctl.hardware import Precision, autocast
from cifarctl.models.base import Autoencoder, Classifier, Model

# Images at once. On a CPU enough to fill the matrix units, and few enough for the activations to stay in the caches; on
# a GPU so many that starting kernels, and waiting for each batch's check, takes no time.
_BATCH_SIZE, _GPU_BATCH_SIZE = 250, 2500
# Test-time augmentation leaves alone what the model gives at least this probability.
_SURE = 0.95


def predict_logits(
    model: Classifier,
    images: Tensor,
    *,
    tta: bool = False,
    precision: Precision = "fp32",
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
    calibrate: bool = True,
) -> Tensor:
    """Images uint8 (N, 3, 32, 32) -> logits, float32 (N, classes). Several `ranks` share out the work.

    batch_size: images at once; None is what suits the device.
    tta: if the likeliest class has less than 95 % of the probability, average the logits of six views
    (`views`). The idea of sparing the sure ones is that of the later airbench94 records.
    calibrate: False gives the logits as they are trained.
    """

    def trained(images: Tensor) -> Tensor:
        return model.classify(model.features(images)).float()

    def one_batch(batch: Tensor) -> Tensor:
        logits = trained(to_float(batch))
        if tta:
            unsure = model.calibrated(logits).softmax(1).amax(1) < _SURE
            if unsure.any():
                (weight, _), *others = views(batch[unsure])
                weights, crops = zip(*others, strict=True)
                logits[unsure] *= weight
                # Together, since each of few images takes longer; by parts, so that memory does not grow.
                of_views = torch.cat([trained(part) for part in torch.cat(crops).split(len(batch))])
                for weight, of_view in zip(weights, of_views.chunk(len(weights)), strict=True):
                    logits[unsure] += weight * of_view
        return model.calibrated(logits) if calibrate else logits

    return _mapped(model, one_batch, images, precision, batch_size, ranks)


def see(model: Classifier, images: Tensor, *, precision: Precision = "fp32", ranks: Ranks = ALONE) -> Tensor:
    """Images uint8 (N, 3, 32, 32) -> what the model's layers see of them, float32 (N, …). Several `ranks` share out the
    work.
    """
    return _mapped(model, lambda batch: model.features(to_float(batch)), images, precision, ranks=ranks)


def classify_seen(model: Classifier, seen: Tensor, *, precision: Precision = "fp32", ranks: Ranks = ALONE) -> Tensor:
    """What `see` gives -> logits as they are trained, float32 (N, classes). Several `ranks` share out the work."""
    return _mapped(model, model.classify, seen, precision, ranks=ranks)


def views(images: Tensor, shift: int = 1) -> list[tuple[float, Tensor]]:
    """The six views of test-time augmentation, (weight, images): the image, and it shifted by one pixel up-left and
    down-right, each also mirrored. The unshifted pair weighs one half in all. Source: airbench94 (Jordan, 2024).

    Six networks (five of `fast`, one of `best`) on val, 12,000 images in all: 90.80 % without, 91.81 % with these
    views of all images or of the unsure ones alone. No others are clearly better: shifts along the axes 91.75 %, all
    shifts by one pixel 91.78 %, 26 views with shifts by up to two 91.87 %; these six, with probabilities averaged for
    logits, 91.78 %. The image and its mirror image alone: 91.59 %; both scaled to 30 or to 34 pixels: 90.13 and
    88.22 %.
    """
    padded = F.pad(to_float(images), (shift,) * 4, mode="reflect")
    size = images.shape[-1]
    crops = [(0.25, to_float(images))]
    crops += [(0.125, padded[:, :, at : at + size, at : at + size]) for at in (0, 2 * shift)]
    return crops + [(weight, crop.flip(3)) for weight, crop in crops]


def rank(logits: Tensor, classes: Sequence[str], top_k: int) -> list[list[tuple[str, float]]]:
    """Logits (N, classes) -> for each image its `top_k` likeliest classes with their probabilities, best first."""
    top = logits.softmax(1).topk(top_k)
    return [
        [(classes[index], confidence) for index, confidence in zip(indices, confidences, strict=True)]
        for indices, confidences in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def reconstruct(model: Autoencoder, images: Tensor, *, precision: Precision = "fp32", ranks: Ranks = ALONE) -> Tensor:
    """Images uint8 (N, 3, 32, 32) -> their reconstructions, float32 in [0, 1]. Several `ranks` share out the work."""
    return _mapped(model, lambda batch: model(to_float(batch)), images, precision, ranks=ranks)


def encode(model: Autoencoder, images: Tensor, *, precision: Precision = "fp32") -> Tensor:
    """Images uint8 (N, 3, 32, 32) -> latents, float32 (N, latent_dim)."""
    return _mapped(model, lambda batch: model.encode(to_float(batch)), images, precision)


def decode(model: Autoencoder, latents: Tensor, *, precision: Precision = "fp32") -> Tensor:
    """Latents, float (N, latent_dim) -> images, float32 (N, 3, 32, 32) in [0, 1]."""
    return _mapped(model, model.decode, latents, precision)


def _mapped(
    model: Model,
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    precision: Precision,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    return ranks.mapped(inputs, lambda part: torch.cat(list(_batches(model, function, part, precision, batch_size))))


@torch.inference_mode()
def _batches(
    model: Model, function: Callable[[Tensor], Tensor], inputs: Tensor, precision: Precision, batch_size: int | None
) -> Iterator[Tensor]:
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        for batch in inputs.split(batch_size or (_GPU_BATCH_SIZE if device.type == "cuda" else _BATCH_SIZE)):
            with autocast(device, precision):
                outputs = _fitting(function, batch.to(device))
            if not outputs.isfinite().all():  # numbers that are no JSON, and no answer
                raise WeightsError("the model's outputs are not finite", hint="its weights are damaged, or overflow")
            yield outputs
    finally:
        model.train(training)


def _fitting(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """`function` of a batch, float32, by halves if a GPU's memory takes no more."""
    try:
        return function(batch).float()
    except torch.OutOfMemoryError:
        if len(batch) <= _BATCH_SIZE:
            raise
    # Out here, since the exception held what the failed attempt had in memory.
    return torch.cat([_fitting(function, half) for half in batch.chunk(2)])
