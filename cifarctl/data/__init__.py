"""Images as tensors. `Source(name).load(split)` is the way to any data set.

Importing this package imports no torch, which the processes that decode files (`decoders`) do not need.
"""

import importlib
from typing import TYPE_CHECKING, Any, Literal

Split = Literal["train", "val", "test"]

if TYPE_CHECKING:
    from cifarctl.data.arrays import Arrays
    from cifarctl.data.dataset import Dataset
    from cifarctl.data.source import Source, locate

__all__ = ["Arrays", "Dataset", "Source", "Split", "locate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("cifarctl.data.source"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
