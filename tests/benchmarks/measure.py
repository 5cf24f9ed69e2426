"""What several benchmarks measure with."""

import statistics
import time

import torch


def matmul_tflops(size: int = 4096, runs: int = 7) -> float:
    """This machine's bf16 matrix product, in TFLOP/s, median of several: what seconds on different machines are
    compared by."""
    a, b = (torch.randn(size, size).bfloat16() for _ in range(2))
    _ = a @ b
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        _ = a @ b
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times) / 1e12
