"""The one training loop: epochs, validation, checkpoints, signals. It yields what happened and prints nothing."""

import hashlib
import math
import time
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.distributed import ALONE, Ranks
from cifarctl.errors import RunDirError
from cifarctl.hardware import Precision, autocast, memory_format
from cifarctl.models.base import Model
from cifarctl.training.checkpoint import Checkpoint, TrainingState
from cifarctl.training.cuda_graph import CapturedStep
from cifarctl.training.events import Encoding, EpochDone, Fitted, StepDone
from cifarctl.training.failures import check_finite, check_shares, compute_with_diagnosis, finite_metrics
from cifarctl.training.model_weights import copy_weights, set_training_mode, update_average, weights_replaced
from cifarctl.training.objectives import Objective
from cifarctl.training.optim import build_optimizer, keep_rates_on, learning_rate_factor, set_learning_rate
from cifarctl.training.recipes import Recipe
from cifarctl.training.signals import Request, deferred_signals, interrupted

__all__ = ["Encoding", "EpochDone", "Fitted", "StepDone", "Trainer", "fit"]

# After how many steps the loss, and on a GPU the other processes' requests, are read: reading makes a GPU wait.
_CHECK_STEPS = 50
# Inside an epoch, a checkpoint is written if the last one is older than this.
_CHECKPOINT_SECONDS = 60.0
# After an epoch, one is written if the last one is older than this, by type of device; 0 elsewhere. A GPU's epoch took
# 0.25 s, and writing the files after it as long.
_EPOCH_CHECKPOINT_SECONDS = {"cuda": 5.0}
# There, the pause is also at least 20 times as long as the last write took: 1 to 2 s for the 400 MB of `max`.
_CHECKPOINT_PAUSES = 20


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

    The state is saved to `checkpoint` after every epoch (on a GPU, if the last checkpoint is at least five seconds
    old), every minute inside an epoch, and on SIGINT and SIGTERM. If that file exists, training continues from it, and
    one process ends with the same bits as without the break. Batches, augmentation and dropout depend only on (seed,
    step, rank). Each of several `ranks` takes its share of every batch, and the first one saves. Raises Interrupted
    after a signal, TrainingError if a step fails or the loss or a metric is not finite, RunDirError if the checkpoint
    is damaged or of another run, OSError if it cannot be written, ProcessLostError if another rank has ended,
    UsageError if the ranks cannot share a batch equally.
    """
    saves = Checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    trainer = Trainer(model, objective, train, val, recipe, seed, precision, saves, ranks)
    if objective.encodes_first:
        yield Encoding(len(train))
    trainer.prepare_inputs()
    yield from trainer.run()


@dataclass(eq=False)
class Trainer:
    """One run of `fit`, whose arguments these are.

    run -> _train_epoch, for each epoch -> _step, for each batch -> _compute_gradients, _apply_gradients

    On one GPU the last two are recorded as a CUDA graph and replayed, unless precision is fp16: `Objective` says what
    that demands.
    """

    model: Model
    objective: Objective
    train: Dataset
    val: Dataset
    recipe: Recipe
    seed: int
    precision: Precision
    checkpoint: Checkpoint
    ranks: Ranks

    def __post_init__(self) -> None:
        batch_size, images, processes = self.recipe.batch_size, len(self.train), self.ranks.size
        check_shares(batch_size, images, processes)
        self.batch_size = min(batch_size, images // processes * processes)
        self.steps_per_pass = images // self.batch_size  # the rest is drawn in another pass
        self.steps_per_epoch = self.steps_per_pass * math.ceil(self.recipe.epoch_steps / self.steps_per_pass)
        self.steps = self.steps_per_epoch * self.recipe.epochs

        self.device = self.train.images.device
        self.model = self.model.to(memory_format=memory_format(self.device))
        self.optimizer = build_optimizer(self.model, self.recipe)
        self.state = self._first_state()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)
        # What other processes, or a scaler, do between gradients and their use takes Python, which no graph records.
        capturable = self.device.type == "cuda" and self.ranks.size == 1 and not self.scaler.is_enabled()
        self.captured = CapturedStep(self._capturable_step) if capturable else None
        if self.captured:
            keep_rates_on(self.device, self.optimizer)
        self.phase_boundaries = self.recipe.phase_boundaries
        self.received: list[Request] = []

    def _first_state(self) -> TrainingState:
        """Where training starts: at the checkpoint, or at step 0."""
        if self.ranks.from_main(self.checkpoint.exists()):
            if not self.checkpoint.exists():
                raise RunDirError(
                    f"{self.checkpoint.path}: only the first process sees it", hint="machines share the run's folder"
                )
            return self.checkpoint.load(self.model, self.optimizer, self.device)
        state = TrainingState(loss_sum=torch.zeros((), device=self.device))
        if self.recipe.ema:
            state.ema = copy_weights(self.model)
        return state

    @property
    def progress(self) -> float:
        """The fraction of all steps that is done."""
        return self.state.step / self.steps

    def prepare_inputs(self) -> None:
        """Make what batches are drawn from; its time counts as the run's."""
        torch.manual_seed(_seed_for(self.seed, "inputs", 0))
        started = time.perf_counter()
        self.inputs = self.objective.inputs(self.train.images)
        self.state.seconds += time.perf_counter() - started
        self.saved_at, self.saving_seconds = time.perf_counter(), 0.0

    def run(self) -> Iterator[StepDone | EpochDone | Fitted]:
        """Train all epochs that are left."""
        try:
            with deferred_signals() as self.received:
                if self.model.useful_untrained and not self.state.history:
                    yield self._validate(0)
                while self.state.step < self.steps:
                    yield from self._train_epoch()
        finally:
            self.captured = None  # it refers to this trainer: such a cycle keeps a GPU's memory until Python looks
        last = self.state.ema or copy_weights(self.model)
        self.model.load_state_dict(self.state.best)
        yield Fitted(self.state.history, self.state.best_epoch, last)

    def _train_epoch(self) -> Iterator[StepDone | EpochDone]:
        """Take the steps that are left of an epoch, and validate it."""
        state = self.state
        epoch, first = divmod(state.step, self.steps_per_epoch)
        started, seconds_before = time.perf_counter(), state.seconds
        set_training_mode(self.model, self.recipe)
        for at in range(first, self.steps_per_epoch):
            passes, at_step = divmod(state.step, self.steps_per_pass)
            if at == first or at_step == 0:
                order = self._draw_order(passes)
            loss, requested = self._step(order[at_step * self.batch_size : (at_step + 1) * self.batch_size], passes)
            is_last = at == self.steps_per_epoch - 1
            is_checked = is_last or at % _CHECK_STEPS == 0
            if is_checked:
                self._check_finite()
            state.seconds = seconds_before + time.perf_counter() - started
            yield StepDone(epoch + 1, state.step, self.steps, self.batch_size, loss)
            # After the last step, the epoch is validated first.
            may_read = is_checked or self.device.type == "cpu" or self.ranks.size == 1
            if not is_last and may_read and requested:
                self._sync_buffers()
                self._check_finite()  # what is saved must be worth resuming
                self._save()
                self._stop_if(Request(int(requested)))

        self._sync_buffers()
        images_per_second = (self.steps_per_epoch - first) * self.batch_size / (state.seconds - seconds_before)
        done = self._validate(
            epoch + 1,
            train_loss=state.loss_sum.item() / self.steps_per_epoch,
            learning_rate=self.recipe.lr * learning_rate_factor(self.recipe, self.progress),
            images_per_second=round(images_per_second, 1),
        )
        yield done
        request = Request(int(self.ranks.average([state.loss_sum], self._request())))
        if request.stops and not done.is_saved:
            self._save()
        self._stop_if(request)

    def _draw_order(self, passes: int) -> Tensor:
        """The order of the images, int64 (N,), in the pass after so many."""
        generator = torch.Generator().manual_seed(_seed_for(self.seed, "epoch", passes))
        return torch.randperm(len(self.train), generator=generator).to(self.device)

    def _step(self, batch: Tensor, epoch: int) -> tuple[Tensor, Tensor | int]:
        """One optimizer step on the images at the indices `batch`, (B,) -> its loss, (), and what is requested."""
        ranks, state = self.ranks, self.state
        torch.manual_seed(_seed_for(self.seed, f"step {ranks.rank}" if ranks.rank else "step", state.step))
        indices = ranks.share(batch)
        set_learning_rate(self.optimizer, learning_rate_factor(self.recipe, self.progress))
        for name, until in self.recipe.trained_until.items():
            self.model.get_parameter(name).requires_grad_(self.progress < until)
        compute = partial(self._compute_or_replay, indices, epoch)
        loss = compute_with_diagnosis(compute, len(indices), ranks.size, state.step, self.steps)
        requested = ranks.average([p.grad for p in self.model.parameters() if p.grad is not None], self._request())
        if not self.captured:
            self._apply_gradients()
        state.step += 1
        state.loss_sum += loss
        if self.recipe.ema:
            # After few steps, the average is of few: it would keep the untrained weights otherwise.
            update_average(state.ema, self.model, min(self.recipe.ema, (1 + state.step) / (10 + state.step)))
        return loss, requested

    def _compute_or_replay(self, indices: Tensor, epoch: int, count: int) -> Tensor:
        """Compute the gradients of the first `count` images, and return their loss, (). If there is a CUDA graph and
        these are all images, it applies the gradients as well.
        """
        if self.captured:
            self.model.variant = self.model.draw_variant()
        if self.captured and count == len(indices):
            return self.captured(indices, epoch, bisect(self.phase_boundaries, self.progress), self.model.variant)
        return self._compute_gradients(indices, epoch, count)

    def _capturable_step(self, indices: Tensor, epoch: Tensor) -> Tensor:
        loss = self._compute_gradients(indices, epoch, len(indices))
        self._apply_gradients()
        return loss

    def _compute_gradients(self, indices: Tensor, epoch: int | Tensor, count: int) -> Tensor:
        """Compute the gradients of the mean loss of the first `count` images, and return that loss, ().

        Gradient accumulation belongs here: one forward and backward pass for each part of `indices`.
        """
        indices = indices[:count]
        with autocast(self.device, self.precision):
            x, targets = self.objective.augment(
                self.inputs[indices], self.train.labels[indices], indices, epoch, self.progress
            )
            loss = self.objective.loss(x, targets)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _apply_gradients(self) -> None:
        """Move the weights by their gradients, which are already averaged over all processes.

        Gradient clipping belongs here, before all else: after `self.scaler.unscale_(self.optimizer)`, and without
        waiting for the GPU.
        """
        self.scaler.step(self.optimizer)  # `optimizer.step()` and nothing else, unless precision is fp16
        self.scaler.update()

    def _validate(self, epoch: int, **measured: float) -> EpochDone:
        """Measure the model after `epoch` epochs, and add that to the history. Keep the best; save if it is time."""
        state = self.state
        with weights_replaced(self.model, state.ema):
            validate = partial(self.objective.validate, self.val, self.precision, self.ranks)
            metrics = finite_metrics(validate, state.step, self.steps)
            value = metrics[self.objective.metric]
            # `>=`: of equally good epochs the later one, which has seen more.
            if is_best := value >= state.best_metric or self.recipe.keep == "last":
                state.best_metric, state.best_epoch, state.best = value, epoch, copy_weights(self.model)
            weights = state.best if is_best else copy_weights(self.model)
        on_val = {f"val_{name}": metric for name, metric in metrics.items()}
        position = {"epoch": epoch, "step": state.step, "seconds": round(state.seconds, 3)}
        state.history.append({**position, **measured, **on_val})
        state.loss_sum.zero_()
        pause = _EPOCH_CHECKPOINT_SECONDS.get(self.device.type)
        pause = max(pause, _CHECKPOINT_PAUSES * self.saving_seconds) if pause else 0.0
        if is_due := time.perf_counter() - self.saved_at >= pause:
            self._save()
        history, epochs = list(state.history), self.recipe.epochs
        return EpochDone(history, epochs, weights, state.best, state.best_epoch, is_best, is_saved=is_due)

    def _request(self) -> Request:
        """What this process asks of all of them."""
        if self.received:
            return self.received[0]
        is_due = self.ranks.is_main and time.perf_counter() - self.saved_at > _CHECKPOINT_SECONDS
        return Request.SAVE if is_due else Request.NONE

    def _stop_if(self, request: Request) -> None:
        """Raise Interrupted if that is requested; the state has been saved."""
        if request.stops:
            raise interrupted(request, self.state.step, self.steps, self.checkpoint.path)

    def _sync_buffers(self) -> None:
        """Average the losses and the norms' statistics over all processes, since each has seen other images."""
        names = {name for name, buffer in self.model.named_buffers() if buffer.is_floating_point()}
        states = (self.model.state_dict(), self.state.ema)
        of_buffers = (weights[name] for weights in states for name in sorted(names & weights.keys()))
        self.ranks.average([self.state.loss_sum, *of_buffers])

    def _check_finite(self) -> None:
        check_finite(self.state.loss_sum.item(), self.state.step, self.steps)

    def _save(self) -> None:
        """Write the checkpoint, if this is the main process."""
        started = time.perf_counter()
        self.state.scaler = self.scaler.state_dict()  # reading it waits for a GPU, so not at every step
        if self.ranks.is_main:
            self.checkpoint.save(self.state, self.model, self.optimizer)
        self.saved_at = time.perf_counter()
        self.saving_seconds = self.saved_at - started


def _seed_for(seed: int, purpose: str, position: int) -> int:
    """The generator's seed for one place in a run, unrelated to those of all others."""
    digest = hashlib.blake2b(f"{seed} {purpose} {position}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
