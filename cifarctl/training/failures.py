"""What can stop a training run in the middle, as errors that say what to do about it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cifarctl.errors import TrainingError, WeightsError
from cifarctl.hardware import is_out_of_memory, release_memory

# A GPU that has fallen off the bus, or whose driver has. Older versions of torch raise RuntimeError.
_DeviceError: type[Exception] = getattr(torch, "AcceleratorError", RuntimeError)


def attempted(attempt: Callable[[int], Tensor], count: int, processes: int, step: int, steps: int) -> Tensor:
    """`attempt(count)`: the gradients of `count` images for a step, and their loss.

    Raises TrainingError where the GPU fails, or where memory does not suffice; then fewer images are tried, to tell how
    many fit. `processes` share a batch.
    """
    where = f"step {step + 1} of {steps}"
    try:
        return attempt(count)
    except Exception as error:
        if isinstance(error, _DeviceError) and "CUDA error" in str(error):
            raise TrainingError(f"the GPU failed at {where}: {str(error).splitlines()[0]}") from None
        if not is_out_of_memory(error):
            raise
    # Out here, since the exception held what the failed attempt had in memory.
    fitting = _fitting(attempt, count // 2)
    raise TrainingError(
        f"out of memory at {where}, with {count * processes} images",
        hint=f"--batch-size {fitting * processes} fits; start the run anew with it and --overwrite"
        if fitting
        else "a smaller model, or a machine with more memory",
    )


def check_finite(value: float, step: int, steps: int, name: str = "loss") -> None:
    """Raise TrainingError unless `value`, which is called `name`, is a number."""
    if not math.isfinite(value):
        raise TrainingError(
            f"the {name} is no longer finite at step {step} of {steps}",
            hint="a lower --lr, or --precision fp32; if an epoch was saved before, the best one is in the run's "
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


def _fitting(attempt: Callable[[int], Tensor], count: int) -> int:
    """The largest of `count`, its half, a quarter, … that a trial has memory for; 0 where two images, the fewest that a
    batch norm can do with, are too much. What failed attempts left behind may make a CPU's answer smaller than need be.

    The smallest comes first: a CPU's libraries end the process or fail for good (oneDNN: "could not create a
    primitive") when memory is short again and again, so that only the last trial may fail, whatever its error.
    """
    fitting = 0
    for halvings in reversed(range(count.bit_length() - 1)):
        release_memory()
        try:
            attempt(count >> halvings)
        except Exception:
            break
        fitting = count >> halvings
    return fitting
