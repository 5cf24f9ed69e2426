"""Folders for the caches of libraries, on a machine where they cannot be where they usually are."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cifarctl.errors import CifarctlError

_SHARED_MEMORY = Path("/dev/shm")  # can be written even in `docker run --read-only`


@contextmanager
def room_for_caches(*folders: Path) -> Iterator[None]:
    """Inside, Matplotlib and torch's compiler can be imported: at that moment they must have a folder for their caches.
    If no temporary one can be made, they get one in the first of `folders` that can be written, until the end.

    Raises CifarctlError if they need one and there is none.
    """
    with ExitStack() as given:
        if not has_temporary_folder():
            for folder in (*folders, _SHARED_MEMORY):
                with suppress(OSError):
                    cache = given.enter_context(tempfile.TemporaryDirectory(prefix=".cifarctl-", dir=folder))
                    tempfile.tempdir = cache
                    given.callback(setattr, tempfile, "tempdir", None)
                    for name in {"MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"} - os.environ.keys():
                        os.environ[name] = cache
                        given.callback(os.environ.pop, name)
                    break
        try:
            yield
        except OSError:
            if has_temporary_folder():
                raise
            raise CifarctlError(
                "Matplotlib needs a folder for its caches, and no temporary folder can be written",
                hint="let TMPDIR name a folder that can be written",
            ) from None


def has_temporary_folder() -> bool:
    """Whether temporary files can be made. If not, Matplotlib may be imported in `room_for_caches` alone: a failed
    import leaves halves of it, which spoil the next one.
    """
    try:
        tempfile.gettempdir()
    except OSError:
        return False
    return True


def give_triton_a_folder() -> None:
    """Let Triton keep its kernels in a temporary folder, for this process, if the home cannot be written. Without a
    home it would make a folder named `~` in the current one. Raises OSError if there is no temporary folder either.
    """
    if os.environ.get("TRITON_CACHE_DIR") or os.environ.get("TRITON_HOME"):
        return
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.expanduser raises an error if there is none)
    if home != "~":
        kernels = Path(home, ".triton", "cache")
        with suppress(OSError):
            kernels.mkdir(parents=True, exist_ok=True)
        if os.access(kernels, os.W_OK):
            return
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="cifarctl-triton-")
    atexit.register(shutil.rmtree, os.environ["TRITON_CACHE_DIR"], ignore_errors=True)
