"""What the training loop yields: what happened."""

from dataclasses import dataclass

from torch import Tensor

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
