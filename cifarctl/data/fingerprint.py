"""Is this the data that a run or a model was trained on? What `Source.describe` says of two data sets, compared."""

import hashlib
import os
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarctl.version import __version__

if TYPE_CHECKING:
    from cifarctl.data.dataset import Dataset

_NAMES_SHOWN = 8
# How images differ that are as many, by the field of the description that says so.
_OTHER = {
    "files": "some have other names or sizes, or another order",
    "arrays": "some have other pixels or labels, or another order",
}
_ORIGINS = {
    "all": "drawn from all images",
    "train": "taken from the training images",
    "val": "a split of its own",
    "test": "a split of its own",
}


def fingerprint(root: Path, paths: Iterable[Path], labels: Iterable[str] = ()) -> dict[str, int | str]:
    """What tells the files at `paths` from others: how many they are, and the SHA-256 of their sizes and of their
    names under `root`, in this order, on which splits depend. Their contents are not read. Raises OSError.

    labels: of each file, if its name does not say its class. If a list has absolute paths, and its own path had `..`,
    "earlier_sha256" is what earlier versions noted.
    """
    root_path = Path(absolute(root))
    digest, earlier = hashlib.sha256(), hashlib.sha256()
    count, differs = 0, False
    for path in paths:
        known = name = path.relative_to(root) if path.is_relative_to(root) else path
        if name is path and (place := Path(absolute(path))).is_relative_to(root_path):
            name, differs = place.relative_to(root_path), True
        size = path.stat().st_size
        for each, called in ((digest, name), (earlier, known)):
            each.update(f"{size} {called.as_posix()}\0".encode("utf-8", "surrogateescape"))
        count += 1
    for label in labels:
        for each in (digest, earlier):
            each.update(f"{label}\0".encode("utf-8", "surrogateescape"))
    found: dict[str, int | str] = {"count": count, "sha256": digest.hexdigest()}
    return {**found, "earlier_sha256": earlier.hexdigest()} if differs else found


def is_same(before: object, after: object) -> bool:
    """Whether two fingerprints are of the same images. before: perhaps of an earlier version."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return before == after
    rest = [{key: value for key, value in each.items() if "sha256" not in key} for each in (before, after)]
    return rest[0] == rest[1] and before.get("sha256") in (after.get("sha256"), after.get("earlier_sha256"))


def absolute(path: Path) -> str:
    """The path as it is the same however it was typed, without `..`; links are not followed."""
    return os.path.abspath(path)  # noqa: PTH100 (pathlib keeps `..`)


def content_fingerprint(dataset: "Dataset") -> dict[str, int | str]:
    """What tells labelled images from others: how many they are, and the SHA-256 of their pixels and labels."""
    digest = hashlib.sha256()
    for tensor in (dataset.images, dataset.labels):
        digest.update(tensor.contiguous().numpy().data)
    return {"count": len(dataset), "sha256": digest.hexdigest()}


def pixel_fingerprint(datasets: Iterable["Dataset"]) -> dict[str, str]:
    """What tells decoded image files from others of the same names and sizes, and what decoded them: fingerprints of
    other decoders cannot be compared, since they may round differently.
    """
    import PIL  # which only image files need
    from PIL import features

    digest = hashlib.blake2b(digest_size=32)
    for dataset in datasets:
        digest.update(dataset.images.contiguous().numpy().data)
    libraries = f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}"
    decoder = f"cifarctl {__version__}, {libraries}, {platform.machine()}"
    return {"blake2b": digest.hexdigest(), "decoder": decoder}


def stored_split(split: str, stored: Collection[str]) -> str:
    """Which of the splits that are `stored` the images of train, val or test are taken from; "all" is a set without
    splits.
    """
    if "all" in stored:
        return "all"
    return "train" if split == "val" and "val" not in stored else split


def describe_changes(then: Mapping[str, Any], now: Mapping[str, Any], splits: Sequence[str]) -> list[str] | None:
    """How the data set `now` differs from `then`, in words; empty if it is the same.

    then, now: descriptions by `Source.describe`; of a folder's files, or of arrays, those of `splits` are compared.
    None if they cannot be compared: they are of different kinds, or `then` was written by a version that noted no
    fingerprint.
    """
    if {"archive_sha256"} <= then.keys() & now.keys() and then.get("name") == now["name"]:
        if then["archive_sha256"] == now["archive_sha256"]:
            return []
        found, expected = (str(each["archive_sha256"])[:8] for each in (now, then))
        return [f"its file was made from another archive (SHA-256 {found}…, not {expected}…)"]
    if then.get("name") == now["name"] == "synthetic":
        return []
    key = next((key for key in _OTHER if key in now), "")
    known, classes = then.get(key), then.get("classes")
    if not key or not isinstance(known, dict) or not isinstance(classes, list):
        return None
    changes = []
    for split in splits:
        origins = [_ORIGINS[stored_split(split, each)] for each in (known, now[key])]
        if origins[0] != origins[1]:
            changes.append(f"{split} was {origins[0]}, and now it is {origins[1]}")
    if changes:
        return changes
    if classes != now["classes"]:
        changes.append(f"classes: {class_differences(classes, 'then', now['classes'], 'now')}")
    for split in dict.fromkeys(stored_split(split, now[key]) for split in splits):
        before, after = known.get(split), now[key].get(split)
        counts = [each.get("count", 0) if isinstance(each, dict) else 0 for each in (after, before)]
        if counts[0] != counts[1]:
            changes.append(f"{split} has {counts[0]} images, not {counts[1]}")
        elif not is_same(before, after) and classes == now["classes"]:  # else that is the reason
            changes.append(f"of the {counts[0]} images in {split}, {_OTHER[key]}")
    return changes


def class_differences(first: Sequence[Any], first_name: str, second: Sequence[Any], second_name: str) -> str:
    """Which classes are in one of two lists alone, as "only the model: cat; only the data: dog"."""
    parts = []
    for own, name, other in ((first, first_name, second), (second, second_name, first)):
        if alone := [str(each) for each in own if each not in other]:
            parts.append(f"only {name}: {listed(alone)}")
    return "; ".join(parts) or "the same names in another order"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: the first few, and how many there are if those are not all."""
    more = f", … ({len(names)})" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
