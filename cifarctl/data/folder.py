"""A folder of images as a data set: DIR/{train,test}/CLASS/*.png, any class names, any image size."""

from pathlib import Path

import numpy as np
import torch

from cifarctl.data.dataset import Dataset
from cifarctl.data.images import find_images, read_images
from cifarctl.errors import DataError, ImageError

_LAYOUT = "expected DIR/{train,test}/CLASS/*.png (or .jpg, …)"


def read_folder(folder: Path, split: str) -> Dataset:
    """Decode every image under `folder`/`split`. Classes are the names of the folders in `folder`/train, sorted.

    Raises DataError where there is no such folder, fewer than two classes, no image, or an unreadable image (all are
    counted, the first is named).
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", hint="--data takes cifar10, cifar100, synthetic or a folder")
    classes = _subfolders(folder / "train")
    if len(classes) < 2:
        raise DataError(f"{folder / 'train'}: {len(classes)} classes, at least 2 are needed", hint=_LAYOUT)
    if unknown := set(_subfolders(folder / split)) - set(classes):
        raise DataError(f"{folder / split}: class {min(unknown)!r} is not among the classes in {folder / 'train'}")

    paths = [(path, label) for label, name in enumerate(classes) for path in find_images(folder / split / name)]
    if not paths:
        raise DataError(f"{folder / split}: no images in it", hint=_LAYOUT)
    images = np.empty((len(paths), 3, 32, 32), np.uint8)
    failures = []
    for i, (path, image) in enumerate(read_images(path for path, _ in paths)):
        if isinstance(image, ImageError):
            failures.append(f"{path}: {image}")
        else:
            images[i] = image
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise DataError(f"{failures[0]}{more}", hint="remove or replace what cannot be read")
    return Dataset(torch.from_numpy(images), torch.tensor([label for _, label in paths]), tuple(classes))


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder", hint=_LAYOUT) from None
    except NotADirectoryError:
        raise DataError(f"{folder}: not a folder", hint=_LAYOUT) from None
