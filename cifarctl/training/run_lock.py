"""One process at a time uses a run's folder. The lock of a process that has died is no obstacle."""

import errno
import os
import platform
import warnings
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cifarctl.errors import RunDirError

_NAME = ".cifarctl-lock"  # a name that nobody else gives, since it is removed
# What file systems without locks answer, network ones for example.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """The lock of the run's folder `folder`, which must exist. Held from the start to `release`.

    is_held: False if the file system has no locks. Raises RunDirError if another process holds it, OSError if its file
    cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        # Another user's process may have left the file, so all may open it.
        self._lock = FileLock(folder / _NAME, mode=0o666, thread_local=False)
        # A file of its own: Windows lets nobody read a locked file, and older versions of filelock empty it.
        self._holder = folder / f"{_NAME}-holder"
        self.is_held = False
        try:
            with warnings.catch_warnings():  # filelock's own, of a file system without locks
                warnings.simplefilter("ignore")
                self._lock.acquire(timeout=0)
        except Timeout:
            raise RunDirError(
                f"{folder}: in use by {self._describe_holder()}",
                hint="wait until it ends, or name another folder with `out`",
            ) from None
        except NotImplementedError:  # filelock before 3.26, of a file system without locks
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return
        self.is_held = True
        with suppress(OSError):  # it is for the message alone
            self._holder.write_text(f"{os.getpid()} {platform.node()}", encoding="utf-8")

    def release(self) -> None:
        """Let go of the folder and leave no file of the lock in it."""
        if not self.is_held:
            with suppress(OSError):
                Path(self._lock.lock_file).unlink(missing_ok=True)
            return
        self.is_held = False
        for path in (self._holder, Path(self._lock.lock_file)):
            # Removed while it is held: who waits for it finds that its file is gone, and begins again.
            with suppress(OSError):
                path.unlink(missing_ok=True)
        self._lock.release()

    def _describe_holder(self) -> str:
        try:
            number, host = self._holder.read_text(encoding="utf-8").split(maxsplit=1)
        except (OSError, ValueError):
            return "another process"
        return f"process {number}" if host == platform.node() else f"process {number} on {host}"


def check_unused(folder: Path) -> None:
    """Raise RunDirError if a process holds the lock of `folder`. Leaves nothing behind."""
    if not (folder / _NAME).exists():
        return
    with suppress(OSError):
        RunLock(folder).release()
