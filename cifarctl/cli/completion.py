"""What the shell offers after Tab. Runs at every press of it, so nothing here imports torch or walks a tree."""

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_args

from cifarctl import models
from cifarctl.training.recipes import Recipe, names

_DATA = ("cifar10", "cifar100", "synthetic")
_DATA_FILES = (".csv", ".npz", ".npy")


def complete_model(incomplete: str) -> list[str]:
    """The pretrained models, runs, weights files, and folders that may lead to one."""
    found = [kind for kind in get_args(models.Kind) if kind.startswith(incomplete)]
    for path in _starting_with(incomplete):
        if path.is_dir():
            found.append(str(path) if (path / "model.safetensors").is_file() else f"{path}{os.sep}")
        elif path.suffix == ".safetensors":
            found.append(str(path))
    return found


def complete_data(incomplete: str) -> list[str]:
    """Data sets by name, folders, and files of images or lists of them."""
    found = [name for name in _DATA if name.startswith(incomplete)]
    for path in _starting_with(incomplete):
        if path.is_dir():
            found.append(f"{path}{os.sep}")
        elif path.suffix.lower() in _DATA_FILES:
            found.append(str(path))
    return found


def complete_arch(kind: models.Kind) -> Callable[[str], list[str]]:
    """The registered models of a kind."""
    return lambda incomplete: [name for name in models.names(kind) if name.startswith(incomplete)]


def complete_recipe(kind: models.Kind) -> Callable[[str], list[str]]:
    """The recipes of the registered models of a kind."""
    found = dict.fromkeys(recipe for name in models.names(kind) for recipe in names(name))
    return lambda incomplete: [recipe for recipe in found if recipe.startswith(incomplete)]


def complete_field(incomplete: str) -> list[str]:
    """The fields of a training recipe."""
    return [f"{field.name}=" for field in fields(Recipe) if field.name.startswith(incomplete)]


def _starting_with(incomplete: str) -> list[Path]:
    """The visible entries of a folder whose paths start so, sorted."""
    folder, prefix = os.path.split(incomplete)
    try:
        entries = sorted(Path(folder).iterdir())
    except OSError:
        return []
    return [path for path in entries if path.name.startswith(prefix) and (prefix or not path.name.startswith("."))]
