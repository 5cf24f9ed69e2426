"""Images as tensors. `load(source, split)` is the way to any data set."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from cifarctl.data.archive import ARCHIVES
from cifarctl.data.cache import archive_digest, cache_path, data_dir, read_cache
from cifarctl.data.dataset import Dataset
from cifarctl.data.folder import read_folder
from cifarctl.data.splits import default_val_size, stratified_split
from cifarctl.data.synthetic import TEST_SIZE, TRAIN_SIZE, draw_synthetic
from cifarctl.errors import DataError

__all__ = ["Dataset", "Source", "Split"]

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Source:
    """A data set by name, and how its training images are split.

    name: "cifar10", "cifar100", "synthetic", or the path of a folder DIR/{train,test}/CLASS/*.
    val_size: images held out of the training images; None is 2,000 or a tenth, whichever is fewer.
    seed: draws the held-out images (and the synthetic ones).
    limit: at most so many of the other training images, drawn by the seed; None is all.
    folder: the data folder for archives; None is the default one.
    """

    name: str = "cifar10"
    val_size: int | None = None
    seed: int = 0
    limit: int | None = None
    folder: Path | None = None

    @property
    def is_archive(self) -> bool:
        """True where the data set is downloaded, not made or found."""
        return self.name in ARCHIVES

    @property
    def path(self) -> Path:
        """An archive's data file."""
        return cache_path(self.name, data_dir(self.folder))

    def load(self, split: Split) -> Dataset:
        """Read one split. Raises DataError where it is missing or damaged, UsageError on an impossible `val_size`."""
        if split == "test":
            return self._test
        train, val = stratified_split(self._all_train.labels, self._val_size, self.seed)
        if split == "train" and self.limit is not None:
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
            train = train[order[: self.limit]]
        return self._all_train.take(train if split == "train" else val)

    def describe(self) -> dict[str, str | int]:
        """What a weights file says of the data it was trained on: enough to draw the same splits again."""
        digest = {"archive_sha256": archive_digest(self.path)} if self.is_archive else {}
        limit = {} if self.limit is None else {"limit": self.limit}
        return {"name": self.name, "val_size": self._val_size, "seed": self.seed, **limit, **digest}

    @classmethod
    def trained_on(cls, description: dict[str, Any], name: str | None, folder: Path | None) -> "Source":
        """The data that a weights file describes, with its split; or, where `name` is another, that with the default
        one.

        Raises DataError where the description is not one of `describe`'s.
        """
        if name not in (None, description.get("name")):
            return cls(str(name), folder=folder)
        found = {key: description.get(key) for key in ("val_size", "seed", "limit")}
        if not all(value is None or type(value) is int for value in found.values()):
            raise DataError(
                f"the model describes its data as {description}, which is no data set", hint="name one: --data"
            )
        return cls(
            str(description.get("name", "cifar10")), found["val_size"], found["seed"] or 0, found["limit"], folder
        )

    @property
    def _val_size(self) -> int:
        return default_val_size(len(self._all_train)) if self.val_size is None else self.val_size

    @cached_property
    def _archive(self) -> tuple[Dataset, Dataset]:
        try:
            return read_cache(self.path)
        except FileNotFoundError:
            raise DataError(
                f"{self.path}: no such file: {self.name} has not been downloaded",
                hint=f"cifarctl download --data {self.name}",
            ) from None

    @cached_property
    def _all_train(self) -> Dataset:
        if self.is_archive:
            return self._archive[0]
        if self.name == "synthetic":
            return draw_synthetic(TRAIN_SIZE, self.seed)
        return read_folder(Path(self.name), "train")

    @cached_property
    def _test(self) -> Dataset:
        if self.is_archive:
            return self._archive[1]
        if self.name == "synthetic":  # another stream than the training images'
            return draw_synthetic(TEST_SIZE, self.seed + 1_000_003)
        return read_folder(Path(self.name), "test")
