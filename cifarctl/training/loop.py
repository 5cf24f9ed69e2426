"""The one training loop: epochs, validation, checkpoints, signals. It yields what happened and prints nothing."""

import hashlib
import time
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.distributed import ALONE, Ranks
from cifarctl.errors import RunDirError, UsageError
from cifarctl.hardware import Precision, autocast, memory_format
from cifarctl.models.base import Model
from cifarctl.training.checkpoint import Checkpoint, Record, TrainingState
from cifarctl.training.cuda_graph import CapturedStep
from cifarctl.training.failures import attempted, check_finite, finite_metrics
from cifarctl.training.objectives import Objective
from cifarctl.training.optim import build_optimizer, keep_rates_on, learning_rate_factor, set_learning_rate
from cifarctl.training.recipes import Recipe
from cifarctl.training.signals import deferred_signals, interrupted

# How many steps may pass before a loss that is no longer finite, or what another process asks for, is noticed: looking
# makes a GPU wait.
_LOOK_STEPS = 50
# After so many seconds without one, there is a checkpoint inside an epoch.
_CHECKPOINT_SECONDS = 60.0
# Between epochs there is one if the last is older than so many seconds, by type of device; elsewhere after every epoch.
# A GPU's epoch took 0.25 s, and writing files after it as long.
_EPOCH_CHECKPOINT_SECONDS = {"cuda": 5.0}
# And by so many times as long as writing that one took: the 400 MB of `train-clf --recipe max` take a second or two.
_CHECKPOINT_PAUSES = 20
# What processes ask of each other: to save now, or, as a signal's number, to save and stop.
_SAVE = 1


@dataclass(frozen=True)
class Encoding:
    """An autoencoder goes over all training images, once, before the first step."""

    images: int


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. loss: a scalar on the device; reading it waits for the device. epoch counts from 1."""

    epoch: int
    step: int
    steps: int
    batch_size: int
    loss: Tensor


@dataclass(frozen=True)
class EpochDone:
    """One epoch, validated.

    history: every epoch's record so far; the last is this one's. epochs: how many there will be. weights: what was
    validated, by tensor name. is_saved: whether the checkpoint is of this epoch's end.
    """

    history: list[Record]
    epochs: int
    weights: dict[str, Tensor]
    is_best: bool
    is_saved: bool


@dataclass(frozen=True)
class Fitted:
    """Training is over, and the model holds the weights of `best_epoch`, which counts from 1. last: the last epoch's
    weights, by tensor name.
    """

    history: list[Record]
    best_epoch: int
    last: dict[str, Tensor]


def fit(
    model: Model,
    objective: Objective,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    precision: Precision,
    checkpoint: Path | Checkpoint,
    ranks: Ranks = ALONE,
) -> Iterator[Encoding | StepDone | EpochDone | Fitted]:
    """Train `model` in place and leave the best epoch's weights (by `objective.metric` on `val`) in it. The last event
    is Fitted.

    The state is saved to `checkpoint` after every epoch (on a GPU, if the last time was five seconds ago), every minute
    inside one, and on SIGINT and SIGTERM; if that file exists, training goes on from it and ends with the same bits as
    without the break. Batches, augmentation and dropout depend on (seed, step, rank) alone. Each of several `ranks`
    takes its share of every batch, and the first one saves. Raises Interrupted after a signal, TrainingError where a
    step fails or the loss or a metric is not finite, RunDirError where the checkpoint is damaged or of another run,
    OSError where it cannot be written, ProcessLostError where another rank has ended.
    """
    device = train.images.device
    model = model.to(memory_format=memory_format(device))
    optimizer = build_optimizer(model, recipe)
    state = TrainingState(loss_sum=torch.zeros((), device=device))
    saves = Checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    if ranks.from_main(saves.exists()):
        if not saves.exists():
            raise RunDirError(f"{saves.path}: only the first process sees it", hint="machines share the folder")
        state = saves.load(model, optimizer, device)
    elif recipe.ema:
        state.ema = _copy(model)

    if objective.encodes_first:
        yield Encoding(len(train))
    torch.manual_seed(_stream(seed, "inputs", 0))
    started = time.perf_counter()
    inputs = objective.inputs(train.images)
    state.seconds += time.perf_counter() - started
    if recipe.batch_size % ranks.size or len(train) < ranks.size:  # equal shares: the mean of their means is the mean
        raise UsageError(f"--batch-size {recipe.batch_size}: {ranks.size} processes cannot share it equally")
    batch_size = min(recipe.batch_size, len(train) // ranks.size * ranks.size)
    steps_an_epoch = len(train) // batch_size  # what is left over is drawn in another epoch
    steps = steps_an_epoch * recipe.epochs
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if state.scaler:
        scaler.load_state_dict(state.scaler)
    saved, writing = time.perf_counter(), 0.0

    def gradients(indices: Tensor, epoch: int | Tensor, count: int) -> Tensor:
        """Make the gradients of the mean loss of the first `count` images, and return that loss."""
        indices = indices[:count]
        with autocast(device, precision):
            x, targets = objective.augment(inputs[indices], train.labels[indices], indices, epoch, state.step / steps)
            loss = objective.loss(x, targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        return loss.detach()

    def step(indices: Tensor, epoch: Tensor) -> Tensor:
        loss = gradients(indices, epoch, len(indices))
        optimizer.step()
        return loss

    # What other processes, or a scaler, do between gradients and step takes Python.
    capturable = device.type == "cuda" and ranks.size == 1 and not scaler.is_enabled()
    captured = CapturedStep(step) if capturable else None
    if captured:
        keep_rates_on(device, optimizer)
    turns = recipe.turns

    def attempt(indices: Tensor, epoch: int, count: int) -> Tensor:
        if captured:
            model.variant = model.draw_variant()
        if captured and count == len(indices):
            return captured(indices, epoch, bisect(turns, state.step / steps), model.variant)
        return gradients(indices, epoch, count)

    def agree() -> None:
        """Each rank has seen other images: their losses and their norms' statistics differ."""
        names = {name for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        states = (model.state_dict(), state.ema)
        ranks.average([state.loss_sum, *(each[name] for each in states for name in sorted(names & each.keys()))])

    def save() -> None:
        nonlocal saved, writing
        started = time.perf_counter()
        state.scaler = scaler.state_dict()  # reading it waits for a GPU, so not at every step
        if ranks.is_main:
            saves.save(state, model, optimizer)
        saved = time.perf_counter()
        writing = saved - started

    def request() -> int:
        if received:
            return received[0]
        return _SAVE if ranks.is_main and time.perf_counter() - saved > _CHECKPOINT_SECONDS else 0

    def validated(epoch: int, **measured: float) -> EpochDone:
        with _weights(model, state.ema):
            metrics = finite_metrics(partial(objective.validate, val, precision, ranks), state.step, steps)
            value = metrics[objective.metric]
            # `>=`: of equally good epochs the later one, which has seen more.
            if is_best := value >= state.best_metric:
                state.best_metric, state.best_epoch, state.best = value, epoch, _copy(model)
            weights = state.best if is_best else _copy(model)
        on_val = {f"val_{name}": metric for name, metric in metrics.items()}
        position = {"epoch": epoch, "step": state.step, "seconds": round(state.seconds, 3)}
        state.history.append({**position, **measured, **on_val})
        state.loss_sum.zero_()
        pause = _EPOCH_CHECKPOINT_SECONDS.get(device.type, 0.0)
        if is_due := time.perf_counter() - saved >= (pause and max(pause, _CHECKPOINT_PAUSES * writing)):
            save()
        return EpochDone(list(state.history), recipe.epochs, weights, is_best, is_saved=is_due)

    with deferred_signals() as received:
        if model.useful_untrained and not state.history:
            yield validated(0)
        while state.step < steps:
            epoch = state.step // steps_an_epoch
            generator = torch.Generator().manual_seed(_stream(seed, "epoch", epoch))
            order = torch.randperm(len(train), generator=generator).to(device)
            first = state.step % steps_an_epoch
            started, seconds_before = time.perf_counter(), state.seconds
            model.train()
            for at in range(first, steps_an_epoch):
                torch.manual_seed(_stream(seed, f"step {ranks.rank}" if ranks.rank else "step", state.step))
                indices = ranks.share(order[at * batch_size : (at + 1) * batch_size])
                set_learning_rate(optimizer, learning_rate_factor(recipe, state.step / steps))
                for name, until in recipe.trained_until.items():
                    model.get_parameter(name).requires_grad_(state.step / steps < until)
                loss = attempted(partial(attempt, indices, epoch), len(indices), ranks.size, state.step, steps)
                requested = ranks.average([p.grad for p in model.parameters() if p.grad is not None], request())
                if not captured:
                    scaler.step(optimizer)
                    scaler.update()
                state.step += 1
                state.loss_sum += loss
                if recipe.ema:
                    # Few steps after the start, the average is of few, or it would keep the untrained weights.
                    _average(state.ema, model, min(recipe.ema, (1 + state.step) / (10 + state.step)))
                last = at == steps_an_epoch - 1
                looks = last or at % _LOOK_STEPS == 0
                if looks:
                    check_finite(state.loss_sum.item(), state.step, steps)
                state.seconds = seconds_before + time.perf_counter() - started
                yield StepDone(epoch + 1, state.step, steps, batch_size, loss)
                if not last and (looks or device.type == "cpu" or ranks.size == 1) and requested:
                    agree()
                    check_finite(state.loss_sum.item(), state.step, steps)  # what is saved must be worth resuming
                    save()
                    if requested != _SAVE:
                        raise interrupted(int(requested), state.step, steps, saves.path)

            agree()
            images_per_second = (steps_an_epoch - first) * batch_size / (state.seconds - seconds_before)
            done = validated(
                epoch + 1,
                train_loss=state.loss_sum.item() / steps_an_epoch,
                learning_rate=recipe.lr * learning_rate_factor(recipe, state.step / steps),
                images_per_second=round(images_per_second, 1),
            )
            yield done
            if (requested := int(ranks.average([state.loss_sum], request()))) > _SAVE:
                if not done.is_saved:
                    save()
                raise interrupted(requested, state.step, steps, saves.path)
    final = state.ema or _copy(model)
    model.load_state_dict(state.best)
    yield Fitted(state.history, state.best_epoch, final)


def _stream(seed: int, what: str, position: int) -> int:
    """A seed for one place in a run, unrelated to those of all others."""
    digest = hashlib.blake2b(f"{seed} {what} {position}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def _copy(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def _average(ema: dict[str, Tensor], model: Model, decay: float) -> None:
    tensors = model.state_dict()
    averaged = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([ema[name] for name in averaged], [tensors[name] for name in averaged], 1 - decay)
    for name in tensors.keys() - set(averaged):
        ema[name].copy_(tensors[name])


@contextmanager
def _weights(model: Model, replacement: dict[str, Tensor]) -> Iterator[None]:
    """Inside, `model` has the `replacement`'s weights, if there are any."""
    if not replacement:
        yield
        return
    own = _copy(model)
    model.load_state_dict(replacement)
    try:
        yield
    finally:
        model.load_state_dict(own)
