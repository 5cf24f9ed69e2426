"""What is in a data set: how many images of which classes in which split, as numbers and in words."""

from collections.abc import Mapping
from dataclasses import dataclass

from cifarctl.data import Split
from cifarctl.data.fingerprint import listed

SPLITS: tuple[Split, ...] = ("train", "val", "test")
_WORDS = {"train": "for training", "val": "for validation", "test": "for test"}
_CLASSES_SHOWN = 8


@dataclass(frozen=True)
class Contents:
    """The images of a data set.

    counts: by split, how many images of each of `classes`; a split that is missing is not there. drawn: the splits that
    are drawn from others. is_whole: whether all images are the test split because there are no splits.
    remarks: what is not used, and why.
    """

    name: str
    classes: tuple[str, ...]
    counts: Mapping[Split, tuple[int, ...]]
    drawn: tuple[Split, ...] = ()
    is_whole: bool = False
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In one line, for example "pets: 60 images of 2 classes (cat 40, dog 20): 48 for training, …"."""
        totals = [sum(each) for each in zip(*self.counts.values(), strict=True)]
        of_class = {name: total for name, total in zip(self.classes, totals, strict=bool(self.classes)) if total}
        absent = [name for name in self.classes if name not in of_class]
        of_classes = f"of {len(of_class)} class{'' if len(of_class) == 1 else 'es'}"
        if not self.classes:
            of_classes, classes = "without labels", ""
        elif len(of_class) <= _CLASSES_SHOWN:
            classes = ", ".join(f"{name} {total:,}" for name, total in of_class.items())
        else:
            low, high = min(of_class.values()), max(of_class.values())
            classes = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
        found = f"{self.name}: {sum(totals):,} images {of_classes}{f' ({classes})' if classes else ''}"
        found += f", none of {listed(absent)}" if absent else ""
        if self.is_whole:
            return f"{found}: all are measured, since they are in no splits"
        splits = [
            f"{sum(counts):,} {_WORDS[split]}{' (drawn)' if split in self.drawn else ''}"
            for split, counts in self.counts.items()
        ]
        return f"{found}: {', '.join(splits)}"
