"""Failures in the middle of a training run, as errors that say what to do."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cifarctl.errors import TrainingError, UsageError, WeightsError
from cifarctl.hardware import is_out_of_memory, release_memory

# What torch raises if a GPU or its driver fails. Older versions raise RuntimeError.
_DeviceError: type[Exception] = getattr(torch, "AcceleratorError", RuntimeError)


def compute_with_diagnosis(
    compute: Callable[[int], Tensor], count: int, processes: int, step: int, steps: int
) -> Tensor:
    """`compute(count)`: the gradients of a step's `count` images, and their loss. step: how many are done.

    processes: how many share a batch. Raises TrainingError if the GPU fails or memory runs out; in the second case,
    smaller batches are tried, to say which one fits.
    """
    where = f"step {step + 1} of {steps}"
    try:
        return compute(count)
    except Exception as error:
        if isinstance(error, _DeviceError) and "CUDA error" in str(error):
            raise TrainingError(f"the GPU failed at {where}: {str(error).splitlines()[0]}") from None
        if not is_out_of_memory(error):
            raise
    # Not inside `except`: the exception refers to what the failed call had in memory.
    fits = _find_count_that_fits(compute, count // 2)
    raise TrainingError(
        f"out of memory at {where}, with {count * processes} images",
        hint=f"`batch_size` {fits * processes} fits; start the run anew with it and `overwrite`"
        if fits
        else "a smaller model, or a machine with more memory",
    )


def check_shares(batch_size: int, images: int, processes: int) -> None:
    """Raise UsageError if processes cannot take equal shares of a batch: the mean of their means would not be its."""
    if batch_size % processes or images < processes:
        raise UsageError(f"`batch_size` {batch_size}: {processes} processes cannot share it equally")


def check_finite(value: float, step: int, steps: int, name: str = "loss") -> None:
    """Raise TrainingError unless `value`, which is called `name`, is a finite number."""
    if not math.isfinite(value):
        raise TrainingError(
            f"the {name} is no longer finite at step {step} of {steps}",
            hint="a lower `lr`, or `precision` fp32; if an epoch was saved before, the best one is in the run's "
            "model.safetensors",
        )


def finite_metrics(measure: Callable[[], dict[str, float]], step: int, steps: int) -> dict[str, float]:
    """`measure()`: metrics by name, after `step`. Raises TrainingError if one is not finite."""
    try:
        metrics = measure()
    except WeightsError:  # the model's outputs are not finite: not a damaged file, since the run has just made it
        metrics = {"loss": math.nan}
    for name, value in metrics.items():
        check_finite(value, step, steps, f"validation {name}")
    return metrics


def _find_count_that_fits(compute: Callable[[int], Tensor], count: int) -> int:
    """The largest of `count`, its half, a quarter, … images that memory suffices for; 0 if it does not suffice for two,
    the fewest that a batch norm can use. On a CPU, memory that failed calls still hold may make the answer too small.

    The smallest comes first, and the first failure ends the search: repeated allocation failures can break oneDNN, or
    end the process.
    """
    fits = 0
    for halvings in reversed(range(count.bit_length() - 1)):
        release_memory()
        try:
            compute(count >> halvings)
        except Exception:
            break
        fits = count >> halvings
    return fits
