"""Read files out of a `.tar.gz` into memory, whatever sizes its headers claim.

`tarfile.open` reads extension headers as a whole and fills the holes of sparse files, so that 122 bytes can take 12 GB.
So only its parser of a single header is used. Extension headers (pax, GNU long names) are skipped: CIFAR's short names
do not need them.
"""

import gzip
import posixpath
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path

from cifarctl.errors import DataError

# The CIFAR archives have 170 MB and unpack to 186 MB. Larger files are refused, and no more is ever unpacked.
MAX_BYTES = 256_000_000
_BLOCK = tarfile.BLOCKSIZE
_READ_BYTES = 1 << 20
# No content follows these headers, even if they give a size: it is that of another file.
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


def read_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The contents of the regular files called `names` that are in the archive, which may write them `./NAME`.

    Raises OSError if `path` cannot be opened, DataError if it is no such archive, ends early or unpacks to more than
    MAX_BYTES. The memory it takes is that of the contents, at most MAX_BYTES.
    """
    members: dict[str, bytes] = {}
    with path.open("rb") as file, gzip.GzipFile(fileobj=file) as unpacked:
        stream = _Stream(unpacked, path)
        try:
            while any(block := stream.read_block()):  # zeros, or nothing, are the end
                try:
                    entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                except tarfile.HeaderError:
                    if len(members) == len(names):  # nothing after the last needed file matters
                        break
                    raise
                if entry.type == tarfile.GNUTYPE_SPARSE or "GNUSparseFile." in entry.name:
                    raise DataError(f"{path}: {entry.name}: stored as a sparse file, as in no CIFAR archive")
                size = 0 if entry.type in _WITHOUT_CONTENT else entry.size
                padding = -size % _BLOCK
                if entry.isreg() and (name := posixpath.normpath(entry.name)) in names:
                    members[name], size = stream.read(size), 0
                stream.skip(size + padding)
        except (EOFError, tarfile.TarError, OSError, ValueError, zlib.error) as error:
            fault = find_fault(path, None) or f"not a readable .tar.gz archive ({error})"
            raise DataError(f"{path}: {fault}") from None
    return members


def find_fault(path: Path, size: int | None) -> str | None:
    """Why the file is no complete `.tar.gz`, in words; None if it is one. size: the expected one in bytes, if known.

    Raises OSError if it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_BLOCK)
    if not head:
        return "an empty file"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return "a web page (HTML or XML), not a .tar.gz archive"
    if head.startswith(b"PK\x03\x04"):
        return "a ZIP archive, not a .tar.gz archive"
    if head[257:262] == b"ustar":
        return "an uncompressed .tar archive, not a .tar.gz archive"
    if not head.startswith(b"\x1f\x8b"):
        return "not a .tar.gz archive"
    try:
        with gzip.open(path) as unpacked:
            left = MAX_BYTES
            while left > 0 and (chunk := unpacked.read(_READ_BYTES)):
                left -= len(chunk)
    except EOFError:
        found = path.stat().st_size
        if size is not None and found < size:
            return f"too short: {found:,} of {size:,} bytes"
        return f"too short: the archive goes on after these {found:,} bytes"
    except (gzip.BadGzipFile, zlib.error) as error:
        return f"a damaged .tar.gz archive ({error})"
    return None


class _Stream:
    """The unpacked bytes in order. Methods raise DataError before they would read more than MAX_BYTES."""

    def __init__(self, file: gzip.GzipFile, path: Path) -> None:
        self._file, self._path, self._left = file, path, MAX_BYTES

    def read_block(self) -> bytes:
        """The next block; empty at the end of the file."""
        self._take(_BLOCK)
        return self._file.read(_BLOCK)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises EOFError if there are fewer."""
        self._take(size)
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("it ends too early")
        return data

    def skip(self, size: int) -> None:
        """Skip `size` bytes. Raises EOFError if there are fewer."""
        self._take(size)
        while size:
            if not (chunk := self._file.read(min(size, _READ_BYTES))):
                raise EOFError("it ends too early")
            size -= len(chunk)

    def _take(self, size: int) -> None:
        if size < 0:
            raise ValueError("a negative size")
        self._left -= size
        if self._left < 0:
            raise DataError(f"{self._path}: it unpacks to more than {MAX_BYTES} bytes, as no CIFAR archive does")
