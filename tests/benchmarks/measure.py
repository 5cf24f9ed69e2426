"""What several benchmarks measure with."""

import statistics
import time

import torch

from cifarctl.hardware import has_bf16


def matmul_tflops(size: int = 4096, runs: int = 7) -> float:
    """This machine's matrix product in the precision that training has here, in TFLOP/s, median of several: what
    seconds on different machines are compared by."""
    dtype = torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    _ = a @ b
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        _ = a @ b
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times) / 1e12
