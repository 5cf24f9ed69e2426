"""Has a model been trained on these images? Its data is looked for where it was at that time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarctl.data import Split
from cifarctl.data.dataset import Dataset
from cifarctl.data.overlap import copies_of_files, copies_of_pixels
from cifarctl.data.source import Source, locate
from cifarctl.errors import ChangedDataError, DataError, UsageError


def count_seen(
    images: Dataset, description: Mapping[str, Any], folder: Path | None, splits: tuple[Split, ...] = ("train",)
) -> int:
    """How many of `images` are copies of those in `splits` of the data of this `description`, a model's.

    folder: the data folder for archives. 0 if the data is no longer where it was, or has changed.
    """
    found: set[int] = set()
    try:
        then = Source.trained_on(dict(description), None, folder)
        # Drawn images are no files, nobody has copies of them, and drawing takes seconds.
        if not (then.is_path or then.is_archive) or then.changes(description, "train") != []:
            return 0
        for split in splits:
            files = then.files(split)
            if files is None:
                found |= set(copies_of_pixels(images, then.load(split)))
            elif images.paths:
                found |= set(copies_of_files(images.paths, files))
    except (DataError, UsageError, OSError):
        return 0
    return len(found)


def remark_on_seen(source: Source, description: Mapping[str, Any], *, allow: bool) -> str | None:
    """Compare the images of a test on other data, `source`, with those of the model's `description`, and return a
    remark if some are the same. Raises ChangedDataError, unless `allow`, if all are.
    """
    if not source.is_path or not source.only_measured or locate(source.name) == description.get("name"):
        return None
    images = source.load("test")
    seen = count_seen(images, description, source.folder, ("train", "val"))
    if seen == len(images) and not allow:
        raise ChangedDataError(f"{source.name}: the model was trained with these images, so they are no test")
    if not seen:
        return None
    return (
        f"{source.name}: {seen:,} of {len(images):,} images are copies of those that the model was trained with, so "
        "the metrics are too good"
    )
