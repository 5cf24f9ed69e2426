"""The one way in which the project writes a file, whole or not at all; and where those that come with it lie."""

import errno
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PRETRAINED = Path(__file__).parent / "pretrained"
_MARK = ".part"  # in the names of files that are being written


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; on success, flush it to disk and rename it to `path`.

    Whatever fails inside leaves `path` as it was and no temporary file behind.
    A link's target is replaced, not the link; a device or a pipe (/dev/null, /dev/stdout) is written to as it is.
    Raises OSError where the folder cannot be made or written; that of a full disk names `path`.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same suffix, since some writers (matplotlib, Pillow) choose the format by it.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=f"{_MARK}{path.suffix}")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes it private; a result is as readable as any other file
        temporary.replace(path)
        if sys.platform != "win32":  # which cannot open a folder; elsewhere, power loss could undo the renaming
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def remove_temporary(folder: Path) -> None:
    """Remove what processes that were killed have left in `folder` of the files that they were writing."""
    for path in folder.glob(f".*-????????{_MARK}*"):
        path.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str]) -> None:
    """Replace `path` by a safetensors file, atomically. Raises OSError."""
    # Not its save_file, which leaves another temporary file when it is killed, and hides the system's errors.
    from safetensors.torch import save

    content = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)  # there is no way to read it but to set it
    os.umask(mask)
    return mask
