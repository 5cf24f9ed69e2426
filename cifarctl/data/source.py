"""A data set by name: its splits as tensors. `Source(name).load(split)` is the way to any of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifarctl.data import Split
from cifarctl.data.arrays import ArrayData, Arrays
from cifarctl.data.data_file import DownloadedArchive
from cifarctl.data.dataset import Dataset
from cifarctl.data.fingerprint import describe_changes
from cifarctl.data.folder import ImageFolder
from cifarctl.data.kind import DataKind
from cifarctl.data.splits import default_val_size, stratified_split, was_drawn_otherwise
from cifarctl.data.synthetic import Synthetic
from cifarctl.errors import ChangedDataError, DataError, UsageError

# The first one that recognises the name has the data; the last one takes any name.
KINDS: dict[str, type[DataKind]] = {
    "archive": DownloadedArchive,
    "synthetic": Synthetic,
    "arrays": ArrayData,
    "folder": ImageFolder,
}


def locate(name: str) -> str:
    """A data set's name as it means the same from everywhere: the path of a folder becomes absolute."""
    return str(Path(name).absolute()) if _kind_of(name).is_path else name


def _kind_of(name: str) -> type[DataKind]:
    return next(kind for kind in KINDS.values() if kind.recognises(name))


@dataclass(frozen=True)
class Source:
    """A data set by name, and how its training images are split.

    name: "cifar10", "cifar100", "synthetic", or the path of a folder DIR/{train,test}/CLASS/*.png.
    val_size: images held out of the training images; None is 2,000 or a tenth, whichever is fewer.
    seed: draws the held-out images (and the synthetic ones).
    limit: at most so many of the other training images, drawn by the seed; None is all.
    folder: the data folder for archives; None is the default one.
    arrays: the data itself, if `name` is `arrays.NAME`.
    """

    name: str = "cifar10"
    val_size: int | None = None
    seed: int = 0
    limit: int | None = None
    folder: Path | None = None
    arrays: Arrays | None = field(default=None, repr=False)

    @property
    def is_archive(self) -> bool:
        """True where the data set is downloaded, not made or found."""
        return isinstance(self._kind, DownloadedArchive)

    @property
    def path(self) -> Path:
        """An archive's data file."""
        assert isinstance(self._kind, DownloadedArchive)
        return self._kind.path

    @property
    def is_path(self) -> bool:
        """Whether the data set is found at a path, so that the same one may lie elsewhere."""
        return self._kind.is_path

    @property
    def known_classes(self) -> tuple[str, ...] | None:
        """The names of the classes, if they are known without reading an image."""
        return self._kind.known_classes()

    def check(self) -> tuple[str, ...]:
        """Look for all splits, before work is spent on one of them. Returns what is in a folder and not used, in words.

        Raises DataError if one is missing or has other classes, UsageError on an impossible `val_size`. That each image
        can be read is seen by `load`.
        """
        remarks = (*self.remarks("train"), *self.remarks("test"), *self._kind.unused())
        self._split()
        return remarks

    def remarks(self, split: Split) -> list[str]:
        """What is in a folder's split and not used, or missing from it without harm, in words. Raises as `check`."""
        return self._kind.remarks("test" if split == "test" else "train")

    def load(self, split: Split) -> Dataset:
        """Read one split. Raises DataError where it is missing or damaged, UsageError on an impossible `val_size`."""
        if split == "test":
            return self._test
        every = self._all_train
        train, val = self._split()
        if split == "train" and self.limit is not None:
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
            train = train[order[: self.limit]]
        return every.take(train if split == "train" else val)

    def describe(self) -> dict[str, Any]:
        """What a weights file says of the data it was trained on: enough to draw the same splits again, and to notice
        other data (`changes`).
        """
        description: dict[str, Any] = {"name": locate(self.name), "val_size": self._val_size, "seed": self.seed}
        if self.limit is not None:
            description["limit"] = self.limit
        return description | self._kind.describe()

    def changes(self, description: Mapping[str, Any], split: Split) -> list[str] | None:
        """How the images that `split` is taken from differ from those of `description`, one of `describe`'s, in words;
        empty if they are the same, None if that cannot be known: it is another data set, or an early description.
        """
        return describe_changes(description, self.describe(), ("test",) if split == "test" else ("train",))

    def check_unchanged(self, description: Mapping[str, Any], split: Split, *, allow: bool = False) -> str | None:
        """Compare with the data that a model was trained on, and return a remark where that is called for.

        Raises ChangedDataError if `split` is train or val and would hold other images than in training, unless `allow`.
        """
        changes = self.changes(description, split)
        if changes:
            text = f"{self.name}: other data than when the model was trained: {'; '.join(changes)}"
            if split != "test" and not allow:
                raise ChangedDataError(f"{text}. So {split} would hold other images than it did then")
            most = len(self._train_labels) - len(self._train_labels.unique())
            if split != "test" and self._val_size > most:
                raise ChangedDataError(f"{text}. {self._val_size} images for validation are more than it has to spare")
            return text
        described = _kind_of(str(description.get("name")))
        if changes is None and split != "test" and self.is_path and isinstance(self._kind, described):
            if not allow:
                self.check_early_split()
            return (
                f"{self.name}: the model's file does not say which images it was trained on; if any were added or "
                f"removed since, {split} is not what training drew"
            )
        return None

    def check_early_split(self) -> None:
        """Raise ChangedDataError if the split of a run that noted no fingerprint, as those of cifarctl before 0.2, is
        not the one that is drawn now.
        """
        if was_drawn_otherwise(self._train_labels, self._val_size):
            raise ChangedDataError(
                f"{self.name}: its validation images were drawn by an earlier version, which took the last image of a "
                "class; now others are drawn"
            )

    @classmethod
    def trained_on(
        cls, description: dict[str, Any], name: str | None, folder: Path | None, arrays: Arrays | None = None
    ) -> "Source":
        """The data that a weights file describes, with its split; or, where `name` is another, that with the default
        one, unless it holds the same files at another place. arrays: the data, if the name is `arrays.NAME`.

        Raises DataError where the description is not one of `describe`'s.
        """
        described = str(description.get("name", "cifar10"))
        found = {key: description.get(key) for key in ("val_size", "seed", "limit")}
        is_valid = all(value is None or type(value) is int for value in found.values())
        source = cls(name or described, found["val_size"], found["seed"] or 0, found["limit"], folder, arrays)
        if name is not None and locate(name) != locate(described):
            same = is_valid and source.is_path and source.changes(description, "train") == []
            return source if same else cls(name, folder=folder, arrays=arrays)
        if not is_valid:
            raise DataError(f"the model describes its data as {found}, which is no data set", hint="`data` names one")
        return source

    @property
    def _val_size(self) -> int:
        if self.val_size is not None:
            return self.val_size
        if (given := self._kind.validation()) is not None:
            return len(given)
        labels = self._train_labels
        return min(default_val_size(len(labels)), len(labels) - len(labels.unique()))

    def _split(self) -> tuple[Tensor, Tensor]:
        """Which of the training images are trained on, and which are held out: indices, int64."""
        labels = self._train_labels
        if (given := self._kind.validation()) is not None:
            if self._val_size != len(given):
                raise UsageError(f"`val_size` {self.val_size}: {self.name} has {len(given)} images for validation")
            held_out = torch.zeros(len(labels), dtype=torch.bool)
            held_out[given] = True
            return (~held_out).nonzero().flatten(), given
        if len(labels) == len(labels.unique()):
            raise DataError(
                f"{self.name}: {len(labels)} training images of as many classes leave none for validation",
                hint="at least one class needs two images or more",
            )
        return stratified_split(labels, self._val_size, self.seed)

    @cached_property
    def _kind(self) -> DataKind:
        if self.arrays is not None:
            return ArrayData(self.name, seed=self.seed, given=self.arrays)
        return _kind_of(self.name)(self.name, seed=self.seed, data_dir=self.folder)

    @cached_property
    def _train_labels(self) -> Tensor:
        labels = self._kind.train_labels()
        return self._all_train.labels if labels is None else labels

    @cached_property
    def _all_train(self) -> Dataset:
        return self._kind.read("train")

    @cached_property
    def _test(self) -> Dataset:
        return self._kind.read("test")
