"""Write files atomically, and find those that come with the package. Every file of the project is written this way."""

import errno
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarctl.errors import FileInUseError

if TYPE_CHECKING:
    from torch import Tensor

PRETRAINED = Path(__file__).parent / "pretrained"
_TEMPORARY_MARK = ".part"  # in the names of files that are being written
# A full disk, a quota, `ulimit -f`, a broken disk.
_WRITE_FAILURES = frozenset(getattr(errno, name, -1) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO"))
_RETRY_PAUSES = (0.05, 0.1, 0.2, 0.4)  # seconds; Windows' virus scanners and indexers close a file within them


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the same folder; on success, flush it to disk and rename it to `path`.

    If anything inside fails, `path` stays as it was, and the temporary file is removed.
    If `path` is a link, its target is replaced; a device or a pipe (/dev/null) is written to directly.
    Raises OSError if the folder cannot be made or written, FileInUseError if, on Windows, another program uses the file
    at `path`. Both name `path`.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    try:
        path = path.resolve() if path.is_symlink() else path
    except RuntimeError:  # before Python 3.13: a link to itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same suffix, since matplotlib and Pillow choose the format by it. Not tempfile, which makes the file private, and
    # tries 10,000 names if a folder on Windows cannot be written.
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}{_TEMPORARY_MARK}{path.suffix}")
    try:
        temporary.open("xb").close()
        yield temporary
        with temporary.open("r+b") as file:  # Windows' fsync fails if the file was opened for reading
            os.fsync(file.fileno())
        move_file(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the error that matters is the first one
            temporary.unlink(missing_ok=True)
        # A failed write names no file, and a failed opening names the temporary one, which says nothing to a user.
        if isinstance(error, OSError) and (
            error.filename == str(temporary) or (error.filename is None and error.errno in _WRITE_FAILURES)
        ):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def check_writable(*paths: Path | None) -> None:
    """Make the folders of `paths`. Raises as `atomic_path` if a file cannot be written there; leaves none."""

    class Stopped(Exception):  # noqa: N818 (it is no error)
        pass

    for path in filter(None, paths):
        with suppress(Stopped), atomic_path(path):
            raise Stopped


def move_file(source: Path, target: Path) -> None:
    """Rename `source` to `target`, on the same file system, and replace what is there. Raises OSError, FileInUseError
    as `atomic_path`.
    """
    if sys.platform == "win32":  # it cannot open a folder
        _replace_unused(source, target)
        return
    source.replace(target)
    # Else a power failure could undo the renaming.
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files in `folder` that killed processes have left there."""
    ours = re.compile(rf"\..{{0,40}}-[0-9a-f]{{8}}{re.escape(_TEMPORARY_MARK)}(\.[a-z0-9]{{1,11}})?")
    for path in folder.glob(f".*-????????{_TEMPORARY_MARK}*"):
        if not ours.fullmatch(path.name):
            continue
        with suppress(PermissionError):  # on Windows: a running process has it open
            path.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str]) -> None:
    """Replace `path` by a safetensors file, atomically. Raises OSError."""
    # Not save_file, which leaves a temporary file of its own when it is killed, and hides the system's errors.
    from safetensors.torch import save

    content = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON for a file of ours. Raises ValueError on NaN and infinities: other readers refuse such a file."""
    return json.dumps(value, indent=indent, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _replace_unused(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path` on Windows. Raises OSError; FileInUseError if it is still refused after retries."""
    for pause in (*_RETRY_PAUSES, 0):
        try:
            temporary.replace(path)
            return
        except OSError as error:
            # EACCES if the file is open or read-only; EINVAL if it is mapped (ERROR_USER_MAPPED_FILE).
            if error.errno not in (errno.EACCES, errno.EINVAL):
                raise
        time.sleep(pause)
    raise FileInUseError(
        f"{path}: cannot be replaced: another program has it open, or it is read-only",
        hint="close the program that uses it, and try again",
    )
