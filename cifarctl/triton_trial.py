"""The smallest kernel: whether it can be built and run tells whether others can (`hardware.runs_kernels`)."""

import torch
import triton
import triton.language as tl


def run(device: torch.device) -> None:
    """Raises what Triton raises where a GPU is too old for it, or where the compiler that it calls fails."""
    _set_one[(1,)](torch.empty(1, device=device))


@triton.jit
def _set_one(x):  # type: ignore[no-untyped-def]
    tl.store(x, 1.0)
