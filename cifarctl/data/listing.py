"""What every layout of pictures leads to, `Layout`, and what lies in one folder."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from cifarctl.data.fingerprint import listed
from cifarctl.data.image_formats import FORMAT_OF_SUFFIX
from cifarctl.data.images import SKIPPED
from cifarctl.data.kind import Stored
from cifarctl.errors import DataError

# The names of splits, in lower case.
SPLIT_NAMES: dict[str, Stored] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
EXPECTED = "expected DIR/{train,test}/CLASS/*.png or DIR/CLASS/*.png (or .jpg, …)"


@dataclass(frozen=True)
class Listing:
    """One split's image files with their labels, class by class.

    root: the folder that a fingerprint takes their names under. tells_classes: whether those names say the classes.
    remarks: what is not used, in words.
    """

    root: Path
    files: list[tuple[Path, int]]
    remarks: list[str] = field(default_factory=list)
    tells_classes: bool = True


@dataclass(frozen=True)
class Layout:
    """What is at a path. splits: a function that lists each split that is there. origins: where a class is named, if
    not in a folder of its name. unused: what is in no split, in words.
    """

    classes: tuple[str, ...]
    splits: Mapping[Stored, Callable[[], Listing]]
    unused: list[str] = field(default_factory=list)
    origins: Mapping[str, str] = field(default_factory=dict)


def images_in(folder: Path) -> list[Path]:
    """The images directly in `folder`, sorted."""
    return [path for path in visible(folder) if path.suffix.lower() in FORMAT_OF_SUFFIX and not path.is_dir()]


def visible(folder: Path) -> list[Path]:
    """What is in `folder`, sorted, without hidden entries. Raises DataError if it cannot be listed."""
    try:
        entries: Iterable[Path] = folder.iterdir()
        return sorted(each for each in entries if not each.name.startswith(".") and each.name not in SKIPPED)
    except NotADirectoryError:
        raise DataError(f"{folder}: not a folder", hint=EXPECTED) from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def subfolders(folder: Path) -> tuple[list[str], list[str]]:
    """The sorted names of the folders in `folder`, and of the files beside them, both without hidden ones."""
    entries = visible(folder)
    try:
        names = [each.name for each in entries if each.is_dir()]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    return names, sorted({each.name for each in entries}.difference(names))


def unused_folders(root: Path, folders: Mapping[Stored, Path]) -> list[str]:
    """A remark on the folders in `root` that are not a split, if there are any."""
    used = {folder.name for folder in folders.values()}
    names = [name for name in subfolders(root)[0] if name not in used]
    splits = [folders[split].name for split in get_args(Stored) if split in folders]
    text = f"{' and '.join([', '.join(splits[:-1]), splits[-1]]) if len(splits) > 1 else splits[0]}"
    also = "" if "val" in folders else ", and validation images are drawn from train"
    verb, those = ("are" if len(names) > 1 else "is"), ("are" if len(splits) > 1 else "is")
    return [f"{root}: {listed(names)} {verb} not used: {text} {those}{also}"] if names else []
