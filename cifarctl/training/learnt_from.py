"""What the user should know of a trained model that a new run starts from or learns from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarctl.data import Dataset
from cifarctl.data.arrays import NAME as ARRAYS
from cifarctl.data.fingerprint import describe_changes
from cifarctl.data.seen import count_seen
from cifarctl.data.source import is_same_place
from cifarctl.weights import ModelInfo

_WORDS = {"val": "validation", "test": "test"}


def remarks_on_model(
    name: str, info: ModelInfo, description: Mapping[str, Any], held_out: Mapping[str, Dataset], folder: Path | None
) -> tuple[str, ...]:
    """Whether the model called `name` was trained on images that the new run holds out, and whether it means the same
    classes, in words.

    info: what the model's file says. description: `Source.describe` of the new run's data. held_out: its splits val
    and test. folder: the data folder for archives.
    """
    then = info.data
    on_images = _on_split(name, then, description) or _on_copies(name, then, description, held_out, folder)
    return on_images + _on_numbers(name, info, description, held_out["val"].classes)


def _on_split(model: str, then: Mapping[str, Any], description: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the same data, is it split in the same way?"""
    name = description["name"]
    is_same = is_same_place(str(then.get("name")), name)
    changes = describe_changes(then, description, ("train",))
    if changes != [] and not (is_same and "archive_sha256" in description):  # of which there is one alone
        # Arrays have one name for all; and of another name, nothing is known.
        if not changes or not is_same or name == ARRAYS:
            return ()
        split = (
            "validation and test" if "all" in description.get("files", description.get("arrays", ())) else "validation"
        )
        return (
            f"{name}: the data has changed since {model} was trained, so some {split} images "
            f"may be among those that it was trained on; the {split} metrics may then be too good",
        )
    seed, val_size = (then.get(key) for key in ("seed", "val_size"))
    is_same_seed = seed == description["seed"]
    if (is_same_seed and val_size == description["val_size"]) or (name == "synthetic" and not is_same_seed):
        return ()  # the same split, or other images: the seed draws them
    return (
        f"{model} was trained on some of the images that are now held out for validation, so the validation "
        f"metrics are too good; with seed {seed} and {val_size} validation images, as then, they were not",
    )


def _on_copies(
    model: str,
    then: Mapping[str, Any],
    description: Mapping[str, Any],
    held_out: Mapping[str, Dataset],
    folder: Path | None,
) -> tuple[str, ...]:
    """Of other data, are images the same?"""
    name = description["name"]
    is_same = describe_changes(then, description, ("train",)) == [] or (
        name != ARRAYS and is_same_place(str(then.get("name")), name)
    )
    if is_same or name == "synthetic":
        return ()
    remarks = []
    for split, images in held_out.items():
        seen = count_seen(images, then, folder)
        if seen.unknown:
            # Archives of two names hold other images.
            are_archives = {"archive_sha256"} <= then.keys() & description.keys()
            return () if are_archives else (str(seen.remark("images held out here", model, "")),)
        if seen.is_exact and seen.count:
            remarks.append(
                f"{model} was trained on {seen.count:,} of the {len(images):,} {_WORDS[split]} images, so the "
                f"{_WORDS[split]} metrics are too good"
            )
        elif remark := seen.remark(f"{len(images):,} {_WORDS[split]} images", model, f"the {_WORDS[split]} metrics"):
            remarks.append(remark)
    return tuple(remarks)


def _on_numbers(
    model: str, info: ModelInfo, description: Mapping[str, Any], classes: tuple[str, ...]
) -> tuple[str, ...]:
    """Are classes that have no names taken as the same ones?"""
    are_numbers = classes and info.classes == classes and all(name.isdecimal() for name in classes)
    is_same = describe_changes(info.data, description, ("train",)) == []
    if not are_numbers or is_same:
        return ()
    return (
        f"the classes of {model} have numbers, no names, as those of {description['name']}: class 0 is taken for "
        "class 0, and so on",
    )
