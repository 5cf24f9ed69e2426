"""A data set by name: its splits as tensors. `Source(name).load(split)` is the way to any of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cifarctl.data import Split
from cifarctl.data.array_file import ArrayFile
from cifarctl.data.arrays import ArrayData, Arrays
from cifarctl.data.class_names import hint_at_near, lookalikes
from cifarctl.data.contents import SPLITS, Contents
from cifarctl.data.data_file import DownloadedArchive
from cifarctl.data.dataset import Dataset
from cifarctl.data.fingerprint import describe_changes, is_same, listed, stored_split
from cifarctl.data.folder import ImageFolder
from cifarctl.data.kind import DataKind, Stored
from cifarctl.data.splits import default_val_size, draw_test, stratified_split, was_drawn_otherwise
from cifarctl.data.synthetic import Synthetic
from cifarctl.errors import ChangedDataError, DataError, UsageError

# The first one that recognises the name has the data; the last one takes any name.
KINDS: dict[str, type[DataKind]] = {
    "archive": DownloadedArchive,
    "synthetic": Synthetic,
    "arrays": ArrayData,
    "array file": ArrayFile,
    "folder": ImageFolder,
}


def locate(name: str) -> str:
    """A data set's name as it means the same from everywhere: a path becomes absolute, without `..`.

    Links stay, since they may lead elsewhere later: `is_same_place` follows them.
    """
    if not _kind_of(name).is_path:
        return name
    path = Path(name).absolute()
    return os.path.realpath(path) if ".." in path.parts else str(path)


def is_same_place(first: str, second: str) -> bool:
    """Whether two names are of the same data set, through links too."""
    return place_of(first) == place_of(second)


def place_of(name: str) -> str:
    """A data set's name as `locate` gives it, with links followed. What lies beside a file may belong to it, so a link
    to the file alone is another one.
    """
    place = locate(name)
    return _without_links(place) if _kind_of(name).is_path else place


def _without_links(place: str) -> str:
    is_folder = os.path.isdir(place)  # noqa: PTH112 (Path.is_dir raises on names that are too long)
    folder, name = (place, "") if is_folder else os.path.split(place)
    return os.path.normcase(os.path.join(os.path.realpath(folder), name))  # noqa: PTH118


def _kind_of(name: str) -> type[DataKind]:
    return next(kind for kind in KINDS.values() if kind.recognises(name))


@dataclass(frozen=True)
class Source:
    """A data set by name, and how its training images are split.

    name: "cifar10", "cifar100", "synthetic", or a path: a folder DIR/CLASS/*.png or DIR/{train,val,test}/CLASS/*.png,
    an .npz or .npy file, or a list of images (.csv).
    val_size: images held out of the training images; None is 2,000 or a tenth, whichever is fewer.
    seed: draws the held-out images for validation (and the synthetic ones). Those for test, if the data set has no
    splits, are the same for every seed.
    limit: at most so many of the other training images, drawn by the seed; None is all.
    folder: the data folder for archives; None is the default one.
    arrays: the data itself, if `name` is `arrays.NAME`.
    model_classes: the classes of the model that is measured: labels of files are renumbered to them, by name.
    only_measured: nothing was trained on this data: all of a data set without splits is its test split.
    draws_test: but here only what training on it would hold out, as of a model beside this one.
    draws_val: validation images are drawn from train even if there are others, as when the model was trained.
    """

    name: str = "cifar10"
    val_size: int | None = None
    seed: int = 0
    limit: int | None = None
    folder: Path | None = None
    arrays: Arrays | None = field(default=None, repr=False)
    model_classes: tuple[str, ...] = ()
    only_measured: bool = False
    draws_test: bool = False
    draws_val: bool = False

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
        known = self._kind.known_classes()
        return known if known is None else self._matched(known)[0]

    @property
    def stored(self) -> tuple[Stored, ...]:
        """The splits that the data set has; "all" if it has none."""
        return tuple(split for split in self._kind.stored() if split != "val" or not self.draws_val)

    def check(self) -> tuple[str, ...]:
        """Look for all splits, before work is spent on one of them. Returns what is in a folder and not used, in words.

        Raises DataError if train is missing or a split has other classes, UsageError on an impossible `val_size`. That
        each image can be read is seen by `load`.
        """
        remarks = [remark for split in self.stored for remark in self._kind.remarks(split)]
        self._indices("train")
        if self.is_path:
            self._check_classes()
            remarks += [
                f"{self.name}: names that look alike are different classes: {listed([repr(name) for name in group])}"
                for group in lookalikes(self._names)
            ]
        remarks += self._kind.unused()
        if not self.has("test"):
            remarks.append(f"{self.name}: no test split, so the validation images are measured at the end of training")
        return tuple(remarks)

    def has(self, split: Split) -> bool:
        """Whether the split can be loaded."""
        return stored_split(split, self.stored) in self.stored and not (self._is_whole and split != "test")

    def remarks(self, split: Split) -> list[str]:
        """What is in a folder's split and not used, or missing from it without harm, in words. Raises as `check`."""
        stored = self._stored_split(split)
        remarks = self._kind.remarks(stored)
        names = (self.known_classes or ()) if self.is_path else ()
        if names and names != self._names and not self._kind.has_names():
            if all(name.isdecimal() for name in names):
                return remarks
            return [*remarks, f"{self.name}: its labels have no names, so label 0 is taken as {names[0]}, and so on"]
        absent = [name for name in names if name not in self._names]
        return [*remarks, f"{self.name}: no images of {listed(absent)}"] if absent else remarks

    def contents(self) -> Contents:
        """How many images of which classes each split has. Raises as `check`."""
        counts: dict[Split, tuple[int, ...]] = {}
        drawn: list[Split] = []
        names = self._names
        for split in SPLITS:
            if self.has(split):
                stored, indices = self._indices(split)
                labels = self._labels(stored) if indices is None else self._labels(stored)[indices]
                counts[split] = tuple(torch.bincount(labels, minlength=len(names)).tolist())
                if indices is not None and split != "train":
                    drawn.append(split)
        return Contents(self.name, names, counts, tuple(drawn), is_whole=self._is_whole)

    def load(self, split: Split) -> Dataset:
        """Read one split. Raises DataError if it is missing or damaged, UsageError on an impossible `val_size`."""
        dataset = self._read(self._stored_split(split))
        indices = self._limited(split)
        return self._renumbered(dataset if indices is None else dataset.take(indices))

    def files(self, split: Split) -> list[Path] | None:
        """The image files of the split, in the order of `load`, which are not read; None if images have no files."""
        files, indices = self._kind.files(self._stored_split(split)), self._limited(split)
        return files if files is None or indices is None else [files[i] for i in indices.tolist()]

    def describe(self) -> dict[str, Any]:
        """What a weights file says of the data it was trained on: enough to draw the same splits again, and to notice
        other data (`changes`).
        """
        val_size = self._val_size if self.has("train") else None
        description: dict[str, Any] = {"name": locate(self.name), "val_size": val_size, "seed": self.seed}
        if self.limit is not None:
            description["limit"] = self.limit
        return description | self._identity

    def changes(self, description: Mapping[str, Any], split: Split) -> list[str] | None:
        """How the images that `split` is taken from differ from those of `description`, one of `describe`'s, in words;
        empty if they are the same, None if that cannot be known: it is another data set, or an early description.
        """
        if self._is_whole and "all" not in _digests(description):
            return None  # other images for a test, of which the description says nothing
        return describe_changes(description, {"name": locate(self.name), **self._identity}, (split,))

    def check_unchanged(self, description: Mapping[str, Any], split: Split, *, allow: bool = False) -> str | None:
        """Compare with the data that a model was trained on, and return a remark where that is called for.

        Raises ChangedDataError, unless `allow`, if `split` was held out of the training images and would hold others
        now, or if it consists of images that the model was trained on.
        """
        if self.only_measured and split == "test":
            self._check_unseen(description, allow=allow)
        changes = self.changes(description, split)
        if changes:
            text = f"{self.name}: other data than when the model was trained: {'; '.join(changes)}"
            is_drawn = split != "test" or ("all" in self.stored and not self.only_measured)
            if is_drawn and not allow:
                raise ChangedDataError(f"{text}. So {split} would hold other images than it did then")
            if is_drawn and "val" not in self.stored:
                labels = self._trainable[1]
                if self._val_size > len(labels) - len(labels.unique()):
                    raise ChangedDataError(
                        f"{text}. {self._val_size} images for validation are more than it has to spare"
                    )
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
        if "train" in self.stored and was_drawn_otherwise(self._labels("train"), self._val_size):
            raise ChangedDataError(
                f"{self.name}: its validation images were drawn by an earlier version, which took the last image of a "
                "class; now others are drawn"
            )

    @classmethod
    def trained_on(
        cls,
        description: dict[str, Any],
        name: str | None,
        folder: Path | None,
        arrays: Arrays | None = None,
        classes: tuple[str, ...] = (),
    ) -> "Source":
        """The data that a weights file describes, with its split; or, where `name` is another, that with the default
        one, unless it holds the same files at another place. arrays: the data, if the name is `arrays.NAME`. classes:
        those of the model, to which labels of files are renumbered.

        Raises DataError where the description is not one of `describe`'s.
        """
        described = str(description.get("name", "cifar10"))
        found = {key: description.get(key) for key in ("val_size", "seed", "limit")}
        is_valid = all(value is None or type(value) is int for value in found.values())
        source = cls(
            name or described,
            None if "val" in _digests(description) else found["val_size"],
            found["seed"] or 0,
            found["limit"],
            folder,
            arrays,
            classes,
            draws_val=drew_val(description),
        )
        if name is not None and not is_same_place(name, described):
            same = is_valid and source.is_path and source.has("train") and source.changes(description, "train") == []
            return (
                source if same else cls(name, folder=folder, arrays=arrays, model_classes=classes, only_measured=True)
            )
        if not is_valid:
            raise DataError(f"the model describes its data as {found}, which is no data set", hint="`data` names one")
        return source

    def _check_unseen(self, description: Mapping[str, Any], *, allow: bool) -> None:
        """Raise ChangedDataError, unless `allow`, if the images to be measured are those of the training."""
        measured = _digests(self._identity).get(self._stored_split("test"))
        then = _digests(description)
        if measured and not allow and any(is_same(then[split], measured) for split in then if split != "test"):
            raise ChangedDataError(f"{self.name}: the model was trained with these images, so they are no test")

    @property
    def _is_whole(self) -> bool:
        """Whether all images are the test split."""
        return self.only_measured and "all" in self.stored and not self.draws_test

    @property
    def _identity(self) -> dict[str, Any]:
        """What tells this data from other data, as far as it is used."""
        description = self._kind.describe()
        files = description.get("files")
        if self.draws_val and files:
            description = {**description, "files": {split: each for split, each in files.items() if split != "val"}}
        return description

    @property
    def _val_size(self) -> int:
        if self.val_size is not None:
            return self.val_size
        if "val" in self.stored:
            return len(self._labels("val"))
        labels = self._trainable[1]
        return min(default_val_size(len(labels)), len(labels) - len(labels.unique()))

    def _stored_split(self, split: Split) -> Stored:
        """The stored split that `split` is taken from. Raises DataError if it is missing."""
        stored = cast("Stored", stored_split(split, self.stored))
        if stored not in self.stored:
            raise self._kind.missing(stored)
        if not self.has(split):
            raise DataError(f"{self.name}: it has no splits, so all of it is test images", hint="measure it as test")
        return stored

    def _indices(self, split: Split) -> tuple[Stored, Tensor | None]:
        """The stored split that `split` is taken from, and which of its images: indices, int64, or None for all."""
        stored = self._stored_split(split)
        if self._is_whole or (split == "test" and stored == "test") or stored == "val":
            return stored, None
        if split == "test":
            return stored, self._test_drawn[1]
        if "val" in self.stored:
            if self._val_size != (n := len(self._labels("val"))):
                raise UsageError(f"`val_size` {self.val_size}: {self.name} has {n} images for validation")
            return stored, None
        candidates, labels = self._trainable
        if len(labels) == len(labels.unique()):
            raise DataError(
                f"{self.name}: {len(labels)} training images of as many classes leave none for validation",
                hint="at least one class needs two images or more",
            )
        train, val = stratified_split(labels, self._val_size, self.seed)
        chosen = train if split == "train" else val
        return stored, chosen if candidates is None else candidates[chosen]

    def _limited(self, split: Split) -> Tensor | None:
        """Which images of the stored split are loaded: indices, int64, or None for all."""
        stored, indices = self._indices(split)
        if split == "train" and self.limit is not None:
            indices = torch.arange(len(self._labels(stored))) if indices is None else indices
            order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(self.seed))
            indices = indices[order[: self.limit]]
        return indices

    @cached_property
    def _trainable(self) -> tuple[Tensor | None, Tensor]:
        """The images that train and val are taken from: their indices, or None for all of train; and their labels."""
        stored = self._stored_split("train")
        labels = self._labels(stored)
        if stored != "all":
            return None, labels
        candidates = self._test_drawn[0]
        return candidates, labels[candidates]

    @cached_property
    def _test_drawn(self) -> tuple[Tensor, Tensor]:
        """(others, test) of a data set without splits, indices, int64. Every seed draws the same, so that runs can be
        compared, and no image that one was trained on tests another.
        """
        labels = self._labels("all")
        if (drawn := draw_test(labels, seed=0)) is None:
            raise DataError(
                f"{self.name}: {len(labels)} images of {len(labels.unique())} classes: too few to hold out any",
                hint="give more images, or folders train and test",
            )
        return drawn

    def _check_classes(self) -> None:
        """Raise DataError unless there are two classes or more, with images of each to train on."""
        stored = self._stored_split("train")
        names, labels = self._names, self._labels(stored)
        if len(names) < 2:
            raise DataError(f"{self.name}: {len(names)} class, at least 2 are needed")
        if absent := set(range(len(names))) - set(labels.tolist()):
            named = listed([repr(names[label]) for label in sorted(absent)])
            raise DataError(
                f"{self.name}: no images of {named} to train on",
                hint=None if self._kind.has_names() else "labels count from 0, and each of them needs images",
            )

    def _renumbered(self, dataset: Dataset) -> Dataset:
        """The same images with the labels of the model's classes, if those are known and these are from files."""
        names, numbers = self._matched(self._names if self.is_path else dataset.classes)
        if numbers is None:
            return dataset if names == dataset.classes else replace(dataset, classes=names)
        return replace(dataset, labels=torch.tensor(numbers)[dataset.labels], classes=names)

    def _matched(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], list[int] | None]:
        """The classes that `names` are to be, and the new label of each; None if labels stay as they are."""
        known = self.model_classes
        if not known or names == known or not self.is_path:
            return names, None
        if not self._kind.has_names():
            if all(name.isdecimal() for name in known):
                return known, self._matched_numbers(known)
            if len(names) > len(known):
                raise DataError(f"{self.name}: labels up to {len(names) - 1}, but the model has {len(known)} classes")
            return known, None
        if unknown := [name for name in names if name not in known]:
            raise DataError(
                f"{self._kind.origin(unknown[0])}: not among the model's classes: {listed(unknown)}",
                hint=hint_at_near(unknown[0], known, f"the model's classes are: {listed(known)}"),
            )
        return known, [known.index(name) for name in names]

    def _matched_numbers(self, known: tuple[str, ...]) -> list[int]:
        """The new label of each number, among classes that are numbers in any order; -1 of one that no image has."""
        found = torch.cat([self._labels(split) for split in self.stored]).unique().tolist()
        places = {int(name): place for place, name in enumerate(known)}
        if unknown := [label for label in found if label not in places]:
            raise DataError(
                f"{self.name}: label {unknown[0]} is not among the model's classes",
                hint=f"the model's classes are: {listed(known)}",
            )
        return [places.get(label, -1) for label in range(found[-1] + 1)]

    @property
    def _names(self) -> tuple[str, ...]:
        known = self._kind.known_classes()
        return self._read(self.stored[0]).classes if known is None else known

    @cached_property
    def _kind(self) -> DataKind:
        if self.arrays is not None:
            return ArrayData(self.name, seed=self.seed, given=self.arrays)
        return _kind_of(self.name)(self.name, seed=self.seed, data_dir=self.folder)

    def _labels(self, stored: Stored) -> Tensor:
        labels = self._kind.labels(stored)
        return self._read(stored).labels if labels is None else labels

    def _read(self, stored: Stored) -> Dataset:
        if stored not in self._datasets:
            self._datasets[stored] = self._kind.read(stored)
        return self._datasets[stored]

    @cached_property
    def _datasets(self) -> dict[Stored, Dataset]:
        return {}


def drew_val(description: Mapping[str, Any]) -> bool:
    """Whether validation images were drawn from train, where a data set of files that has none of its own is described,
    or may have been: version 0.2 and earlier ones always drew them.
    """
    return "arrays" not in description and not {"val", "all"} & _digests(description).keys()


def _digests(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fingerprints of the stored splits in one of `Source.describe`'s descriptions."""
    found = description.get("files", description.get("arrays"))
    return found if isinstance(found, dict) else {}
