"""Train, measure and use CIFAR-10 autoencoders and classifiers.

    import cifarctl

    cifarctl.load().predict(["photo.jpg"])  # the pretrained classifier

The verbs are those of the command line. Importing this package imports no torch; using a verb does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cifarctl.errors import CifarctlError
from cifarctl.version import __version__

if TYPE_CHECKING:
    from cifarctl.api import (
        LoadedAutoencoder,
        LoadedClassifier,
        Prediction,
        Run,
        download,
        evaluate,
        inspect_data,
        load,
        load_autoencoder,
        load_classifier,
        train_autoencoder,
        train_classifier,
    )
    from cifarctl.data import Arrays
    from cifarctl.progress import Progress

__all__ = [
    "Arrays",
    "CifarctlError",
    "LoadedAutoencoder",
    "LoadedClassifier",
    "Prediction",
    "Progress",
    "Run",
    "__version__",
    "download",
    "evaluate",
    "inspect_data",
    "load",
    "load_autoencoder",
    "load_classifier",
    "train_autoencoder",
    "train_classifier",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("cifarctl.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
