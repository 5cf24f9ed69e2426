"""Images that are in two sets of images: a copy of a training image tells little of a model."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifarctl.data import Split
from cifarctl.data.dataset import Dataset
from cifarctl.data.images import read_images
from cifarctl.errors import DataError, ImageError

_WORDS: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}


def copies_of_pixels(images: Dataset, others: Dataset) -> list[int]:
    """Which of `images` have exactly the pixels of one of `others`: indices."""
    return _among(images, set(_digests(others)))


def copies_of_image_files(images: Dataset, others: Iterable[Path]) -> list[int]:
    """Which of `images` have exactly the pixels of one of the image files `others`: indices. Raises DataError."""
    known = set()
    for path, image in read_images(others):
        if isinstance(image, ImageError):
            raise DataError(f"{path}: {image}")
        known.add(_digest(image))
    return _among(images, known)


def copies_of_files(paths: Sequence[str], others: Iterable[Path]) -> list[int]:
    """Which of the files at `paths` have the same bytes as one of `others`: indices. Raises OSError.

    Only files of the same size are read.
    """
    by_size: dict[int, list[Path]] = {}
    for other in others:
        by_size.setdefault(other.stat().st_size, []).append(other)
    digests: dict[int, set[bytes]] = {}
    found = []
    for i, path in enumerate(map(Path, paths)):
        size = path.stat().st_size
        if size in by_size:
            if size not in digests:
                digests[size] = set(map(_file_digest, by_size[size]))
            if _file_digest(path) in digests[size]:
                found.append(i)
    return found


def remarks_on_copies(name: str, splits: Mapping[Split, Dataset]) -> list[str]:
    """What to know of images that are in two splits of the data set `name`, or have two labels, in words."""
    remarks: list[str] = []
    first: dict[bytes, tuple[Split, int]] = {}  # the split and the index of the first image with these pixels
    for split, images in splits.items():
        copies: dict[Split, list[int]] = {}
        contradictions = []
        of_this: dict[bytes, tuple[Split, int]] = {}
        for i, digest in enumerate(_digests(images)):
            where, known = first.get(digest) or of_this.setdefault(digest, (split, i))
            if where != split:
                copies.setdefault(where, []).append(i)
            elif images.labels[known] != images.labels[i]:
                contradictions.append(i)
        first |= of_this
        for where, found in copies.items():
            effect = f"the {_WORDS[split]} metrics are too good"
            if where == "val":
                effect = "the images that choose the best epoch also test it"
            count = f"{len(found):,} of {len(images):,} {_WORDS[split]} images"
            verb = "is a copy" if len(found) == 1 else "are copies"
            example = f", for example {images.paths[found[0]]}" if images.paths else ""
            remarks.append(f"{name}: {count} {verb} of {_WORDS[where]} images{example}: {effect}")
        if contradictions:
            count = f"{len(contradictions):,} of {len(images):,} {_WORDS[split]} images"
            verb = "is a copy of one" if len(contradictions) == 1 else "are copies of others"
            example = f", for example {images.paths[contradictions[0]]}" if images.paths else ""
            remarks.append(f"{name}: {count} {verb} with another label{example}")
    return remarks


def _among(images: Dataset, known: set[bytes]) -> list[int]:
    return [i for i, digest in enumerate(_digests(images)) if digest in known]


def _digests(images: Dataset) -> list[bytes]:
    """A digest of each image's pixels."""
    return [_digest(image) for image in images.images.cpu().contiguous().numpy()]


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
