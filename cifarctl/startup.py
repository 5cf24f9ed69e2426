"""How a command starts and ends sooner: what can go on beside an import does, and what an import leaves is not searched
over and over. Importing it imports no torch.
"""

import ctypes
import gc
import importlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cifarctl.hardware import Device

# While modules are imported beside the training loop, the loop gets Python's lock back within so many seconds. With the
# usual 5 ms a thread, each of a step's ten calls would wait that long.
_SWITCH_SECONDS = 1e-4


@contextmanager
def large_imports() -> Iterator[None]:
    """Inside, Python does not look for unreachable objects, and from then on not among those that there are now. Where
    torch is imported already, this does nothing.

    Looking took a quarter of what `import torch` takes, and at the end of the process as long again: 1.39 -> 0.96 s for
    both, 2.01 -> 1.24 s with Matplotlib and TensorBoard, on two Xeon cores.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def wake_gpu(device: "Device") -> None:
    """Let the driver of an NVIDIA GPU begin in a thread what it does when a process first uses the GPU, if there is one
    and `device` may be it.

    PyTorch would wait for it: it makes the context that PyTorch uses. Under torchrun, that of this process's GPU.
    """
    if device in ("auto", "cuda"):
        number = int(os.environ["LOCAL_RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0
        threading.Thread(target=_make_context, args=(number,)).start()


def _make_context(number: int) -> None:
    with suppress(OSError, AttributeError):  # no driver, or none of this kind
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        gpu, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(gpu), number) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), gpu)


def load_gpu_libraries(gpu: "torch.device") -> threading.Thread:
    """Let cuBLAS and cuDNN begin in a thread what they do at their first call. It draws no random number.

    The thread must have ended before a CUDA graph is recorded: it asks for memory.
    """

    def call() -> None:
        import torch

        with suppress(RuntimeError):  # whoever calls them next is told
            x = torch.zeros(8, 8, 8, 8, device=gpu, dtype=torch.half).to(memory_format=torch.channels_last)
            torch.nn.functional.conv2d(x.requires_grad_(), x.detach()[..., :3, :3], padding=1).sum().backward()
            torch.mm(x.detach().flatten(1), x.detach().flatten(1).T)

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def import_beside(modules: Iterable[str]) -> None:
    """Import `modules` in a thread, for whoever needs them later. What fails here fails there again."""
    missing = [module for module in modules if module not in sys.modules]

    def load() -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            for module in missing:
                with suppress(Exception):
                    importlib.import_module(module)
        finally:
            sys.setswitchinterval(interval)

    if missing:
        threading.Thread(target=load).start()
