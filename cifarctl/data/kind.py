"""What every kind of data set does: the table `source.KINDS` has one class for each."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from cifarctl.data.dataset import Dataset
from cifarctl.data.fingerprint import content_fingerprint
from cifarctl.errors import DataError

Stored = Literal["train", "val", "test", "all"]
"""The splits that a data set may have; "all" if it has none. `Source` draws what is not there."""


class DataKind(ABC):
    """A data set of one kind, by its name. Making one reads nothing.

    name: as the user gave it. seed: of what is drawn. data_dir: the folder for downloads; None is the default one.
    is_path: whether names of this kind are paths, so that the same data may lie elsewhere.
    Methods raise DataError if the data is missing or damaged.
    """

    is_path: ClassVar[bool] = False

    def __init__(self, name: str, *, seed: int = 0, data_dir: Path | None = None) -> None:
        self.name, self.seed, self.data_dir = name, seed, data_dir

    @classmethod
    @abstractmethod
    def recognises(cls, name: str) -> bool:
        """Whether `name` is of this kind."""

    def stored(self) -> tuple[Stored, ...]:
        """The splits that there are."""
        return ("train", "test")

    @abstractmethod
    def read(self, split: Stored) -> Dataset:
        """All images of the split, which is one of `stored`. `Source` keeps what it needs again."""

    def labels(self, split: Stored) -> Tensor | None:  # noqa: ARG002
        """The labels of the split, int64 (N,), if they are known without reading images."""
        return None

    def files(self, split: Stored) -> list[Path] | None:  # noqa: ARG002
        """The image files of the split, in the order of its images, if each has one."""
        return None

    def missing(self, split: str) -> DataError:
        """The error if a split is needed that is not there."""
        return DataError(f"{self.name}: it has no split {split}")

    def origin(self, name: str) -> str:  # noqa: ARG002
        """Where a class is named, in words."""
        return self.name

    def has_names(self) -> bool:
        """Whether classes have names. If not, labels are numbers, which may mean another data set's classes."""
        return True

    def known_classes(self) -> tuple[str, ...] | None:
        """The names of the classes, if they are known without reading images."""
        return None

    def remarks(self, split: Stored) -> list[str]:  # noqa: ARG002
        """What the user should know of one split, in words: files that are not used, a class without images."""
        return []

    def unused(self) -> list[str]:
        """What is beside the splits and not used, in words."""
        return []

    def describe(self) -> dict[str, Any]:
        """What tells this data from other data of the same name, as JSON: see `fingerprint.describe_changes`."""
        datasets = {split: self.read(split) for split in self.stored()}
        return {
            "classes": list(next(iter(datasets.values())).classes),
            "arrays": {split: content_fingerprint(dataset) for split, dataset in datasets.items()},
        }
