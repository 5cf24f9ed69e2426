"""Batches in; logits, reconstructions or latents out. They are finite, or WeightsError is raised."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarctl.data.dataset import to_float
from cifarctl.distributed import ALONE, Ranks
from cifarctl.errors import WeightsError
from cifarctl.hardware import Precision, autocast
from cifarctl.models.base import Autoencoder, Classifier, Model
from cifarctl.progress import OnEvent, Progress, ignore
from cifarctl.typicality import summarize

# Images per batch. On a CPU enough to fill the matrix units, but few enough for the activations to stay in the caches;
# on a GPU so many that starting kernels, and waiting for each batch's check, takes next to no time.
_BATCH_SIZE, _GPU_BATCH_SIZE = 125, 2500
# Test-time augmentation leaves out images whose likeliest class has at least this probability.
_CONFIDENT = 0.95


@dataclass(frozen=True)
class Answers:
    """logits: float32 (N, classes). typicality: float32 (N,) in [0, 1], the fraction of validation images that are less
    like the training images; None if the model has no such score.
    """

    logits: Tensor
    typicality: Tensor | None


def answer(
    model: Classifier,
    images: Tensor,
    *,
    tta: bool = False,
    precision: Precision = "fp32",
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
    on_event: OnEvent = ignore,
) -> Answers:
    """`predict_logits` and the images' typicality, in one pass. With `tta` that is still of the images alone."""
    if (typicality := model.typicality) is None:
        logits = predict_logits(
            model, images, tta=tta, precision=precision, batch_size=batch_size, ranks=ranks, on_event=on_event
        )
        return Answers(logits, None)

    def one_batch(batch: Tensor) -> Tensor:
        logits, summary = summarize(model.stages(model.features(to_float(batch))))
        scores = typicality.scores(summary)
        return torch.cat((model.calibrated(_averaged(model, batch, logits) if tta else logits), scores[:, None]), 1)

    rows = _in_batches(model, one_batch, images, precision, batch_size, ranks, on_event, "Classifying")
    return Answers(rows[:, :-1], typicality.fractions(rows[:, -1]))


def predict_logits(
    model: Classifier,
    images: Tensor,
    *,
    tta: bool = False,
    precision: Precision = "fp32",
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
    calibrate: bool = True,
    on_event: OnEvent = ignore,
) -> Tensor:
    """Images uint8 (N, 3, 32, 32) -> logits, float32 (N, classes). Several `ranks` share the work.

    batch_size: images per batch; None is what suits the device.
    tta: if the likeliest class has less than 95 % of the probability, average the logits of six views
    (`views`). Leaving out the others is an idea of the later airbench94 records.
    calibrate: False gives the logits as the model was trained to give them.
    on_event: called with a Progress after each batch.
    """

    def one_batch(batch: Tensor) -> Tensor:
        logits = _uncalibrated(model, to_float(batch))
        if tta:
            logits = _averaged(model, batch, logits)
        return model.calibrated(logits) if calibrate else logits

    return _in_batches(model, one_batch, images, precision, batch_size, ranks, on_event, "Classifying")


def summaries(model: Classifier, images: Tensor, *, precision: Precision = "fp32") -> Tensor:
    """Images uint8 (N, 3, 32, 32) -> what `typicality` knows of each, float32 (N, D)."""
    return _in_batches(
        model, lambda batch: summarize(model.stages(model.features(to_float(batch))))[1], images, precision
    )


def compute_features(
    model: Classifier, images: Tensor, *, precision: Precision = "fp32", ranks: Ranks = ALONE
) -> Tensor:
    """Images uint8 (N, 3, 32, 32) -> the input of the model's own layers, float32 (N, …): the images, or the output of
    its encoder. Several `ranks` share the work.
    """
    return _in_batches(model, lambda batch: model.features(to_float(batch)), images, precision, ranks=ranks)


def classify_features(
    model: Classifier, features: Tensor, *, precision: Precision = "fp32", ranks: Ranks = ALONE
) -> Tensor:
    """What `compute_features` returns -> uncalibrated logits, float32 (N, classes). Several `ranks` share the work."""
    return _in_batches(model, model.classify, features, precision, ranks=ranks)


def views(images: Tensor, shift: int = 1) -> list[tuple[float, Tensor]]:
    """The six views of test-time augmentation, (weight, images): the image, and it shifted by one pixel up-left and
    down-right, each also mirrored. The unshifted pair weighs one half in all. Source: airbench94 (Jordan, 2024).

    They gain 1.0 point of validation accuracy; no other views were clearly better.
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


def accepted(label: str, typicality: float | None, reject: float | None) -> str | None:
    """The label; None if the image is less typical than `reject`."""
    return None if reject is not None and typicality is not None and typicality < reject else label


def reconstruct(
    model: Autoencoder,
    images: Tensor,
    *,
    precision: Precision = "fp32",
    ranks: Ranks = ALONE,
    on_event: OnEvent = ignore,
) -> Tensor:
    """Images uint8 (N, 3, 32, 32) -> their reconstructions, float32 in [0, 1]. Several `ranks` share the work.

    on_event: called with a Progress after each batch.
    """
    work = "Reconstructing"
    return _in_batches(model, lambda batch: model(to_float(batch)), images, precision, None, ranks, on_event, work)


def encode(model: Autoencoder, images: Tensor, *, precision: Precision = "fp32", on_event: OnEvent = ignore) -> Tensor:
    """Images uint8 (N, 3, 32, 32) -> latents, float32 (N, latent_dim). on_event: as for `reconstruct`."""

    def encoded(batch: Tensor) -> Tensor:
        return model.encode(to_float(batch))

    return _in_batches(model, encoded, images, precision, on_event=on_event, work="Encoding")


def decode(model: Autoencoder, latents: Tensor, *, precision: Precision = "fp32") -> Tensor:
    """Latents, float (N, latent_dim) -> images, float32 (N, 3, 32, 32) in [0, 1]."""
    return _in_batches(model, model.decode, latents, precision)


def _uncalibrated(model: Classifier, images: Tensor) -> Tensor:
    return model.classify(model.features(images)).float()


def _averaged(model: Classifier, batch: Tensor, logits: Tensor) -> Tensor:
    """The logits, those of unsure images averaged over six views. batch: the images, uint8."""
    unsure = model.calibrated(logits).softmax(1).amax(1) < _CONFIDENT
    if unsure.any():
        (weight, _), *others = views(batch[unsure])
        weights, crops = zip(*others, strict=True)
        logits[unsure] *= weight
        # Views together, since small batches are slow; in parts, so that memory does not grow.
        of_views = torch.cat([_uncalibrated(model, part) for part in torch.cat(crops).split(len(batch))])
        for weight, of_view in zip(weights, of_views.chunk(len(weights)), strict=True):
            logits[unsure] += weight * of_view
    return logits


def _in_batches(
    model: Model,
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    precision: Precision,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
    on_event: OnEvent = ignore,
    work: str = "",
) -> Tensor:
    def of_part(part: Tensor) -> Tensor:
        done, outputs = 0, []
        on_event(Progress(work, done, len(part)))
        for output in _batches(model, function, part, precision, batch_size):
            outputs.append(output)
            on_event(Progress(work, done := done + len(output), len(part)))
        return torch.cat(outputs)

    return ranks.mapped(inputs, of_part)


@torch.inference_mode()
def _batches(
    model: Model, function: Callable[[Tensor], Tensor], inputs: Tensor, precision: Precision, batch_size: int | None
) -> Iterator[Tensor]:
    training = model.training
    model.eval()
    device = next(model.parameters()).device

    def answer(batch: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, precision):  # both are of the thread that sets them
            outputs = _within_memory(function, batch.to(device))
            if not outputs.isfinite().all():  # no answer to give, and not even JSON
                raise WeightsError("the model's outputs are not finite", hint="its weights are damaged, or overflow")
            return outputs

    try:
        batches = inputs.split(batch_size or (_GPU_BATCH_SIZE if device.type == "cuda" else _BATCH_SIZE))
        yield from _map_in_threads(model, answer, batches) if device.type == "cpu" else map(answer, batches)
    finally:
        model.train(training)


def _map_in_threads(model: Model, function: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """`function`, which calls `model`, of each batch, in order. Each thread computes a batch of its own, on one core.

    Threads that share every layer wait for the slowest one at the end of each: on two cores that were half busy with
    other work, they gave 0.3 of the images per second of idle cores, and threads with batches of their own 0.5.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(batches) == 1:
        yield from map(function, batches)
        return
    stopped, worker = threading.Event(), threading.local()

    def begin() -> None:
        torch.set_num_threads(1)
        worker.is_ours = True

    def check(*_: object) -> None:
        if stopped.is_set() and hasattr(worker, "is_ours"):
            raise CancelledError

    # After Ctrl-C, the batches that are being computed end at their next layer: an autoencoder's can take seconds.
    hooks = [layer.register_forward_pre_hook(check) for layer in model.children()]
    try:
        with ThreadPoolExecutor(threads, initializer=begin) as pool:
            try:
                yield from pool.map(function, batches)
            finally:
                stopped.set()
    finally:
        for hook in hooks:
            hook.remove()
        torch.set_num_threads(threads)  # PyTorch gives new threads the number that was set last


def _within_memory(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """`function` of a batch, as float32; of its halves, if a GPU has too little memory for the whole."""
    try:
        return function(batch).float()
    except torch.OutOfMemoryError:
        if len(batch) <= _BATCH_SIZE:
            raise
    # Not inside `except`: the exception refers to what the failed call had in memory.
    return torch.cat([_within_memory(function, half) for half in batch.chunk(2)])
