"""A folder of images as a data set: DIR/{train,test}/CLASS/*.png, with any class names and image sizes."""

import os
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifarctl.data.dataset import Dataset
from cifarctl.data.fingerprint import fingerprint, listed
from cifarctl.data.images import ImageFiles, find_images, read_images
from cifarctl.data.kind import DataKind, Stored
from cifarctl.errors import DataError, ImageError

_LAYOUT = "expected DIR/{train,test}/CLASS/*.png (or .jpg, …)"
# Other common names of a folder of images that are not trained on.
_TEST_NAMES = ("val", "valid", "validation", "dev", "eval", "holdout")


class ImageFolder(DataKind):
    """The data set in the folder `root`. Its image files are found without decoding them.

    A split is "train" or "test". Classes are the names of the folders in `root`/train, sorted. All methods raise
    DataError if the split, or something in it, is missing, cannot be listed, or does not have the expected layout.
    """

    is_path = True

    def __init__(self, name: str, *, seed: int = 0, data_dir: Path | None = None) -> None:
        super().__init__(name, seed=seed, data_dir=data_dir)
        self.root = Path(name)
        self._found: dict[str, list[tuple[Path, int]]] = {}
        self._remarks: dict[str, list[str]] = {}
        self._fingerprints: dict[str, dict[str, Any]] = {}

    @classmethod
    def recognises(cls, name: str) -> bool:  # noqa: ARG003
        """Any name may be a path. So this kind is the last one to ask."""
        return True

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes. Raises DataError if there are fewer than two."""
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder",
                hint="`data` takes cifar10, cifar100, synthetic, or the path of a folder as it is now",
            )
        classes, _ = self._list("train")
        if len(classes) < 2:
            raise DataError(f"{self.root / 'train'}: {len(classes)} classes, at least 2 are needed", hint=_LAYOUT)
        return tuple(classes)

    def files(self, split: str) -> list[tuple[Path, int]]:
        """The split's image files, each with its label, class by class."""
        if split not in self._found:
            self._found[split], self._remarks[split] = self._find(split)
        return self._found[split]

    def labels(self, split: str) -> Tensor:
        """The split's labels, int64 (N,)."""
        return torch.tensor([label for _, label in self.files(split)])

    def train_labels(self) -> Tensor:
        """The labels of train, int64 (N,)."""
        return self.labels("train")

    def known_classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.classes

    def remarks(self, split: Stored) -> list[str]:
        """Remarks on files in the split that are not used, and on classes without images in it."""
        self.files(split)
        return self._remarks[split]

    def unused(self) -> list[str]:
        """A remark on the folders in `root` that are not a split, if there are any."""
        names = [name for name in _subfolders(self.root)[0] if name not in ("train", "test")]
        used = "train and test are, and validation images are drawn from train"
        text = f"{self.name}: {listed(names)} {'are' if len(names) > 1 else 'is'} not used: {used}"
        return [text] if names else []

    def describe(self) -> dict[str, Any]:
        """The classes, and the fingerprints of the splits' files."""
        files = {"train": self.fingerprint("train")}
        with suppress(DataError):  # training needs a test split (`Source.check`), drawing reconstructions does not
            files["test"] = self.fingerprint("test")
        return {"classes": list(self.classes), "files": files}

    def fingerprint(self, split: str) -> dict[str, Any]:
        """The fingerprint of the split's files (`fingerprint.fingerprint`)."""
        if split not in self._fingerprints:
            paths = (path for path, _ in self.files(split))
            try:
                self._fingerprints[split] = fingerprint(self.root / split, paths)
            except OSError as error:
                raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
        return self._fingerprints[split]

    def read(self, split: Stored) -> Dataset:
        """Decode every image of the split. The DataError for unreadable images names the first and counts the rest."""
        files = self.files(split)
        images = np.empty((len(files), 3, 32, 32), np.uint8)
        failures = []
        for i, (path, image) in enumerate(read_images(path for path, _ in files)):
            if isinstance(image, ImageError):
                failures.append(f"{path}: {image}")
            else:
                images[i] = image
        if failures:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise DataError(f"{failures[0]}{more}", hint="remove or replace what cannot be read")
        paths = tuple(str(path) for path, _ in files)
        return Dataset(torch.from_numpy(images), self.labels(split), self.classes, paths)

    def _find(self, split: str) -> tuple[list[tuple[Path, int]], list[str]]:
        folder = self.root / split
        classes = self.classes
        names, loose = self._list(split)
        if unknown := [name for name in names if name not in classes]:
            near = get_close_matches(unknown[0], classes, 1)
            raise DataError(
                f"{folder}: not among the classes in {self.root / 'train'}: {listed([repr(name) for name in unknown])}",
                hint=f"did you mean {near[0]}?" if near else "each folder there must have one of its name in train",
            )
        files: list[tuple[Path, int]] = []
        ignored, absent = ImageFiles([]), []
        for label, name in enumerate(classes):
            search = find_images(folder / name) if name in names else ImageFiles([])
            found = [(path, label) for path in search]
            ignored.ignored += search.ignored
            if not found and split == "train":
                also = f" ({text})" if (text := search.describe_ignored()) else ""
                raise DataError(
                    f"{folder / name}: no images in it{also}",
                    hint="each folder here is a class: remove it, or put images into it (others converted to PNG)"
                    if search.ignored
                    else "each folder here is a class: remove it, or put images into it",
                )
            if not found:
                absent.append(name)
            files += found
        if not files:
            raise DataError(f"{folder}: no images in it", hint=_LAYOUT)
        remarks = [ignored.describe_ignored(), _counted(loose, "outside the classes' folders ignored")]
        if absent:
            remarks.append(f"no images of {listed(absent)}")
        return files, [f"{folder}: {remark}" for remark in remarks if remark]

    def _list(self, split: str) -> tuple[list[str], int]:
        folder = self.root / split
        if os.path.lexists(folder):
            return _subfolders(folder)
        others = {name.lower(): name for name in _subfolders(self.root)[0]}
        near = get_close_matches(split, others) or [name for name in _TEST_NAMES if split == "test" and name in others]
        if near:
            hint = f"did you mean {others[near[0]]}? Rename it to {split}; {_LAYOUT}"
        elif split == "train":
            hint = f"{_LAYOUT}: most of each class's images go to train, a fifth or so to test"
        else:
            hint = f"{_LAYOUT}: move a fifth or so of each class's images from train to test"
        raise DataError(f"{folder}: no such folder", hint=hint)


def _subfolders(folder: Path) -> tuple[list[str], int]:
    """The sorted names of the folders in `folder`, and the number of files beside them, both without hidden ones."""
    try:
        entries = [each for each in folder.iterdir() if not each.name.startswith(".") and each.name != "__MACOSX"]
        names = sorted(each.name for each in entries if each.is_dir())
    except NotADirectoryError:
        raise DataError(f"{folder}: not a folder", hint=_LAYOUT) from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    return names, len(entries) - len(names)


def _counted(count: int, text: str) -> str:
    return f"{count:,} file{'s' if count > 1 else ''} {text}" if count else ""
