"""Make commands start and end sooner: imports without garbage collection, and work in threads beside them. Importing
this imports no torch.
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

# While modules are imported beside the training loop, the loop gets the GIL back within this time. With the default of
# 5 ms, each of the ten calls of a step would wait that long.
_SWITCH_SECONDS = 1e-4


@contextmanager
def large_imports() -> Iterator[None]:
    """Disable garbage collection inside; afterwards, exclude all existing objects from it. Do nothing if torch is
    imported already.

    Collecting took a third of the time of `import torch` and of the end of the process together.
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
    """Create the CUDA context in a thread, if `device` may be an NVIDIA GPU. PyTorch uses the same context and would
    otherwise wait for it later. Under torchrun, it is the context of this process's GPU.
    """
    if device in ("auto", "cuda"):
        number = int(os.environ["LOCAL_RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0
        threading.Thread(target=_make_context, args=(number,)).start()


def _make_context(number: int) -> None:
    with suppress(OSError, AttributeError):  # no driver, or another kind of driver
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        gpu, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(gpu), number) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), gpu)


def load_gpu_libraries(gpu: "torch.device") -> threading.Thread:
    """Initialise cuBLAS and cuDNN in a thread, by a first call of each. It draws no random numbers.

    The thread must end before a CUDA graph is recorded, since it allocates memory.
    """

    def call() -> None:
        import torch

        with suppress(RuntimeError):  # the next call raises it again
            x = torch.zeros(8, 8, 8, 8, device=gpu, dtype=torch.half).to(memory_format=torch.channels_last)
            torch.nn.functional.conv2d(x.requires_grad_(), x.detach()[..., :3, :3], padding=1).sum().backward()
            torch.mm(x.detach().flatten(1), x.detach().flatten(1).T)

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def import_beside(modules: Iterable[str]) -> None:
    """Import `modules` in a thread, so that a later import is fast. If one fails here, it fails there again."""
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
