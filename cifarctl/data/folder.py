"""Image files as a data set, in any of the layouts of `layouts`, with any class names and image sizes."""

from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from cifarctl.data.dataset import Dataset
from cifarctl.data.fingerprint import fingerprint
from cifarctl.data.images import read_images
from cifarctl.data.kind import DataKind, Stored
from cifarctl.data.layouts import find_layout, missing_split
from cifarctl.data.listing import Layout, Listing
from cifarctl.errors import DataError, ImageError


class ImageFolder(DataKind):
    """The data set at the path `root`: a folder, or a list of images. Its image files are found without decoding them.

    Classes are sorted by name. All methods raise DataError if the split, or something in it, is missing, cannot be
    listed, or does not have the expected layout.
    """

    is_path = True

    def __init__(self, name: str, *, seed: int = 0, data_dir: Path | None = None) -> None:
        super().__init__(name, seed=seed, data_dir=data_dir)
        self.root = Path(name)
        self._listings: dict[Stored, Listing] = {}
        self._fingerprints: dict[Stored, dict[str, Any]] = {}

    @classmethod
    def recognises(cls, name: str) -> bool:  # noqa: ARG003
        """Any name may be a path. So this kind is the last one to ask."""
        return True

    @cached_property
    def layout(self) -> Layout:
        """How the files lie."""
        return find_layout(self.root)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.layout.classes

    def stored(self) -> tuple[Stored, ...]:
        """The splits that there are."""
        return tuple(split for split in get_args(Stored) if split in self.layout.splits)

    def missing(self, split: str) -> DataError:
        """The error if a split is needed that is not there."""
        return missing_split(self.root, split)

    def origin(self, name: str) -> str:
        """Where a class is named, in words."""
        return self.layout.origins.get(name, str(self.root))

    def listing(self, split: Stored) -> Listing:
        """The split's image files."""
        if split not in self._listings:
            if split not in self.layout.splits:
                raise self.missing(split)
            self._listings[split] = self.layout.splits[split]()
        return self._listings[split]

    def labels(self, split: Stored) -> Tensor:
        """The split's labels, int64 (N,)."""
        return torch.tensor([label for _, label in self.listing(split).files])

    def files(self, split: Stored) -> list[Path]:
        """The split's image files."""
        return [path for path, _ in self.listing(split).files]

    def known_classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.classes

    def remarks(self, split: Stored) -> list[str]:
        """Remarks on files in the split that are not used, and on classes without images in it."""
        return self.listing(split).remarks

    def unused(self) -> list[str]:
        """Remarks on what is in no split."""
        return self.layout.unused

    def describe(self) -> dict[str, Any]:
        """The classes, and the fingerprints of the splits' files."""
        files: dict[str, dict[str, Any]] = {}
        for split in self.stored():
            # Training needs the others (`Source.check`), drawing reconstructions does not.
            with suppress(DataError) if split in ("val", "test") else nullcontext():
                files[split] = self.fingerprint(split)
        return {"classes": list(self.classes), "files": files}

    def fingerprint(self, split: Stored) -> dict[str, Any]:
        """The fingerprint of the split's files (`fingerprint.fingerprint`)."""
        if split not in self._fingerprints:
            listing = self.listing(split)
            paths = (path for path, _ in listing.files)
            labels = [] if listing.tells_classes else [self.classes[label] for _, label in listing.files]
            try:
                self._fingerprints[split] = fingerprint(listing.root, paths, labels)
            except OSError as error:
                raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
        return self._fingerprints[split]

    def read(self, split: Stored) -> Dataset:
        """Decode every image of the split. The DataError for unreadable images names the first and counts the rest."""
        files = self.listing(split).files
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
