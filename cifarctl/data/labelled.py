"""Layouts whose labels stand in a list: a CSV file alone, or beside folders of images."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cifarctl.data.class_names import hint_at_near
from cifarctl.data.fingerprint import absolute, listed
from cifarctl.data.images import find_images
from cifarctl.data.kind import Stored
from cifarctl.data.label_list import LabelList, Row, find_listed, read_label_list
from cifarctl.data.listing import (
    EXPECTED,
    SPLIT_NAMES,
    Layout,
    Listing,
    images_in,
    subfolders,
    unused_folders,
    visible,
)
from cifarctl.errors import DataError

# The list of all images, and those of one folder's; {} is the name of that folder.
_LIST_OF_ALL = "labels.csv"
_LISTS_OF_ONE = ("{}labels.csv", "{}_labels.csv", "{}-labels.csv", "{}.csv")


@dataclass(frozen=True)
class _Listed:
    """An image in the list at `path`."""

    split: Stored
    image: Path
    row: Row
    path: Path


def label_list(path: Path) -> Layout:
    """A CSV file with the columns path, label and, perhaps, split."""
    given = read_label_list(path, SPLIT_NAMES)
    _find_classes([(row.split or "all", row, path) for row in given.rows])  # an error in a label before one in a path
    images = find_listed(given.rows, path, path.parent)
    found = [_Listed(row.split or "all", image, row, path) for image, row in zip(images, given.rows, strict=True)]
    unused = _columns_unused(path, given)
    if given.rows[0].split is None:
        parents = {image.parent for image in images if image.is_relative_to(path.parent)}
        tops = {parts[0] for parent in parents if (parts := parent.relative_to(path.parent).parts)}
        names = sorted(name for name in tops if name.lower() in SPLIT_NAMES)
        if len(names) > 1:
            unused.append(f"{path}: no column split, so the images in {' and '.join(names)} are taken together")
    return _of_listed(found, unused)


def labelled_folders(root: Path, folders: Mapping[Stored, Path]) -> Layout:
    """DIR/{train,val,test}/* with lists of labels beside the folders: Kaggle's layout."""
    lists = _find_lists(root, folders)
    if not lists or ("train" in folders and "train" not in lists):
        folder = folders.get("train") or next(iter(folders.values()))
        raise DataError(
            f"{folder}: 0 classes, at least 2 are needed",
            hint=f"{EXPECTED}; a class may not be called {folder.name}"
            if len(subfolders(root)[0]) > len(folders)
            else f"{EXPECTED}, or DIR/train/*.png beside a list of labels, DIR/trainLabels.csv or DIR/labels.csv",
        )
    unused = unused_folders(root, folders)
    found: list[_Listed] = []
    known: dict[str, tuple[Path, int]] = {}
    for split, path in lists.items():
        given = read_label_list(path, SPLIT_NAMES, needs_labels=split == "train")
        images = find_listed(given.rows, path, folders[split], folders, known)
        found += _placed(images, given.rows, path, split, folders)
        unused += _columns_unused(path, given)
    for folder in folders.values():
        images = images_in(folder)
        unlisted = [image for image in images if absolute(image) not in known]
        names = dict.fromkeys(each.path.name for each in found if each.image.parent == folder)
        count = f"{len(unlisted):,} image{'s' if len(unlisted) > 1 else ''}"
        if not (images or any(Path(name).is_relative_to(absolute(folder)) for name in known)):
            unused.append(f"{folder}: ignored, since it has no images directly in it")
        elif unlisted and len(unlisted) == len(images):
            unused.append(f"{folder}: {count} without labels ignored, for example {unlisted[0].name}")
        elif unlisted:
            unused.append(
                f"{folder}: {count} that {listed(list(names))} does not list ignored, for example {unlisted[0].name}"
            )
    return _of_listed(found, unused)


def remarks_on_lists(root: Path, folders: Sequence[Path], classes: Sequence[str]) -> list[str]:
    """What to know of lists of labels beside `folders`, in `root`, that hold the folders of `classes`.

    Raises DataError if one says other classes than the folders, so that it is not known which are meant.
    """
    paths: dict[Path, None] = {}
    for folder in folders:
        for place in (folder, root):
            paths |= dict.fromkeys(_lists_of(place, folder, of_all=True))
        if folder == root:
            with suppress(DataError):  # a folder that nobody asked to read
                paths |= dict.fromkeys(_lists_of(Path(absolute(root)).parent, root, of_all=False))
    if not paths:
        return []
    class_of = _classes_of_files(folders, classes)
    remarks = []
    for path in paths:
        is_inside = path.parent in (root, *folders)
        try:
            rows = read_label_list(path, needs_labels=False).rows
        except DataError as error:
            remarks += [f"{error}: not used, and not compared with the folders' classes"] if is_inside else []
            continue
        if _agree(rows, path, (*folders, root, path.parent), class_of):
            remarks.append(f"{path}: not used, since the folders say the same classes")
        elif rows and is_inside:
            remarks.append(f"{path}: not used, since it names no image in the folders of classes")
    return remarks


def _classes_of_files(folders: Sequence[Path], classes: Sequence[str]) -> dict[str, set[str]]:
    """The folders of classes that each image lies in: by absolute path and by name, with and without the suffix."""
    class_of: dict[str, set[str]] = {}
    for folder in folders:
        for name in classes:
            for image in find_images(folder / name) if (folder / name).is_dir() else ():
                file = absolute(image)
                for key in (file, os.path.splitext(file)[0], image.name, image.stem):  # noqa: PTH122 (faster)
                    class_of.setdefault(key, set()).add(name)
    return class_of


def _agree(rows: Sequence[Row], path: Path, bases: Iterable[Path], class_of: Mapping[str, set[str]]) -> bool:
    """Whether the list at `path` names images in folders of classes. Raises DataError if their labels are no other
    names for those folders.
    """
    places = dict.fromkeys(absolute(base) for base in bases)
    label_of: dict[str, str] = {}
    folder_of: dict[str, str] = {}
    is_about_them = False
    for row in rows:
        files = (os.path.normpath(os.path.join(base, row.path)) for base in places)  # noqa: PTH118 (faster)
        found = next((class_of[key] for key in (*files, row.path) if key in class_of), set())
        is_about_them |= bool(found)
        if len(found) > 1 and row.label in found:
            continue  # files of one name in several folders, and the list does not say which is meant
        for name in found:
            same = label_of.setdefault(name, row.label) == row.label and folder_of.setdefault(row.label, name) == name
            if len(found) > 1 or not same:
                raise DataError(
                    f"{path}, line {row.line}: {row.path} is {row.label!r}, and it lies in the folder {name}: which "
                    "says the classes, the list or the folders?",
                    hint=f"`data` {path} takes the list; move it elsewhere to take the folders as classes",
                )
    return is_about_them


def _find_lists(root: Path, folders: Mapping[Stored, Path]) -> dict[Stored, Path]:
    """The list of each split's folder that has one. Raises DataError if two could be it."""
    lists: dict[Stored, Path] = {}
    for split, folder in folders.items():
        candidates = list(_lists_of(root, folder, of_all=split == "train"))
        if len(candidates) > 1:
            raise DataError(
                f"{root}: {listed([each.name for each in candidates])}: which has the labels of {split}?",
                hint="rename or remove the others",
            )
        if candidates:
            lists[split] = candidates[0]
    return lists


def _lists_of(place: Path, folder: Path, *, of_all: bool) -> Iterator[Path]:
    """The files in `place` that are named as lists of the labels of `folder`. of_all: or as those of all folders."""
    files = {path.name.lower(): path for path in visible(place) if path.suffix.lower() == ".csv"}
    folder_name = Path(absolute(folder)).name.lower()
    for name in (*(each.format(folder_name) for each in _LISTS_OF_ONE), *([_LIST_OF_ALL] if of_all else [])):
        if name in files:
            yield files[name]


def _placed(
    images: Sequence[Path], rows: Sequence[Row], path: Path, split: Stored, folders: Mapping[Stored, Path]
) -> Iterator[_Listed]:
    """The images of the list at `path`, by name that of `split`, each in the split that its row says, or else the
    folder that it lies in. Raises DataError, which names the line, if these contradict each other.
    """
    places = [(each, absolute(folder)) for each, folder in folders.items()]
    where: dict[Path, Stored | None] = {}  # by folder, which are few
    for image, row in zip(images, rows, strict=True):
        if image.parent not in where:
            parent = Path(absolute(image.parent))
            where[image.parent] = next((each for each, folder in places if parent.is_relative_to(folder)), None)
        lies = where[image.parent]
        said = row.split or (split if path.name.lower() != _LIST_OF_ALL else None)
        # Without a folder of their own, the images of a split lie among those of train.
        if lies not in (None, said) and said is not None and (lies != "train" or said in folders):
            raise DataError(
                f"{path}, line {row.line}: {row.path} lies in {folders[lies].name}, but the "
                f"{'column split' if row.split else 'name of the list'} says {said}",
                hint="move the image, or correct the list",
            )
        yield _Listed(said or lies or split, image, row, path)


def _columns_unused(path: Path, given: LabelList) -> list[str]:
    names = given.unused
    return [f"{path}: column{'s' if len(names) > 1 else ''} not used: {listed(names)}"] if names else []


def _find_classes(rows: Sequence[tuple[Stored, Row, Path]]) -> tuple[dict[str, int], dict[str, str]]:
    """The number of each class, by name, and where it is named: of rows of lists, each with its split and its list.

    The training images say which classes there are; without them, all others do. Raises DataError if another is named.
    """
    names = {row.label for split, row, _ in rows if split == "train"} or {row.label for _, row, _ in rows}
    labels = {name: label for label, name in enumerate(sorted(names))}
    origins: dict[str, str] = {}
    for _, row, path in rows:
        origins.setdefault(row.label, f"{path}, line {row.line}")
        if row.label not in labels:
            raise DataError(
                f"{origins[row.label]}: {row.label!r} is no class of the training images",
                hint=hint_at_near(row.label, labels, f"they are: {listed(list(labels))}"),
            )
    return labels, origins


def _of_listed(found: Sequence[_Listed], unused: list[str]) -> Layout:
    """The layout of images that lists name."""
    labels, origins = _find_classes([(each.split, each.row, each.path) for each in found])
    splits: dict[Stored, Callable[[], Listing]] = {}
    for split in dict.fromkeys(each.split for each in found):
        of_split = [each for each in found if each.split == split]
        path = of_split[0].path
        files = [(each.image, labels[each.row.label]) for each in of_split]
        files.sort(key=lambda file: (file[1], file[0].parts))
        absent = sorted(labels.keys() - {each.row.label for each in of_split})
        remarks = [f"{path}: no images of {listed(absent)} in {split}"] if absent else []
        splits[split] = partial(Listing, path.parent, files, remarks, tells_classes=False)
    return Layout(tuple(labels), splits, unused, origins)
