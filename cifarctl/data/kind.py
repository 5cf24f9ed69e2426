"""What every kind of data set does: the table `source.KINDS` has one class for each."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from cifarctl.data.dataset import Dataset
from cifarctl.data.fingerprint import content_fingerprint

Stored = Literal["train", "test"]
"""The splits that a data set has. `Source` draws val from train."""


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

    @abstractmethod
    def read(self, split: Stored) -> Dataset:
        """All images of the split. `Source` keeps what it needs again."""

    def train_labels(self) -> Tensor | None:
        """The labels of train, int64 (N,), if they are known without reading images."""
        return None

    def validation(self) -> Tensor | None:
        """Which images of train are for validation, indices, int64 (M,), if the data set itself says so."""
        return None

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
        splits: tuple[Stored, ...] = ("train", "test")
        datasets = {split: self.read(split) for split in splits}
        return {
            "classes": list(datasets["train"].classes),
            "arrays": {split: content_fingerprint(dataset) for split, dataset in datasets.items()},
        }
