"""The part of an archive that has arrived: a file in the data folder that only grows.

Every byte in it is one that a server sent for that place, in order, so its length says how much of it is good, also
after the process was killed. Its name holds the digest that the whole will have: what was fetched for another archive
is never continued.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from cifarctl.errors import DataError


class Partial:
    """A growing archive and its running SHA-256. Raises OSError where the file cannot be read or written."""

    def __init__(self, data_file: Path, sha256: str) -> None:
        """data_file: the one that will be made of it. sha256: the digest that the archive must have in the end."""
        self._pattern = f"{data_file.stem}-*.part"
        self.path = data_file.with_name(f"{data_file.stem}-{sha256[:16]}.part")
        self.size = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None
        if self.path.exists() and not os.access(self.path, os.R_OK | os.W_OK):
            self.path.unlink()  # another user's, in a folder that both may write
        if self.path.exists():
            with self.path.open("rb") as file:
                self._hash = hashlib.file_digest(file, "sha256")
                self.size = file.tell()

    @property
    def sha256(self) -> str:
        """The digest of what is there, in hex."""
        return self._hash.hexdigest()

    def append(self, data: bytes) -> None:
        """Add bytes at the end. They are in the system's hands on return, and survive the end of the process."""
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        view = memoryview(data)
        while view:
            written = self._file.write(view)
            self._hash.update(view[:written])
            self.size += written
            view = view[written:]

    def close(self) -> None:
        """Keep what is there for a later run."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def reset(self) -> None:
        """Drop every byte."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.size = 0
        self._hash = hashlib.sha256()

    def discard(self) -> None:
        """Remove the file, and those that were begun for other digests of the same data file."""
        self.reset()
        for path in self.path.parent.glob(self._pattern):
            path.unlink(missing_ok=True)


def require_room(folder: Path, needed: int) -> None:
    """Raise DataError where `folder`'s disk has fewer than `needed` bytes for this user."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {needed / 1e6:,.0f} MB are needed, and the disk has {free / 1e6:,.0f} MB left",
            hint="data_dir DIR names another place",
            parameter="data_dir",
        )
