"""Choose the device and the precision, and adapt PyTorch to them. Importing this imports no torch, since the command
line reads the names.
"""

import contextlib
import ctypes
import functools
import gc
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cifarctl.caches import give_triton_a_folder
from cifarctl.errors import UsageError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def select_device(name: Device = "auto") -> "torch.device":
    """The named device; for "auto", a CUDA GPU or the CPU. Raises UsageError if the named one is missing.

    "auto" is never mps: nobody has checked what cifarctl computes on a Mac's GPU, and PyTorch's gradients and matrix
    products have been wrong there without an error (its issues 175189, 193487 and 195163).

    As a side effect, this thread and those that it starts round numbers below 1e-38 to zero. GELU produces many of
    them, and on a CPU such numbers are slow: they halved the speed of the last epochs of `train-ae`.
    """
    import numpy as np
    import torch

    for dtype in (np.float32, np.float64):  # cached, since NumPy before 2.4 would warn on stderr after the next line
        np.finfo(dtype)
    torch.set_flush_denormal(True)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if name not in available:
        raise UsageError(f"`device` is {name!r}, not one of: {', '.join(get_args(Device))}")
    if not available[name]:
        raise UsageError(f"`device` {name}: there is none on this machine", hint="`device` auto takes what there is")
    return torch.device(name)


def use_threads(count: int | None) -> None:
    """Compute with `count` threads on the CPU; None is PyTorch's choice, one per core."""
    if count is None:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def select_precision(name: Precision, device: "torch.device") -> Literal["fp32", "bf16", "fp16"]:
    """The named precision; for "auto", the fastest that the hardware supports. Raises UsageError on fp16 on a CPU."""
    if name == "fp16" and device.type == "cpu":
        raise UsageError("`precision` fp16: a CPU has no fast 16-bit float", hint="`precision` bf16 or auto")
    if name != "auto":
        return name
    if has_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def has_bf16(device: "torch.device") -> bool:
    """Whether the hardware supports bf16. Emulated bf16, which is slower than fp32, does not count."""
    import torch

    if device.type == "cuda":  # a T4 emulates it, and cuDNN has no bf16 convolution for it
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_bf16() != "emulated"


@functools.cache
def cpu_bf16() -> Literal["amx", "avx512", "emulated"]:
    """How this CPU multiplies bf16: with AMX tiles, AVX512 vectors, or emulated through fp32."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        amx, avx512 = capabilities.get("amx_bf16"), capabilities.get("avx512_bf16")
    else:  # torch < 2.10
        amx, avx512 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    return "amx" if amx else "avx512" if avx512 else "emulated"


def can_build_kernels() -> bool:
    """Whether there are a C compiler and Python's headers, which Triton needs to build kernels. Without this check,
    users would see the compiler's error messages.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


@functools.cache
def runs_kernels(device: "torch.device") -> bool:
    """Whether Triton, which comes with PyTorch for NVIDIA's GPUs on Linux, can build kernels for this device."""
    if device.type != "cuda" or not can_build_kernels():
        return False
    try:
        give_triton_a_folder()
        from cifarctl import triton_trial

        triton_trial.run(device)
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError):  # for example on a GPU that is too old
        return False
    return True


def algebra_device(device: "torch.device") -> "torch.device":
    """The device for matrix decompositions, and sums over many images, of tensors on `device`: the CPU instead of mps.

    Torch 2.7 has no `eigh` and no `svd` for mps, and on an M1 or M2 sums of 32,767 terms or more have been wrong
    without an error (PyTorch issue 195163).
    """
    import torch

    return torch.device("cpu") if device.type == "mps" else device


def memory_format(device: "torch.device") -> "torch.memory_format":
    """The memory format of images and filters: channels last, the fastest for convolutions, except on mps, where batch
    norm's gradients have then been wrong (PyTorch issue 175189).
    """
    import torch

    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def autocast(device: "torch.device", precision: Precision) -> contextlib.AbstractContextManager[object]:
    """A context in which matrix products and convolutions run in `precision` (not "auto")."""
    if precision == "fp32":
        return contextlib.nullcontext()
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def reuse_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system; with other C libraries, do nothing.

    Every training step allocates and frees the same sizes, and each new page costs a page fault: the classifier trains
    6 % faster this way.
    """
    if (c_library := _c_library()) is None:
        return
    with contextlib.suppress(AttributeError):
        mallopt = c_library.mallopt
        # Else glibc maps blocks of more than 32 MiB, such as activations, one by one, and unmaps them when they are
        # freed; that threshold cannot be raised.
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def release_memory() -> None:
    """Return freed memory, which `reuse_memory` and torch's allocators keep, to the system."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    with contextlib.suppress(AttributeError):
        if c_library := _c_library():
            c_library.malloc_trim(0)


def _c_library() -> ctypes.CDLL | None:
    """The C library that this process has loaded; None on Windows, where CDLL(None) raises TypeError."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            return ctypes.CDLL(None)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors that Python, torch and its allocators for CPU and mps raise if memory runs out."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The messages of the CPU's allocator on POSIX and on Windows, and of mps.
    texts = ("can't allocate memory", "DefaultCPUAllocator: not enough memory", "MPS backend out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def is_lacking_on_mps(error: BaseException) -> bool:
    """True for torch's error if it cannot do something on a Mac's GPU. CUDA has another feature named MPS."""
    text = str(error)
    return isinstance(error, RuntimeError | TypeError) and "MPS" in text and "CUDA" not in text
