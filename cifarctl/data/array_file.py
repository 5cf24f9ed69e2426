"""Arrays in files as a data set: an .npz file, or an .npy file of images with one of labels beside it."""

import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarctl.data.array_images import HINT_WHITE, darkness, to_rgb
from cifarctl.data.arrays import labelled
from cifarctl.data.dataset import Dataset
from cifarctl.data.fingerprint import listed
from cifarctl.data.kind import DataKind, Stored
from cifarctl.data.listing import SPLIT_NAMES
from cifarctl.errors import ArrayError, DataError

_ROLES = {
    **dict.fromkeys(("images", "image", "data", "x"), "images"),
    **dict.fromkeys(("labels", "label", "targets", "y"), "labels"),
}
# No label without a name is larger: as many names would fill the memory.
_MOST_CLASSES = 100_000
# In each file of CIFAR-10-C, the test images follow one another in five severities of one corruption.
_SEVERITIES = 5
_CLASSES = ("classes", "class_names", "label_names")
_EXPECTED = (
    "expected images and labels, or x_train, y_train, x_test and y_test: np.savez(FILE, images=…, labels=…), uint8 "
    "(N, H, W, 3), (N, 3, H, W) or, grey, (N, H, W), and integers (N,)"
)

# What reading a damaged file raises; NotImplementedError is an unknown compression, RuntimeError a password.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class _Named:
    """What a file holds. parts: by split, the arrays `images` and `labels`. unused: names."""

    parts: Mapping[Stored, Mapping[str, NDArray[Any]]]
    classes: tuple[str, ...]
    unused: tuple[str, ...] = ()


class ArrayFile(DataKind):
    """The data set in the file `name`. Its images stay in order within a class, and classes follow one another."""

    is_path = True

    @classmethod
    def recognises(cls, name: str) -> bool:
        """Whether `name` has the suffix of such a file and is no folder."""
        return Path(name).suffix.lower() in (".npz", ".npy") and not Path(name).is_dir()

    def __init__(self, name: str, *, seed: int = 0, data_dir: Path | None = None) -> None:
        super().__init__(name, seed=seed, data_dir=data_dir)
        self._changes: dict[Stored, str] = {}

    def stored(self) -> tuple[Stored, ...]:
        """The splits that the file names."""
        return tuple(self._datasets)

    def read(self, split: Stored) -> Dataset:
        """All images of the split."""
        return self._datasets[split]

    def labels(self, split: Stored) -> Tensor:
        """The labels of the split, int64 (N,)."""
        return self._datasets[split].labels

    def known_classes(self) -> tuple[str, ...]:
        """The names of the classes, or numbers."""
        return next(iter(self._datasets.values())).classes

    def has_names(self) -> bool:
        """Whether the file names its classes."""
        return bool(self._named.classes)

    def remarks(self, split: Stored) -> list[str]:
        """What was done to the images of the split, and whether they are nearly black, if anything."""
        self.read(split)
        return [f"{self.name}: {_name(split)}images: {self._changes[split]}"] if split in self._changes else []

    def unused(self) -> list[str]:
        """A remark on arrays that are not used."""
        names = self._named.unused
        remarks = [f"{self.name}: {listed(names)} {'are' if len(names) > 1 else 'is'} not used"] if names else []
        if "all" in self._named.parts and _repeats(self._named.parts["all"]["labels"]):
            remarks.append(
                f"{self.name}: its labels repeat {_SEVERITIES} times in the same order, as in CIFAR-10-C. If these are "
                "the same pictures, some are in training and in test, and the metrics are too good"
            )
        return remarks

    def describe(self) -> dict[str, Any]:
        """The digests of the arrays' contents."""
        return self._description

    @cached_property
    def _description(self) -> dict[str, Any]:
        return super().describe()

    @cached_property
    def _named(self) -> _Named:
        path = Path(self.name)
        return _npz(path) if path.suffix.lower() == ".npz" else _npy(path)

    @cached_property
    def _datasets(self) -> dict[Stored, Dataset]:
        named = self._named
        labels = {split: _checked_labels(part["labels"], self.name, split) for split, part in named.parts.items()}
        count = 1 + max(int(each.max(initial=0)) for each in labels.values())
        if count > _MOST_CLASSES and not named.classes:
            raise DataError(f"{self.name}: labels up to {count - 1}, but they count classes from 0", hint=_EXPECTED)
        classes = named.classes or tuple(str(label) for label in range(count))
        found: dict[Stored, Dataset] = {}
        for split, part in named.parts.items():
            if part["images"].dtype != np.uint8:
                raise DataError(
                    f"{self.name}: {_name(split)}images are {part['images'].dtype}, not uint8", hint=_EXPECTED
                )
            dark, is_wrong = darkness(part["images"])
            if is_wrong:
                raise DataError(f"{self.name}: {_name(split)}images: {dark}", hint=HINT_WHITE)
            images, change = to_rgb(part["images"])
            if change or dark:
                self._changes[split] = "; ".join(filter(None, (change, dark)))
            try:
                dataset = labelled((images, labels[split]), _name(split).strip() or "all", classes)
            except ArrayError as error:
                raise DataError(f"{self.name}: {error}", hint=_EXPECTED) from None
            # As folders have them, so that the same images are the same data set.
            found[split] = dataset.take(torch.argsort(dataset.labels, stable=True))
        return found


def _repeats(labels: NDArray[Any]) -> bool:
    """Whether the labels are a block of them several times, but not all classes in turn again and again."""
    blocks = labels.reshape(_SEVERITIES, -1) if len(labels) % _SEVERITIES == 0 else labels[None]
    classes = len(np.unique(labels))
    is_in_turn = (labels[classes:] == labels[:-classes]).all()
    return len(blocks) > 1 and blocks.shape[1] > 1 and bool((blocks == blocks[0]).all()) and not is_in_turn


def _name(split: Stored) -> str:
    return "" if split == "all" else f"{split} "


def _checked_labels(labels: NDArray[Any], name: str, split: Stored) -> NDArray[Any]:
    """Integers (N,); a column of them, (N, 1), is made so."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        hint = _EXPECTED
        if labels.ndim == 2 and labels.dtype.kind in "biuf" and labels.shape[1] > 1:
            hint = "of one-hot rows, labels.argmax(1) makes integers"
        elif labels.ndim == 1 and labels.dtype.kind in "US":
            hint = "of names, classes, labels = np.unique(labels, return_inverse=True) makes integers; save both"
        kind = f"{labels.dtype} {labels.shape}"
        raise DataError(f"{name}: {_name(split)}labels are {kind}, not integers (N,)", hint=hint)
    return labels


def _npz(path: Path) -> _Named:
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        raise DataError(f"{path}: one array, not an .npz file of several", hint=_EXPECTED)
    with loaded:
        parts: dict[Stored, dict[str, str]] = {}
        unused = []
        classes: tuple[str, ...] = ()
        for name in loaded.files:
            split, role = _meaning(name)
            if name.lower() in _CLASSES:
                classes = _class_names(_array(loaded, name, path), path)
            elif not role:
                unused.append(name)
            elif role in parts.setdefault(split, {}):
                raise _unclear(path, loaded.files)
            else:
                parts[split][role] = name
        if not parts or ("all" in parts and len(parts) > 1) or any(len(part) < 2 for part in parts.values()):
            raise _unclear(path, loaded.files)
        arrays = {
            split: {role: _array(loaded, name, path) for role, name in part.items()} for split, part in parts.items()
        }
    return _Named(arrays, classes, tuple(unused))


def _meaning(name: str) -> tuple[Stored, str | None]:
    """The split and the role of an array, by its name: "x_train" is ("train", "images"); None if it has no role."""
    words = re.split(r"[_\-. ]+", name.lower())
    roles = [_ROLES[word] for word in words if word in _ROLES]
    splits = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]
    if len(roles) != 1 or len(splits) > 1 or len(words) != 1 + len(splits):
        return "all", None
    return (splits[0] if splits else "all"), roles[0]


def _unclear(path: Path, names: list[str]) -> DataError:
    return DataError(f"{path}: which arrays are images and labels? It holds {listed(names) or 'none'}", hint=_EXPECTED)


def _npy(path: Path) -> _Named:
    candidates = [path.with_name(name) for name in _label_files(path.name)]
    labels = next((each for each in candidates if each.is_file() and each != path), None)
    images = _load(path)
    if not isinstance(images, np.ndarray):
        raise DataError(f"{path}: an .npz file; name it so")
    if images.ndim < 2:
        raise DataError(f"{path}: {images.dtype} {images.shape}, no images", hint="name the file of the images")
    if labels is None:
        raise DataError(
            f"{path}: no labels beside it",
            hint=f"expected one of: {listed(list(dict.fromkeys(each.name for each in candidates)))}",
        )
    names = path.with_name("classes.npy")
    classes = _class_names(_load(names), names) if names.is_file() else ()
    numbers = _load(labels)
    if not isinstance(numbers, np.ndarray):
        raise DataError(f"{labels}: an .npz file; name it so")
    return _Named({"all": {"images": images, "labels": numbers}}, classes)


def _label_files(name: str) -> list[str]:
    """What the file of labels of the images in the file `name` may be called."""
    changes = (("images", "labels"), ("image", "label"), ("data", "labels"), (r"(?<![a-z])x(?![a-z])", "y"))
    changed = [re.sub(old, new, name, flags=re.IGNORECASE) for old, new in changes]
    return [*dict.fromkeys(each for each in changed if each != name), "labels.npy"]


def _load(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():  # a FIFO could block forever
            raise DataError(f"{path}: not a regular file")
        with path.open("rb") as file:
            start = file.read(6)
        if start and not start.startswith((b"PK", np.lib.format.MAGIC_PREFIX)):
            raise DataError(f"{path}: neither an .npz nor an .npy file", hint=_EXPECTED)
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except _DAMAGED as error:
        raise _unreadable(path, error) from None


def _array(loaded: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        array = loaded[name]
    except (KeyError, *_DAMAGED) as error:
        raise _unreadable(Path(f"{path}: {name}"), error) from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {name}: no array", hint=_EXPECTED)
    return array


def _unreadable(path: Path, error: Exception) -> DataError:
    if "allow_pickle" in str(error) or "pickle" in str(error).lower():
        return DataError(f"{path}: Python objects (a pickle), which are never read", hint=_EXPECTED)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"{path}: cannot be read ({reason})")


def _class_names(array: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "US" or array.ndim != 1:
        raise DataError(f"{path}: classes are not a list of names", hint="save them as np.array([…]), without objects")
    try:
        names = tuple(each.decode() if isinstance(each, bytes) else str(each) for each in array.tolist())
    except UnicodeDecodeError:
        raise DataError(f"{path}: names of classes that are not UTF-8") from None
    if not all(map(str.strip, names)):
        raise DataError(f"{path}: a class has no name")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two classes have the same name")
    return names
