"""Was a model trained with these images? They are compared with its training data as that is now."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cifarctl.data import Split
from cifarctl.data.dataset import Dataset
from cifarctl.data.overlap import copies_of_files, copies_of_image_files, copies_of_pixels
from cifarctl.data.source import Source
from cifarctl.errors import ChangedDataError, DataError, UsageError

# If images have no files to compare by size, at most so many training images are decoded: some seconds.
_MOST_DECODED = 5000


@dataclass(frozen=True)
class Seen:
    """How many images are copies of those that a model was trained with.

    data: the name of its training data. changes: "has changed", and how, or "may have changed"; then the copies may be
    of images that are new in it, and others may be gone. compared: how many of the `known` training
    images were compared. unknown: why none could be, in words.
    """

    data: str
    count: int = 0
    changes: str = ""
    compared: int = 0
    known: int = 0
    unknown: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether the count is neither a guess nor a lower bound."""
        return not self.changes and not self.unknown and self.compared == self.known

    def remark(self, total: str, model: str, metrics: str) -> str | None:
        """What the user should know, in words; None if there is nothing. total: the images, as "60 test images".

        model, metrics: their names in the sentence.
        """
        if self.unknown:
            return f"it could not be checked whether {model} was trained with any of the {total}: {self.unknown}"
        some = "" if self.compared == self.known else f"{self.compared:,} of the {self.known:,} "
        if self.changes:
            count, verb = f"{self.count:,}" if self.count else "none", "are" if self.count > 1 else "is"
            effect = f": if it was trained with them, {metrics} are too good" if self.count else ""
            return (
                f"{self.data} {self.changes} since {model} was trained on it. Of the {total}, {count} {verb} among "
                f"{some or 'the '}images that are there now{effect}"
            )
        if self.count:
            number = f"at least {self.count:,}" if some else f"{self.count:,}"
            return (
                f"{number} of {total} are copies of those that {model} was trained with, so {metrics} are too good"
                + (f" (compared with {some}training images)" if some else "")
            )
        return f"compared with {some}images that {model} was trained with: none is the same" if some else None


def count_seen(
    images: Dataset, description: Mapping[str, Any], folder: Path | None, splits: tuple[Split, ...] = ("train",)
) -> Seen:
    """How many of `images` are copies of those in `splits` of the data of this `description`, a model's; of all that it
    may have been trained with, if that data has changed.

    folder: the data folder for archives.
    """
    name = str(description.get("name", ""))
    if name == "synthetic":  # drawn images are no files, nobody has copies of them, and drawing takes seconds
        return Seen(name)
    if not name:
        return Seen(name, unknown="its file does not say on which data it was trained")
    try:
        then = Source.trained_on(dict(description), None, folder)
        changes = then.changes(description, "train")
        if changes == [] or (changes is None and then.is_archive):  # of which there is one alone
            return _compare(images, then, splits)
        if "all" in then.stored:
            then, splits = replace(then, only_measured=True), ("test",)
        else:
            then, splits = replace(then, val_size=None, limit=None), ("train", "val")
        how = f"has changed ({'; '.join(changes)})" if changes else "may have changed"
        return replace(_compare(images, then, splits), changes=how)
    except (DataError, UsageError) as error:
        return Seen(name, unknown=str(error))
    except OSError as error:
        return Seen(name, unknown=f"{error.filename}: cannot be read ({error.strerror})")


def _compare(images: Dataset, then: Source, splits: tuple[Split, ...]) -> Seen:
    """Compare files if both have some, else pixels. Raises DataError, UsageError, OSError."""
    files = [path for split in splits for path in then.files(split) or ()]
    if not files:
        found, known = set[int](), 0
        for split in splits:
            others = then.load(split)
            known += len(others)
            found |= set(copies_of_pixels(images, others))
        return Seen(then.name, len(found), compared=known, known=known)
    if images.paths:
        return Seen(then.name, len(copies_of_files(images.paths, files)), compared=len(files), known=len(files))
    some = random.Random(0).sample(files, min(len(files), _MOST_DECODED))
    return Seen(then.name, len(copies_of_image_files(images, some)), compared=len(some), known=len(files))


def remark_on_seen(source: Source, description: Mapping[str, Any], *, allow: bool) -> str | None:
    """Compare the images of a test on other data, `source`, with those of the model's `description`, and return a
    remark if some are the same, or that cannot be told. Raises ChangedDataError, unless `allow`, if all are.
    """
    if not (source.is_path or (source.is_archive and Source(str(description.get("name", ""))).is_path)):
        return None
    # Of the model's own data, new test images may be training images.
    if not source.only_measured and ("test" not in source.stored or not source.changes(description, "test")):
        return None
    images = source.load("test")
    seen = count_seen(images, description, source.folder, ("train", "val"))
    if seen.count == len(images) and not seen.changes and not allow:
        raise ChangedDataError(f"{source.name}: the model was trained with these images, so they are no test")
    remark = seen.remark(f"{len(images):,} images", "the model", "the metrics")
    return remark and f"{source.name}: {remark}"
