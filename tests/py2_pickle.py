"""Write archives like the official ones: Python-2 pickles, protocol 2, in a .tar.gz. No library writes them today."""

import hashlib
import io
import pickle
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class SmallArchive:
    """An archive and what is in it. images: uint8 (N, 3, 32, 32), training images first. labels: (N,)."""

    path: Path
    sha256: str
    train_images: NDArray[np.uint8]
    train_labels: list[int]
    test_images: NDArray[np.uint8]
    test_labels: list[int]


def dumps(value: Any) -> bytes:
    """`value` (dictionaries, lists, text, small integers, uint8 matrices) as Python 2's cPickle would pickle it."""
    pickler = _Pickler()
    pickler.write(value)
    return b"\x80\x02" + pickler.body.getvalue() + b"."


class _Pickler:
    def __init__(self) -> None:
        self.body, self._memo = io.BytesIO(), 0

    def write(self, item: Any) -> None:
        match item:
            case bool():
                self.body.write(b"\x88" if item else b"\x89")
            case int():
                self._write_integer(item)
            case str():
                raw = item.encode("latin-1")
                self.body.write(b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<I", len(raw)))
                self._memoised(raw)
            case list():
                self._memoised(b"]")
                for start in range(0, len(item), 1000):  # cPickle appends in runs of a thousand
                    self._write_all(item[start : start + 1000], b"e")
            case dict():
                self._memoised(b"}")
                self._write_all([part for pair in item.items() for part in pair], b"u")
            case np.ndarray():
                self._write_array(item)
            case _:
                raise TypeError(type(item))

    def _memoised(self, raw: bytes) -> None:
        """Write what cPickle then memoises, as it does nearly everything."""
        memo = b"q" + bytes([self._memo]) if self._memo < 256 else b"r" + struct.pack("<I", self._memo)
        self.body.write(raw + memo)
        self._memo += 1

    def _write_all(self, items: list[Any], end: bytes) -> None:
        self.body.write(b"(")
        for item in items:
            self.write(item)
        self.body.write(end)

    def _write_integer(self, item: int) -> None:
        if 0 <= item < 256:
            self.body.write(b"K" + bytes([item]))
        elif 0 <= item < 65536:
            self.body.write(b"M" + struct.pack("<H", item))
        else:
            self.body.write(b"J" + struct.pack("<i", item))

    def _write_array(self, array: NDArray[np.uint8]) -> None:
        self._memoised(b"cnumpy.core.multiarray\n_reconstruct\n")
        self._memoised(b"cnumpy\nndarray\n")
        self._memoised(b"K\x00\x85")
        self.write("b")
        self._memoised(b"\x87")
        self._memoised(b"R")
        self.body.write(b"(K\x01")
        for side in array.shape:
            self.write(int(side))
        self._memoised(b"\x86")
        self._memoised(b"cnumpy\ndtype\n")
        self.write("u1")
        self._memoised(b"K\x00K\x01\x87")
        self._memoised(b"R")
        self.body.write(b"(K\x03")
        self.write("|")
        self.body.write(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
        self.write(array.tobytes().decode("latin-1"))
        self.body.write(b"tb")


def batch(images: NDArray[np.uint8], labels: list[int], name: str) -> bytes:
    """One batch file: images uint8 (N, 3, 32, 32)."""
    return dumps(
        {
            "batch_label": name,
            "labels": labels,
            "data": images.reshape(len(images), -1),
            "filenames": [f"{i:06d}.png" for i in range(len(images))],
        }
    )


def write_archive(path: Path, per_batch: int, seed: int = 0) -> SmallArchive:
    """Five training batches and one of tests, each of `per_batch` random images."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (6 * per_batch, 3, 32, 32), np.uint8)
    labels = [i % len(CLASSES) for i in range(6 * per_batch)]
    members = {"batches.meta": dumps({"num_cases_per_batch": per_batch, "label_names": list(CLASSES), "num_vis": 3072})}
    for i in range(6):
        part = slice(i * per_batch, (i + 1) * per_batch)
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        members[name] = batch(images[part], labels[part], f"batch {i + 1}")
    write_members(path, members)
    split = 5 * per_batch
    return SmallArchive(
        path,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        images[:split],
        labels[:split],
        images[split:],
        labels[split:],
    )


def write_members(path: Path, members: dict[str, bytes], folder: str = "cifar-10-batches-py") -> str:
    """A .tar.gz with these files in `folder`. Returns its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Payload:
    """Pickles as a call of os.system: the classic attack."""

    def __init__(self, shell_command: str) -> None:
        self.shell_command = shell_command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (self.shell_command,)


def attack(shell_command: str, protocol: int) -> bytes:
    """A pickle that runs `shell_command` when a general unpickler reads it."""
    return pickle.dumps({"data": Payload(shell_command)}, protocol=protocol)
