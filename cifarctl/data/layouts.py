"""How pictures lie on a disk: `LAYOUTS` has each way, recognised by one function and listed by another.

All ways lead to the same structure, `Layout`, and to the same order of the same pictures: class by class.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast, get_args

from cifarctl.data.class_names import hint_at_near
from cifarctl.data.fingerprint import listed
from cifarctl.data.image_formats import FORMAT_OF_SUFFIX
from cifarctl.data.images import ImageFiles, find_images
from cifarctl.data.kind import Stored
from cifarctl.data.label_list import LabelList, Row, find_listed, read_label_list
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
# Other common names of a folder of images that are not trained on.
_OTHER_TEST_NAMES = ("dev", "eval", "holdout")
# Of the file beside a folder of images that has their labels; {} is the name of that folder.
_LABEL_LISTS = ("{}labels.csv", "{}_labels.csv", "{}-labels.csv", "{}.csv", "labels.csv")


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


def find_layout(root: Path) -> Layout:
    """The pictures at `root`, whichever layout they have. Raises DataError if none fits."""
    if root.suffix.lower() == ".csv" and not root.is_dir():
        return _label_list(root)
    if not root.is_dir():
        if root.exists():
            raise DataError(
                f"{root}: not a folder", hint="`data` takes files too: a list of images (.csv), or arrays (.npz, .npy)"
            )
        raise DataError(
            f"{root}: {'not a folder' if os.path.lexists(root) else 'no such folder'}",
            hint="`data` takes cifar10, cifar100, synthetic, or the path of your own pictures",
        )
    found = _split_folders(root)
    return next(make(root, found) for fits, make in LAYOUTS if fits(found))


def missing_split(root: Path, split: str) -> DataError:
    """The error if `split` is needed and there is none."""
    if not root.is_dir():
        return DataError(f"{root}: no image is for {split}", hint="a column named split says train, val or test")
    if folder := _split_folders(root).get(cast("Stored", split)):
        return DataError(f"{folder}: its images have no labels", hint=f"{EXPECTED}, or a list of labels beside it")
    folder = root / split
    others = {name.lower(): name for name in _subfolders(root)[0] if name.lower() not in SPLIT_NAMES}
    more = [name for name in _OTHER_TEST_NAMES if split == "test" and name in others]
    if near := get_close_matches(split, others) or more:
        hint = f"did you mean {others[near[0]]}? Rename it to {split}; {EXPECTED}"
    elif split == "train":
        hint = f"{EXPECTED}: most of each class's images go to train, a fifth or so to test"
    else:
        hint = f"{EXPECTED}: move a fifth or so of each class's images from train to {split}"
    return DataError(f"{folder}: no such folder", hint=hint)


def _split_folders(root: Path) -> dict[Stored, Path]:
    """The folders in `root` that are named as splits. Raises DataError if two are the same split's."""
    found: dict[Stored, Path] = {}
    for path in _visible(root):
        split = SPLIT_NAMES.get(path.name.lower())
        if not split or (not path.is_dir() and path.name != split):
            continue
        if split in found:
            names = f"{found[split].name} and {path.name}"
            raise DataError(
                f"{root}: {names}: two folders of the same split, {split}", hint="rename or remove one of them"
            )
        found[split] = path
    return found


def _has_class_folders(folders: Mapping[Stored, Path]) -> bool:
    """Whether the folder that is named as the training split has folders, which are classes; without it, any other."""
    asked = [folders["train"]] if "train" in folders else folders.values()
    return any(not folder.is_dir() or _subfolders(folder)[0] for folder in asked)


def _folders_of_splits(root: Path, folders: Mapping[Stored, Path]) -> Layout:
    """DIR/{train,val,test}/CLASS/*"""
    # The training images say which classes there are; without them, all others do.
    known = [folders["train"]] if "train" in folders else folders.values()
    classes = tuple(sorted({name for folder in known for name in _subfolders(folder)[0]}))
    if "train" in folders and len(classes) < 2:
        raise DataError(
            f"{folders['train']}: {len(classes)} class{'' if len(classes) == 1 else 'es'}, at least 2 are needed",
            hint=EXPECTED,
        )
    splits: dict[Stored, Callable[[], Listing]] = {
        split: partial(_folders_of_classes, folder, classes, folders.get("train", folder))
        for split, folder in folders.items()
    }
    return Layout(classes, splits, _unused(root, folders))


def _labelled_folders(root: Path, folders: Mapping[Stored, Path]) -> Layout:
    """DIR/{train,val,test}/* with lists of labels beside the folders: Kaggle's layout."""
    files = {path.name.lower(): path for path in _visible(root) if path.suffix.lower() == ".csv"}
    lists: dict[Stored, Path] = {}
    for split, folder in folders.items():
        names = _LABEL_LISTS if split == "train" else _LABEL_LISTS[:-1]
        candidates = [files[name] for each in names if (name := each.format(folder.name.lower())) in files]
        if len(candidates) > 1:
            raise DataError(
                f"{root}: {listed([each.name for each in candidates])}: which has the labels of {split}?",
                hint="rename or remove the others",
            )
        if candidates:
            lists[split] = candidates[0]
    if not lists or ("train" in folders and "train" not in lists):
        folder = folders.get("train") or next(iter(folders.values()))
        raise DataError(
            f"{folder}: 0 classes, at least 2 are needed",
            hint=f"{EXPECTED}; a class may not be called {folder.name}"
            if len(_subfolders(root)[0]) > len(folders)
            else f"{EXPECTED}, or DIR/train/*.png beside a list of labels, DIR/trainLabels.csv or DIR/labels.csv",
        )
    rows: dict[Stored, list[Row]] = {}
    unused = _unused(root, folders)
    for split, folder in folders.items():
        found = read_label_list(lists[split], needs_labels=split == "train") if split in lists else LabelList()
        if found.rows:
            rows[split] = found.rows
            unused += _columns_unused(lists[split], found)
        elif not (images := _images(folder)):
            unused.append(f"{folder}: ignored, since it has no images directly in it")
        else:
            count = f"{len(images):,} image{'s' if len(images) > 1 else ''} without labels"
            unused.append(f"{folder}: {count} ignored, for example {images[0].name}")
    return _of_rows(rows, folders, lists, unused)


def _label_list(path: Path) -> Layout:
    """A CSV file with the columns path, label and, perhaps, split."""
    rows: dict[Stored, list[Row]] = {}
    given = read_label_list(path, splits=SPLIT_NAMES)
    for row in given.rows:
        rows.setdefault(row.split or "all", []).append(row)
    return _of_rows(rows, dict.fromkeys(rows, path.parent), dict.fromkeys(rows, path), _columns_unused(path, given))


def _columns_unused(path: Path, given: LabelList) -> list[str]:
    names = given.unused
    return [f"{path}: column{'s' if len(names) > 1 else ''} not used: {listed(names)}"] if names else []


def _of_rows(
    rows: Mapping[Stored, list[Row]],
    folders: Mapping[Stored, Path],
    lists: Mapping[Stored, Path],
    unused: list[str],
) -> Layout:
    """The layout of images that lists name. folders: where each split's images lie."""
    known = rows.get("train") or [row for each in rows.values() for row in each]
    labels = {name: label for label, name in enumerate(sorted({row.label for row in known}))}
    origins: dict[str, str] = {}
    for split, each in rows.items():
        for row in each:
            origins.setdefault(row.label, f"{lists[split]}, line {row.line}")
            if row.label not in labels:
                raise DataError(
                    f"{origins[row.label]}: {row.label!r} is no class of the training images",
                    hint=hint_at_near(row.label, labels, f"they are: {listed(list(labels))}"),
                )
    splits: dict[Stored, Callable[[], Listing]] = {}
    for path in dict.fromkeys(lists[split] for split in rows):  # at once, to notice an image that is in two splits
        of_list = [(split, row) for split, each in rows.items() if lists[split] == path for row in each]
        folder = folders[of_list[0][0]]
        images = find_listed([row for _, row in of_list], path, folder)
        if folder != path.parent and (unlisted := sorted({*_images(folder)}.difference(images))):
            count = f"{len(unlisted):,} image{'s' if len(unlisted) > 1 else ''}"
            unused.append(f"{folder}: {count} that {path.name} does not list ignored, for example {unlisted[0].name}")
        for split in dict.fromkeys(split for split, _ in of_list):
            files = [
                (image, labels[row.label])
                for image, (where, row) in zip(images, of_list, strict=True)
                if where == split
            ]
            files.sort(key=lambda file: (file[1], file[0].parts))
            absent = [name for name, label in labels.items() if label not in {found for _, found in files}]
            remarks = [f"{path}: no images of {listed(absent)} in {split}"] if absent else []
            splits[split] = partial(Listing, path.parent, files, remarks, tells_classes=False)
    return Layout(tuple(labels), splits, unused, origins)


def _class_folders(root: Path, _: Mapping[Stored, Path]) -> Layout:
    """DIR/CLASS/*"""
    classes, loose = _subfolders(root)
    if not classes:
        hint = EXPECTED
        data = [path.name for path in _visible(root) if path.suffix.lower() in (".csv", ".npz", ".npy")]
        if loose and data:
            hint = f"`data` takes a file of images or labels too: did you mean {root / data[0]}?"
        raise DataError(f"{root / 'train'}: no such folder, and {root} has no folders of classes either", hint=hint)
    inner = [set(_subfolders(root / name)[0]) for name in classes]
    nested = all(inner) and not any(_images(root / name) for name in classes)
    if nested and (len(inner) == 1 or any(first & second for first, second in pairwise(inner))):
        near = get_close_matches("train", {name.lower() for name in classes}, 1)
        raise (
            missing_split(root, "train")
            if near
            else DataError(
                f"{root}: {listed(classes)}: neither splits nor classes, since their images lie in folders in them",
                hint=f"did you mean {root / classes[0]}?" if len(inner) == 1 else EXPECTED,
            )
        )
    splits = [{SPLIT_NAMES.get(each.lower()) for each in names} - {None} for names in inner]
    if mixed := next((name for name, found in zip(classes, splits, strict=True) if len(found) > 1), None):
        raise DataError(
            f"{root / mixed}: holds folders named as splits, so it is not known which images are for test",
            hint=EXPECTED,
        )
    return Layout(tuple(classes), {"all": partial(_folders_of_classes, root, tuple(classes), root)})


# Each is asked in this order, with the folders that are named as splits. A file, a list of labels, needs no question.
LAYOUTS: tuple[tuple[Callable[[Mapping[Stored, Path]], bool], Callable[[Path, Mapping[Stored, Path]], Layout]], ...] = (
    (_has_class_folders, _folders_of_splits),
    (bool, _labelled_folders),
    (lambda _: True, _class_folders),
)


def _folders_of_classes(folder: Path, classes: tuple[str, ...], reference: Path) -> Listing:
    """The images under folder/CLASS. reference: the folder that has the classes; there, each must have images."""
    names, loose = _subfolders(folder)
    if unknown := [name for name in names if name not in classes]:
        raise DataError(
            f"{folder}: not among the classes in {reference}: {listed([repr(name) for name in unknown])}",
            hint=hint_at_near(unknown[0], classes, "each folder there must have one of its name in train"),
        )
    files: list[tuple[Path, int]] = []
    ignored, absent = ImageFiles([]), []
    for label, name in enumerate(classes):
        search = find_images(folder / name) if name in names else ImageFiles([])
        found = [(path, label) for path in search]
        ignored.ignored += search.ignored
        ignored.example = ignored.example or search.example
        if not found and folder == reference and name in names:
            also = f" ({text})" if (text := search.describe_ignored()) else ""
            raise DataError(
                f"{folder / name}: no images in it{also}",
                hint="each folder here is a class: remove it, or put images into it (others converted to PNG)"
                if search.ignored
                else "each folder here is a class: remove it, or put images into it",
            )
        if not found:
            absent.append(name)
        files += found
    if not files:
        also = f" ({listed(loose)} outside the classes' folders)" if loose else ""
        raise DataError(f"{folder}: no images in it{also}", hint=EXPECTED)
    remarks = []
    if ignored.example:
        remarks.append(f"{ignored.describe_ignored()}, for example {ignored.example.relative_to(folder)}")
    if loose:
        count = f"{len(loose):,} file{'s' if len(loose) > 1 else ''} outside the classes' folders"
        remarks.append(f"{count} ignored, for example {loose[0]}")
    if absent:
        remarks.append(f"no images of {listed(absent)}")
    return Listing(folder, files, [f"{folder}: {remark}" for remark in remarks])


def _unused(root: Path, folders: Mapping[Stored, Path]) -> list[str]:
    """A remark on the folders in `root` that are not a split, if there are any."""
    used = {folder.name for folder in folders.values()}
    names = [name for name in _subfolders(root)[0] if name not in used]
    splits = [folders[split].name for split in get_args(Stored) if split in folders]
    text = f"{' and '.join([', '.join(splits[:-1]), splits[-1]]) if len(splits) > 1 else splits[0]}"
    also = "" if "val" in folders else ", and validation images are drawn from train"
    verb, those = ("are" if len(names) > 1 else "is"), ("are" if len(splits) > 1 else "is")
    return [f"{root}: {listed(names)} {verb} not used: {text} {those}{also}"] if names else []


def _images(folder: Path) -> list[Path]:
    """The images directly in `folder`, sorted."""
    return [path for path in _visible(folder) if path.suffix.lower() in FORMAT_OF_SUFFIX and not path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """What is in `folder`, sorted, without hidden entries. Raises DataError if it cannot be listed."""
    try:
        entries: Iterable[Path] = folder.iterdir()
        return sorted(each for each in entries if not each.name.startswith(".") and each.name != "__MACOSX")
    except NotADirectoryError:
        raise DataError(f"{folder}: not a folder", hint=EXPECTED) from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def _subfolders(folder: Path) -> tuple[list[str], list[str]]:
    """The sorted names of the folders in `folder`, and of the files beside them, both without hidden ones."""
    entries = _visible(folder)
    try:
        names = [each.name for each in entries if each.is_dir()]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    return names, sorted({each.name for each in entries}.difference(names))
