"""A Python program's own arrays or tensors as a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarctl.data.array_images import HINT_WHITE, darkness
from cifarctl.data.dataset import Dataset
from cifarctl.data.fingerprint import content_fingerprint, listed
from cifarctl.data.kind import DataKind, Stored
from cifarctl.data.splits import draw_test
from cifarctl.errors import ArrayError, DataError

Array = Tensor | NDArray[Any]
Part = Array | tuple[Array, Array | Sequence[int]]
"""(images, labels); or images alone, for an autoencoder."""

# What stands for a name. No folder that anybody has is called so.
NAME = "<arrays>"
_SHAPES = "(N, 3, 32, 32) or (N, 32, 32, 3)"


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images and labels to train on and to measure with.

    train, val, test: (images, labels); or images alone, if there are no labels at all. images: uint8, or float in
    [0, 1], which is rounded to steps of 1/255; (N, 3, 32, 32) or (N, 32, 32, 3), RGB. labels: integers (N,) from 0.
    val and test are drawn from train if they are None: a tenth each, at most 2,000 images, in the proportions of the
    classes, by the seed. classes: their names, in the order of the labels; None names them "0", "1", …

    Raises ArrayError, a DataError and a ValueError, which says what is wrong with which array.
    """

    train: Part
    val: Part | None = None
    test: Part | None = None
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self.datasets  # noqa: B018 (it checks them)

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """The parts that were given, on the CPU. Without labels, all labels are 0 and there are no classes."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        given = {split: _separated(part, split) for split, part in parts.items() if part is not None}
        images = {split: _checked_images(part[0], split) for split, part in given.items()}
        unlabelled = [split for split, (_, labels) in given.items() if labels is None]
        if unlabelled:
            if len(unlabelled) < len(given) or self.classes is not None:
                raise ArrayError(
                    f"{unlabelled[0]}: images without labels", hint=f"give {unlabelled[0]}=(images, labels)"
                )
            return {split: _unlabelled(pixels) for split, pixels in images.items()}
        labels = {split: _checked_labels(part[1], len(images[split]), split) for split, part in given.items()}
        classes = _checked_classes(self.classes, labels)
        return {split: Dataset(images[split], labels[split], classes) for split in given}


class ArrayData(DataKind):
    """The kind of data set that has `arrays`. Subclasses may read them from elsewhere."""

    def __init__(self, name: str, *, seed: int = 0, data_dir: Path | None = None, given: Arrays | None = None) -> None:
        super().__init__(name, seed=seed, data_dir=data_dir)
        self._given = given

    @classmethod
    def recognises(cls, name: str) -> bool:
        """Whether `name` stands for arrays of a Python program."""
        return name == NAME

    @property
    def arrays(self) -> Arrays:
        """The arrays. Raises DataError if they must be given once more."""
        if self._given is None:
            raise DataError(
                f"{self.name}: a Python program's own arrays were trained on, and they are not stored with the model",
                hint="`data` takes them again, from Python, or names another data set",
            )
        return self._given

    def stored(self) -> tuple[Stored, ...]:
        """val alone need not have been given; then it is drawn from train. test is drawn here."""
        return ("train", "val", "test") if "val" in self.arrays.datasets else ("train", "test")

    def read(self, split: Stored) -> Dataset:
        """All images of the split."""
        return self._splits[split]

    def remarks(self, split: Stored) -> list[str]:
        """Whether the images of the split are nearly black."""
        dark, _ = darkness(self.read(split).images.numpy())
        return [f"{self.name}: {split} images: {dark}"] if dark else []

    def describe(self) -> dict[str, Any]:
        """The digests of the arrays' contents; that of the validation images, if they were given, is in train's."""
        train, val, test = (self._splits.get(split) for split in ("train", "val", "test"))
        assert train is not None
        assert test is not None
        if val is not None:
            images, labels = torch.cat((train.images, val.images)), torch.cat((train.labels, val.labels))
            train = Dataset(images, labels, train.classes)
        digests: dict[str, dict[str, Any]] = {"train": content_fingerprint(train), "test": content_fingerprint(test)}
        if val is not None:
            digests["train"]["val"] = len(val)
        return {"classes": list(train.classes), "arrays": digests}

    @cached_property
    def _splits(self) -> dict[str, Dataset]:
        given = self.arrays.datasets
        train, val, test = (given.get(split) for split in ("train", "val", "test"))
        assert train is not None
        if test is None:
            drawn = draw_test(train.labels, self.seed, keep=int(val is None))
            if drawn is None:
                n, classes = len(train), len(train.labels.unique())
                raise ArrayError(
                    f"{self.name}: {n} training images, {classes} classes: none can be held out for testing",
                    hint="give more images, or test images too",
                )
            train, test = (train.take(indices) for indices in drawn)
        return {"train": train, "test": test} if val is None else {"train": train, "val": val, "test": test}


def labelled(part: Part, split: str, classes: Sequence[str] | None) -> Dataset:
    """One part alone, which need not have images of all classes. Raises ArrayError."""
    pixels, labels = _separated(part, split)
    images = _checked_images(pixels, split)
    if labels is None:
        return _unlabelled(images)
    checked = _checked_labels(labels, len(images), split)
    if classes:
        _check_in_range(checked, split, classes)
    return Dataset(images, checked, tuple(classes or map(str, checked.unique().tolist())))


def _unlabelled(images: Tensor) -> Dataset:
    return Dataset(images, torch.zeros(len(images), dtype=torch.int64), ())


def _separated(part: Part, split: str) -> tuple[Any, Any]:
    """(images, labels or None)."""
    if isinstance(part, Tensor | np.ndarray):
        return part, None
    if isinstance(part, tuple | list) and len(part) == 2:
        return part[0], part[1]
    raise ArrayError(f"{split}: {type(part).__name__}, not images or (images, labels)")


def _checked_images(images: Any, split: str) -> Tensor:
    """uint8 (N, 3, 32, 32), contiguous, on the CPU."""
    if not isinstance(images, Tensor | np.ndarray):
        raise ArrayError(f"{split} images: {type(images).__name__}, not a NumPy array or a tensor")
    kind = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
    is_float = images.is_floating_point() if isinstance(images, Tensor) else images.dtype.kind == "f"
    if not is_float and images.dtype not in (torch.uint8, np.dtype(np.uint8)):
        raise ArrayError(f"{split} images: {kind}, not uint8 or float")
    if tuple(images.shape[1:]) not in ((3, 32, 32), (32, 32, 3)):
        raise ArrayError(f"{split} images: {kind}, not {_SHAPES}", hint="scale the images to 32×32 pixels in RGB")
    if not len(images):
        raise ArrayError(f"{split} images: none, {kind}")
    if isinstance(images, np.ndarray):
        # In the machine's byte order; and a copy where torch could not use the memory.
        images = np.require(images, images.dtype.newbyteorder("="), ["C", "W"])
        if is_float and images.dtype.itemsize > 8:
            images = images.astype(np.float64)
    tensor = torch.as_tensor(images).detach().cpu()
    if is_float:
        if not torch.isfinite(tensor).all():
            raise ArrayError(f"{split} images: NaN or infinite values")
        low, high = tensor.min().item(), tensor.max().item()
        if low < 0 or high > 1:
            raise ArrayError(
                f"{split} images: float values from {low:.4g} to {high:.4g}, not from 0 to 1",
                hint="divide by 255, or undo the normalisation",
            )
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    elif (dark := darkness(tensor.numpy()))[1]:
        raise ArrayError(f"{split} images: {dark[0]}", hint=HINT_WHITE)
    return (tensor if tensor.shape[1] == 3 else tensor.permute(0, 3, 1, 2)).contiguous()


def _checked_labels(labels: Any, n: int, split: str) -> Tensor:
    """int64 (n,), on the CPU, none of them negative."""
    try:
        values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    except (TypeError, ValueError):  # rows of several lengths, for one
        raise ArrayError(f"{split} labels: {type(labels).__name__}, not {n} integers") from None
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise ArrayError(f"{split} labels: {values.dtype} {values.shape}, not integers ({n},)")
    if len(values) != n:
        raise ArrayError(f"{split}: {n} images and {len(values)} labels")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(np.int64).max:
        raise ArrayError(f"{split} labels: from {low} to {high}, and they count from 0")
    return torch.from_numpy(values.astype(np.int64))


def _checked_classes(classes: Sequence[str] | None, labels: dict[str, Tensor]) -> tuple[str, ...]:
    """The names of the classes, of each of which there is an image in train."""
    found = labels["train"].unique().tolist()
    if classes is None:
        if found[-1] != len(found) - 1:
            absent = next(label for label, each in enumerate(found) if label != each)
            raise ArrayError(f"train labels: from 0 to {found[-1]}, but none is {absent}", hint="count them from 0")
        classes = [str(label) for label in found]
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ArrayError("classes: not a sequence of names")
    if len(set(classes)) < len(classes):
        raise ArrayError("classes: two have the same name")
    if len(classes) < 2:
        raise ArrayError(f"train labels: {len(classes)} class, at least 2 are needed")
    for split, each in labels.items():
        _check_in_range(each, split, classes)
    if absent_names := [name for label, name in enumerate(classes) if label not in found]:
        raise ArrayError(f"train labels: no images of {listed(absent_names)}")
    return tuple(classes)


def _check_in_range(labels: Tensor, split: str, classes: Sequence[str]) -> None:
    if (high := int(labels.max())) >= len(classes):
        raise ArrayError(f"{split} labels: up to {high}, but there are {len(classes)} classes")
