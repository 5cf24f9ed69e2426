"""An incomplete download: a file in the data folder that only grows.

Its bytes are written in order, so that all of them are valid, even after the process was killed. Its name contains the
digest of the complete archive, so that a download of another archive is never continued with it.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from cifarctl.errors import DataError


class Partial:
    """A growing archive and its SHA-256 so far. Methods raise OSError if the file cannot be read or written."""

    def __init__(self, data_file: Path, sha256: str) -> None:
        """data_file: the file that will be made from it. sha256: the digest of the complete archive."""
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
        """The digest of the bytes so far, in hex."""
        return self._hash.hexdigest()

    def append(self, data: bytes) -> None:
        """Append bytes. They are not buffered, so they survive if the process is killed after this."""
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        view = memoryview(data)
        while view:
            written = self._file.write(view)
            self._hash.update(view[:written])
            self.size += written
            view = view[written:]

    def close(self) -> None:
        """Close the file, and keep it for a later run."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def reset(self) -> None:
        """Delete all bytes."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.size = 0
        self._hash = hashlib.sha256()

    def discard(self) -> None:
        """Remove the file, and incomplete downloads of other archives for the same data file."""
        self.reset()
        for path in self.path.parent.glob(self._pattern):
            path.unlink(missing_ok=True)


def require_room(folder: Path, needed: int) -> None:
    """Raise DataError if the disk of `folder` has fewer than `needed` bytes left for this user."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {needed / 1e6:,.0f} MB are needed, and the disk has {free / 1e6:,.0f} MB left",
            hint="`data_dir` DIR names another place",
        )
