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
    body = io.BytesIO()
    memo = 0

    def put() -> None:  # cPickle memoises nearly everything
        nonlocal memo
        body.write(b"q" + bytes([memo]) if memo < 256 else b"r" + struct.pack("<I", memo))
        memo += 1

    def write(item: Any) -> None:
        match item:
            case bool():
                body.write(b"\x88" if item else b"\x89")
            case int():
                if 0 <= item < 256:
                    body.write(b"K" + bytes([item]))
                elif 0 <= item < 65536:
                    body.write(b"M" + struct.pack("<H", item))
                else:
                    body.write(b"J" + struct.pack("<i", item))
            case str():
                raw = item.encode("latin-1")
                body.write(b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<I", len(raw)))
                body.write(raw)
                put()
            case list():
                body.write(b"]")
                put()
                for start in range(0, len(item), 1000):  # cPickle appends in runs of a thousand
                    body.write(b"(")
                    for element in item[start : start + 1000]:
                        write(element)
                    body.write(b"e")
            case dict():
                body.write(b"}")
                put()
                body.write(b"(")
                for key, element in item.items():
                    write(key)
                    write(element)
                body.write(b"u")
            case np.ndarray():
                write_array(item)
            case _:
                raise TypeError(type(item))

    def write_array(array: NDArray[np.uint8]) -> None:
        body.write(b"cnumpy.core.multiarray\n_reconstruct\n")
        put()
        body.write(b"cnumpy\nndarray\n")
        put()
        body.write(b"K\x00\x85")
        put()
        write("b")
        body.write(b"\x87")
        put()
        body.write(b"R")
        put()
        body.write(b"(K\x01")
        for side in array.shape:
            write(int(side))
        body.write(b"\x86")
        put()
        body.write(b"cnumpy\ndtype\n")
        put()
        write("u1")
        body.write(b"K\x00K\x01\x87")
        put()
        body.write(b"R")
        put()
        body.write(b"(K\x03")
        write("|")
        body.write(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
        write(array.tobytes().decode("latin-1"))
        body.write(b"tb")

    write(value)
    return b"\x80\x02" + body.getvalue() + b"."


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
