"""What happens in a training run: what the loop yields, and what a session adds before and after."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cifarctl.data import Split
from cifarctl.training.checkpoint import Record


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
    validated, by tensor name. best: those of the best epoch so far, `best_epoch`. is_saved: whether the checkpoint is
    of this epoch's end.
    """

    history: list[Record]
    epochs: int
    weights: dict[str, Tensor] = field(repr=False)
    best: dict[str, Tensor] = field(repr=False)
    best_epoch: int
    is_best: bool
    is_saved: bool


@dataclass(frozen=True)
class Fitted:
    """Training is over, and the model holds the weights of `best_epoch`, which counts from 1. last: the last epoch's
    weights, by tensor name.
    """

    history: list[Record]
    best_epoch: int
    last: dict[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Started:
    """A run is set up. parameters: how many numbers training changes. train, val: sizes. remarks: what the user should
    know of the data, in words.
    """

    run: Path
    model: str
    parameters: int
    device: str
    precision: str
    train: int
    val: int
    resumed: bool
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measuring:
    """Training is over; the test split is being measured, or val if there is none."""

    split: Split = "test"


@dataclass(frozen=True)
class Finished:
    """A run is complete. summary: what `summary.json` holds. remarks: what the user should know, in words."""

    run: Path
    summary: dict[str, Any]
    remarks: tuple[str, ...] = ()


Event = Started | Encoding | StepDone | EpochDone | Measuring | Finished
