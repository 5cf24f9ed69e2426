"""How pictures lie on a disk: `LAYOUTS` has each way, recognised by one function and listed by another.

All ways lead to the same structure, `Layout`, and to the same order of the same pictures: class by class.
"""

import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

from cifarctl.data.class_names import hint_at_near
from cifarctl.data.fingerprint import listed
from cifarctl.data.images import ImageFiles, find_images
from cifarctl.data.kind import Stored
from cifarctl.data.labelled import label_list, labelled_folders, remarks_on_lists
from cifarctl.data.listing import EXPECTED, SPLIT_NAMES, Layout, Listing, images_in, subfolders, unused_folders, visible
from cifarctl.data.own_runs import is_own, is_run
from cifarctl.errors import DataError

# Other common names of a folder of images that are not trained on.
_OTHER_TEST_NAMES = ("dev", "eval", "holdout")


def find_layout(root: Path) -> Layout:
    """The pictures at `root`, whichever layout they have. Raises DataError if none fits."""
    if root.suffix.lower() == ".csv" and not root.is_dir():
        return label_list(root)
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
    others = {name.lower(): name for name in subfolders(root)[0] if name.lower() not in SPLIT_NAMES}
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
    for path in visible(root):
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
    return any(not folder.is_dir() or _class_names(folder)[0] for folder in asked)


def _folders_of_splits(root: Path, folders: Mapping[Stored, Path]) -> Layout:
    """DIR/{train,val,test}/CLASS/*"""
    # The training images say which classes there are; without them, all others do.
    known = [folders["train"]] if "train" in folders else folders.values()
    classes = tuple(sorted({name for folder in known for name in _class_names(folder)[0]}))
    if "train" in folders and len(classes) < 2:
        raise DataError(
            f"{folders['train']}: {len(classes)} class{'' if len(classes) == 1 else 'es'}, at least 2 are needed",
            hint=EXPECTED,
        )
    splits: dict[Stored, Callable[[], Listing]] = {
        split: partial(_folders_of_classes, folder, classes, folders.get("train", folder))
        for split, folder in folders.items()
    }
    lists = remarks_on_lists(root, list(folders.values()), classes)
    return Layout(classes, splits, unused_folders(root, folders) + lists)


def _class_folders(root: Path, _: Mapping[Stored, Path]) -> Layout:
    """DIR/CLASS/*"""
    classes, loose = _class_names(root)
    if not classes:
        hint = EXPECTED
        data = [path.name for path in visible(root) if path.suffix.lower() in (".csv", ".npz", ".npy")]
        if loose and data:
            hint = f"`data` takes a file of images or labels too: did you mean {root / data[0]}?"
        raise DataError(f"{root / 'train'}: no such folder, and {root} has no folders of classes either", hint=hint)
    inner = [set(subfolders(root / name)[0]) for name in classes]
    nested = all(inner) and not any(images_in(root / name) for name in classes)
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
    lists = remarks_on_lists(root, [root], classes)
    return Layout(tuple(classes), {"all": partial(_folders_of_classes, root, tuple(classes), root)}, lists)


# Each is asked in this order, with the folders that are named as splits. A file, a list of labels, needs no question.
LAYOUTS: tuple[tuple[Callable[[Mapping[Stored, Path]], bool], Callable[[Path, Mapping[Stored, Path]], Layout]], ...] = (
    (_has_class_folders, _folders_of_splits),
    (bool, labelled_folders),
    (lambda _: True, _class_folders),
)


def _folders_of_classes(folder: Path, classes: tuple[str, ...], reference: Path) -> Listing:
    """The images under folder/CLASS. reference: the folder that has the classes; there, each must have images."""
    names, loose = _class_names(folder)
    if unknown := [name for name in names if name not in classes]:
        raise DataError(
            f"{folder}: not among the classes in {reference}: {listed([repr(name) for name in unknown])}",
            hint=hint_at_near(unknown[0], classes, "each folder there must have one of its name in train"),
        )
    files: list[tuple[Path, int]] = []
    ignored, absent = ImageFiles([]), []
    runs = {folder / name for name in subfolders(folder)[0] if name not in names}
    for label, name in enumerate(classes):
        search = find_images(folder / name) if name in names else ImageFiles([])
        images = list(search)
        runs |= {parent for parent in {path.parent for path in images} if is_run(parent)}
        found = [(path, label) for path in images if path.parent not in runs]
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
    if runs:
        own = listed(sorted(run.relative_to(folder).as_posix() for run in runs))
        remarks.append(f"{own} left out: cifarctl's own runs, no images of a class")
    if absent:
        remarks.append(f"no images of {listed(absent)}")
    return Listing(folder, files, [f"{folder}: {remark}" for remark in remarks])


def _class_names(folder: Path) -> tuple[list[str], list[str]]:
    """As `subfolders`, without the folders of cifarctl's own runs, which are no classes."""
    names, loose = subfolders(folder)
    return [name for name in names if not is_own(folder / name)], loose
