"""Folders that training writes: among folders of classes, they are none."""

import json
import os
from pathlib import Path

from cifarctl.data.image_formats import FORMAT_OF_SUFFIX

_KEYS = {"options", "recipe"}  # of `config.json`
_DEPTH = 3  # of folders of runs in one another; a link could lead into a circle


def is_own(folder: Path, depth: int = _DEPTH) -> bool:
    """Whether `folder` is a run of cifarctl, or holds no images and no folders but such ones."""
    if is_run(folder):
        return True
    inner: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    inner.append(Path(entry.path))
                elif Path(entry.name).suffix.lower() in FORMAT_OF_SUFFIX:
                    return False
    except OSError:
        return False
    return depth > 0 and bool(inner) and all(is_own(each, depth - 1) for each in inner)


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run of cifarctl."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.keys() >= _KEYS
