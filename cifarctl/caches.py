"""Folders for the caches of libraries, on a machine where they cannot be where they usually are."""

import atexit
import importlib
import os
import shutil
import tempfile
from pathlib import Path

from cifarctl.errors import CifarctlError

_SHARED_MEMORY = Path("/dev/shm")  # can be written even in `docker run --read-only`


def import_matplotlib(*folders: Path) -> None:
    """Import Matplotlib, which must have a folder for its caches at that moment: it makes a temporary one if the home
    cannot be written. If that fails too, it gets one in the first of `folders` that can be written, for that moment.

    Raises CifarctlError if there is none.
    """
    usual = os.environ.get("MPLCONFIGDIR")
    for folder in (None, *folders, _SHARED_MEMORY):
        try:
            if folder is None:
                importlib.import_module("matplotlib.font_manager")
                return
            with tempfile.TemporaryDirectory(prefix=".cifarctl-", dir=folder) as cache:
                os.environ["MPLCONFIGDIR"] = cache
                importlib.import_module("matplotlib.font_manager")
                return
        except OSError:
            continue
        finally:
            if folder is not None:
                os.environ.pop("MPLCONFIGDIR", None)
                if usual is not None:
                    os.environ["MPLCONFIGDIR"] = usual
    raise CifarctlError(
        "Matplotlib needs a folder for its caches, and no temporary folder can be written",
        hint="let TMPDIR or MPLCONFIGDIR name a folder that can be written",
    )


def give_triton_a_folder() -> None:
    """Let Triton keep its kernels in a temporary folder, for this process, if the home cannot be written. Without a
    home it would make a folder named `~` in the current one. Raises OSError if there is no temporary folder either.
    """
    if os.environ.get("TRITON_CACHE_DIR") or os.environ.get("TRITON_HOME"):
        return
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.expanduser raises an error if there is none)
    if home != "~":
        kernels = Path(home, ".triton", "cache")
        try:
            kernels.mkdir(parents=True, exist_ok=True)
        except OSError:
            pass
        else:
            if os.access(kernels, os.W_OK):
                return
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="cifarctl-triton-")
    atexit.register(shutil.rmtree, os.environ["TRITON_CACHE_DIR"], ignore_errors=True)
