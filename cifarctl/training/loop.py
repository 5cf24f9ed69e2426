"""The one training loop: epochs, validation, checkpoints, signals. It yields what happened and prints nothing."""

import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.errors import Interrupted, TrainingError
from cifarctl.hardware import Precision, autocast
from cifarctl.models.base import Model
from cifarctl.training.checkpoint import Record, TrainingState, load_checkpoint, save_checkpoint
from cifarctl.training.objectives import Objective
from cifarctl.training.optim import build_optimizer, learning_rate_factor, set_learning_rate
from cifarctl.training.recipes import Recipe

# How many steps may pass before a loss that is no longer finite is noticed: looking at it makes a GPU wait.
_FINITE_CHECK_STEPS = 50


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
    """One epoch, validated and checkpointed.

    history: every epoch's record so far; the last is this one's. epochs: how many
    there will be. weights: what was validated, by tensor name.
    """

    history: list[Record]
    epochs: int
    weights: dict[str, Tensor]
    is_best: bool


@dataclass(frozen=True)
class Fitted:
    """Training is over, and the model holds the weights of `best_epoch`, which counts from 1."""

    history: list[Record]
    best_epoch: int


def fit(
    model: Model,
    objective: Objective,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    precision: Precision,
    checkpoint: Path,
) -> Iterator[StepDone | EpochDone | Fitted]:
    """Train `model` in place and leave the best epoch's weights (by `objective.metric` on `val`) in it. The last event
    is Fitted.

    The state is saved to `checkpoint` after every epoch and on SIGINT and SIGTERM; where that file exists, training
    goes on from it and ends with the same bits as without the break. Batches, augmentation and dropout depend on (seed,
    step) alone. Raises Interrupted after a signal, TrainingError on a loss that is not finite, OSError where the
    checkpoint cannot be written.
    """
    device = train.images.device
    model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe)
    state = TrainingState(loss_sum=torch.zeros((), device=device))
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, model, optimizer, device)
    elif recipe.ema:
        state.ema = _copy(model)

    torch.manual_seed(_stream(seed, "inputs", 0))
    inputs = objective.inputs(train.images)
    batch_size = min(recipe.batch_size, len(train))
    steps_an_epoch = len(train) // batch_size  # what is left over is drawn in another epoch
    steps = steps_an_epoch * recipe.epochs
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if state.scaler:
        scaler.load_state_dict(state.scaler)

    def save() -> None:
        state.scaler = scaler.state_dict()  # reading it waits for a GPU, so not at every step
        save_checkpoint(checkpoint, state, model, optimizer)

    def validated(epoch: int, **measured: float) -> EpochDone:
        with _weights(model, state.ema):
            metrics = objective.validate(val, precision)
            value = metrics[objective.metric]
            # `>=`: of equally good epochs the later one, which has seen more.
            if is_best := value >= state.best_metric:
                state.best_metric, state.best_epoch, state.best = value, epoch, _copy(model)
            weights = state.best if is_best else _copy(model)
        on_val = {f"val_{name}": metric for name, metric in metrics.items()}
        position = {"epoch": epoch, "step": state.step, "seconds": round(state.seconds, 3)}
        state.history.append({**position, **measured, **on_val})
        state.loss_sum.zero_()
        save()
        return EpochDone(list(state.history), recipe.epochs, weights, is_best)

    with _deferred_signals() as received:
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
                torch.manual_seed(_stream(seed, "step", state.step))
                indices = order[at * batch_size : (at + 1) * batch_size]
                set_learning_rate(optimizer, learning_rate_factor(recipe, state.step / steps))
                with autocast(device, precision):
                    x = objective.augment(inputs[indices], indices, epoch, state.step / steps)
                    loss = objective.loss(x, train.labels[indices])
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                state.step += 1
                state.loss_sum += loss.detach()
                if recipe.ema:
                    _average(state.ema, model, recipe.ema)
                if at % _FINITE_CHECK_STEPS == 0 or at == steps_an_epoch - 1:
                    _check_finite(state, steps)
                state.seconds = seconds_before + time.perf_counter() - started
                yield StepDone(epoch + 1, state.step, steps, batch_size, loss.detach())
                if received and state.step % steps_an_epoch:
                    save()
                    raise _interrupted(received[0], state.step, steps, checkpoint)

            images_per_second = (steps_an_epoch - first) * batch_size / (state.seconds - seconds_before)
            yield validated(
                epoch + 1,
                train_loss=state.loss_sum.item() / steps_an_epoch,
                learning_rate=recipe.lr * learning_rate_factor(recipe, state.step / steps),
                images_per_second=round(images_per_second, 1),
            )
            if received:
                raise _interrupted(received[0], state.step, steps, checkpoint)
    model.load_state_dict(state.best)
    yield Fitted(state.history, state.best_epoch)


def _stream(seed: int, what: str, position: int) -> int:
    """A seed for one place in a run, unrelated to those of all others."""
    digest = hashlib.blake2b(f"{seed} {what} {position}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def _check_finite(state: TrainingState, steps: int) -> None:
    if not math.isfinite(state.loss_sum.item()):
        raise TrainingError(
            f"the loss is no longer finite at step {state.step} of {steps}",
            hint="a lower --lr, or --precision fp32; the best epoch so far is in the run's model.safetensors",
        )


def _interrupted(number: int, step: int, steps: int, checkpoint: Path) -> Interrupted:
    name = signal.Signals(number).name
    return Interrupted(number, f"{name} after step {step} of {steps}; the state is saved in {checkpoint}")


def _copy(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def _average(ema: dict[str, Tensor], model: Model, decay: float) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            ema[name].lerp_(tensor, 1 - decay)
        else:
            ema[name].copy_(tensor)


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


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM are noted in the list instead of ending the process; a second SIGINT ends it at
    once.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
