"""The data file of a downloaded data set: one safetensors file, written atomically and memory-mapped when read."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from cifarctl.data.archive import ARCHIVES
from cifarctl.data.dataset import Dataset
from cifarctl.data.kind import DataKind, Stored
from cifarctl.errors import DataError
from cifarctl.files import save_tensors

_FORMAT = "1"
_T = TypeVar("_T")


class DownloadedArchive(DataKind):
    """A published archive, which `cifarctl download` has made a data file of."""

    @classmethod
    def recognises(cls, name: str) -> bool:
        """Whether `name` is an archive's."""
        return name in ARCHIVES

    @property
    def path(self) -> Path:
        """The data file."""
        return data_file_path(self.name, data_dir(self.data_dir))

    def read(self, split: Stored) -> Dataset:
        """Map the split from the data file."""
        train, test = self._splits
        return train if split == "train" else test

    def describe(self) -> dict[str, Any]:
        """The digest of the archive."""
        return {"archive_sha256": self._from_file(archive_digest)}

    @cached_property
    def _splits(self) -> tuple[Dataset, Dataset]:
        return self._from_file(read_data_file)

    def _from_file(self, read: Callable[[Path], _T]) -> _T:
        try:
            return read(self.path)
        except FileNotFoundError:
            raise DataError(
                f"{self.path}: no such file: {self.name} has not been downloaded",
                hint=f"cifarctl download --data {self.name}",
            ) from None


def data_dir(chosen: Path | None = None) -> Path:
    """The data folder: `chosen`, else $CIFARCTL_DATA_DIR, else in the user's cache folder. Raises DataError if the user
    has none.
    """
    if chosen is not None:
        return chosen
    if from_environment := os.environ.get("CIFARCTL_DATA_DIR"):
        return Path(from_environment)
    import platformdirs

    with suppress(RuntimeError):
        folder = Path(platformdirs.user_cache_dir("cifarctl", appauthor=False))
        if folder.is_absolute():  # older platformdirs answer "~/.cache", a folder of that name
            return folder
    raise DataError(
        "no data folder: this user has no home folder", hint="`data_dir` or the variable CIFARCTL_DATA_DIR names one"
    )


def data_file_path(name: str, folder: Path) -> Path:
    """The path of the data file of the data set `name` in the data folder."""
    return folder / f"{name}.safetensors"


def write_data_file(path: Path, train: Dataset, test: Dataset, archive_sha256: str) -> None:
    """Write both splits to `path`, atomically. Raises OSError."""
    tensors = {
        "train_images": train.images,
        "train_labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
    }
    metadata = {"format": _FORMAT, "classes": json.dumps(train.classes), "archive_sha256": archive_sha256}
    save_tensors(path, tensors, metadata)


def read_data_file(path: Path) -> tuple[Dataset, Dataset]:
    """Map (train, test) from `path`, in milliseconds: pages are read when they are used.

    Raises FileNotFoundError if there is none, DataError if it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            classes = tuple(json.loads(_metadata(file, path)["classes"]))
            train, test = (
                Dataset(file.get_tensor(f"{split}_images"), file.get_tensor(f"{split}_labels"), classes)
                for split in ("train", "test")
            )
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    for dataset in (train, test):
        _check(dataset, path)
    return train, test


def archive_digest(path: Path) -> str:
    """SHA-256 of the archive that the file at `path` was made from. Raises as `read_data_file` does."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(_metadata(file, path)["archive_sha256"])
    except (SafetensorError, KeyError) as error:
        raise _damaged(path, str(error)) from None


def _metadata(file: safe_open, path: Path) -> dict[str, str]:
    metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("format") != _FORMAT:
        raise _damaged(path, f"format {metadata.get('format')!r}, not {_FORMAT!r}")
    return metadata


def _check(dataset: Dataset, path: Path) -> None:
    images, labels = dataset.images, dataset.labels
    if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32):
        raise _damaged(path, f"images are {images.dtype} {tuple(images.shape)}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise _damaged(path, f"labels are {labels.dtype} {tuple(labels.shape)}")
    values = labels.numpy()  # torch's first reduction would start a pool of threads, which takes 15 ms
    if len(values) and not 0 <= values.min() <= values.max() < len(dataset.classes):
        raise _damaged(path, "a label is out of range")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: damaged data file ({reason})", hint="make it again: cifarctl download --force")
