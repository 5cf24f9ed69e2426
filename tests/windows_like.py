"""Runs commands in a process whose Python behaves as Windows' does, so that a regression is seen on Linux.

    python -X warn_default_encoding windows_like.py PLAN.json RESULTS.json

What is taken away, and where it is written down:

- `os`, `signal`, `time` and `sys`, as cifarctl's modules see them, have the names and values that they have on Windows,
  and modules that are marked "Availability: Unix" cannot be imported. Other libraries keep theirs: their Windows code
  cannot run here. (Python's library reference: "Availability".)
- `ctypes.CDLL(None)` raises TypeError: Windows has no handle that stands for the program itself.
- `os.fsync` fails with EBADF for a file that was opened for reading: it is `_commit` there, whose FlushFileBuffers
  needs the right to write.
- A folder cannot be opened with `os.open`: PermissionError.
- A file that is open, by `open` (which shares it for reading and writing, but not for deleting), or mapped into memory,
  cannot be replaced, renamed or removed: PermissionError. (CreateFile, "dwShareMode".)
- Names with `< > : " | ? *` or control characters, those of devices (CON, AUX, …), and those that end in a dot or a
  space, are refused with EINVAL. Windows would take some of them for another file: `a:b` is a stream of the file `a`,
  and final dots and spaces are dropped. (Microsoft, "Naming Files, Paths, and Namespaces".)
- Writing to a pipe whose reader has gone fails with EINVAL, not EPIPE: bpo-35754, and `subprocess.Popen._stdin_write`.
- stdout and stderr are in cp1252 where they are no terminal; text files without an `encoding=` are an error (PEP 597).
- Ctrl-Break and a console that closes are SIGBREAK, number 21; SIGINT and SIGTERM are there, the rest of Unix' are not.

It needs Linux's /proc to tell what is open.
"""

import builtins
import codecs
import ctypes
import enum
import errno
import fcntl
import io
import json
import mmap
import os
import platform
import re
import signal
import stat
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

UNIX_ONLY_MODULES = frozenset(
    [
        "crypt",
        "curses",
        "fcntl",
        "grp",
        "posix",
        "pty",
        "pwd",
        "readline",
        "resource",
        "spwd",
        "syslog",
        "termios",
        "tty",
    ]
)
# Of `os`: what the reference marks with "Availability: Unix", and so is no attribute on Windows.
UNIX_ONLY_OS = re.compile(
    r"""fork|forkpty|get(e|res|pg)?[ug]id|getp?g(rp|id|roups)|getgrouplist|getsid|getpriority|getloadavg|getrandom|set\w*id
    |setgroups|setpgrp|setpriority|initgroups|uname|chroot|l?chown|lchmod|fch(dir|mod|own)|mkfifo|mknod|makedev|major|minor
    |f?statvfs|f?pathconf|confstr|sysconf|sync|fdatasync|lockf|pread(v)?|pwrite(v)?|readv|writev|sendfile|splice|posix_\w+
    |openpty|ttyname|ctermid|tc[gs]etpgrp|login_tty|pipe2|nice|kill(pg)|wait|wait3|wait4|waitid|W[A-Z]+|sched_\w+|SCHED_\w+
    |register_at_fork|memfd_create|eventfd\w*|\w+xattr|XATTR_\w+|copy_file_range|pidfd_open|plock|f?chflags|unshare|setns
    |O_(NONBLOCK|NDELAY|CLOEXEC|NOFOLLOW|DIRECTORY|SYNC|DSYNC|RSYNC|NOCTTY|ASYNC|DIRECT|LARGEFILE|NOATIME|PATH|TMPFILE)
    |F_(?!OK)\w+|EX_(?!OK)\w+|PRIO_\w+|RTLD_\w+|ST_\w+|P_(ALL|PID|PGID|PIDFD)|SEEK_(HOLE|DATA)|GRND_\w+|MFD_\w+|EFD_\w+|CLONE_\w+
    |(CLD|POSIX|RWF|SPLICE)_\w+|O_(ACCMODE|FSYNC)|P_NOWAITO|environb|getenvb|fwalk|spawn[lv]pe?|NGROUPS_MAX
    |(sysconf|confstr|pathconf)_names
    """,
    re.VERBOSE,
)
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$|(?i:^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$)')
SIGBREAK = 21
Signals = enum.IntEnum(
    "Signals",
    {"SIGINT": 2, "SIGILL": 4, "SIGFPE": 8, "SIGSEGV": 11, "SIGTERM": 15, "SIGBREAK": SIGBREAK, "SIGABRT": 22},
)
STATUS_CONTROL_C_EXIT = 0xC000013A  # what Windows ends a process with that does not handle SIGBREAK


class View(ModuleType):
    """A module as it is on Windows."""

    def __init__(self, module: ModuleType, missing: re.Pattern[str], **other: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update({"_module": module, "_missing": missing, "_other": other})

    def __getattr__(self, name: str) -> Any:
        if name in self._other:
            return self._other[name]
        if self._missing.fullmatch(name):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._module, name, value)


def set_signal(number: int, handler: Any) -> Any:
    """`signal.signal`, which on Windows "can only be called with" these numbers."""
    if number not in list(Signals):
        raise ValueError("invalid signal value")
    return signal.signal(number, handler)


def open_file(path: Any, *arguments: Any, **named: Any) -> int:
    """`os.open`."""
    check_no_folder(path)
    return os.open(path, *arguments, **named)


VIEWS = {
    "os": View(os, UNIX_ONLY_OS, name="nt", O_BINARY=0, open=open_file),
    "sys": View(sys, re.compile(r"abiflags|getdlopenflags|setdlopenflags"), platform="win32"),
    "time": View(time, re.compile(r"tzset|clock_\w+|CLOCK_\w+|pthread_\w+")),
    "signal": View(
        signal,
        re.compile(
            r"SIG[A-Z0-9]+|SIG_\w*BLOCK|SIG_SETMASK|alarm|[gs]etitimer|ITIMER_\w+|pause|pthread_\w+|sig\w+|pidfd\w+"
        ),
        **{member.name: member for member in Signals},
        **{name: getattr(signal, name) for name in ("SIG_DFL", "SIG_IGN")},
        Signals=Signals,
        signal=set_signal,
    ),
}


def import_third_parties() -> None:
    """All that cifarctl uses, while Python is as it is here. What is imported late, too."""
    import filelock  # noqa: F401
    import httpx  # noqa: F401
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import platformdirs  # noqa: F401
    import rich.progress  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import torchmetrics.functional.image  # noqa: F401
    import torchvision.utils  # noqa: F401
    import typer.rich_utils  # noqa: F401
    from PIL import Image

    Image.init()
    platform.uname()  # kept from here on; it is made with os.uname
    codecs.register(lambda name: codecs.lookup("cp850") if name == "oem" else None)  # Windows' alone


def become_windows() -> None:
    """From here on Python behaves as on Windows."""
    real_import, real_cdll, real_fsync = builtins.__import__, ctypes.CDLL.__init__, os.fsync

    def import_as_windows(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        if level == 0 and globals and str(globals.get("__name__")).partition(".")[0] == "cifarctl":
            if name in UNIX_ONLY_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in VIEWS:
                return VIEWS[name]
        return real_import(name, globals, locals, fromlist, level)

    def load(self: ctypes.CDLL, name: Any, *arguments: Any, **named: Any) -> None:
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        real_cdll(self, name, *arguments, **named)

    def fsync(fd: Any) -> None:
        descriptor = fd if isinstance(fd, int) else fd.fileno()
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real_fsync(descriptor)

    builtins.__import__ = import_as_windows
    ctypes.CDLL.__init__ = load  # type: ignore[method-assign]
    os.fsync = fsync
    # `os.replace` and `os.unlink` announce themselves as these; `open`, `io.open` and `os.open` all as "open".
    checks: dict[str, Callable[..., None]] = {
        "open": check_open,
        "os.mkdir": check_name,
        "os.rename": check_rename,
        "os.remove": check_unused,
    }
    inside = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal inside
        if event in checks and not inside:
            inside = True
            try:
                checks[event](*arguments)
            finally:
                inside = False

    sys.addaudithook(watch)
    signal.signal(SIGBREAK, lambda *_: sys.exit(STATUS_CONTROL_C_EXIT))
    warnings.filterwarnings("error", category=EncodingWarning, module=r"cifarctl(\.|$)")


def check_name(path: Any, *_: object) -> None:
    for part in Path(os.fsdecode(path)).parts[1:]:
        if FORBIDDEN.search(part):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)


def check_open(path: Any, mode: str | None, _: int) -> None:
    if isinstance(path, int):
        return
    check_name(path)
    if mode is not None:  # else it is `os.open`, with which filelock opens folders on Unix
        check_no_folder(path)


def check_no_folder(path: Any) -> None:
    if os.path.isdir(path):  # noqa: PTH112
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def check_unused(path: Any, *_: object) -> None:
    """Raise PermissionError where this process has the file open or mapped."""
    real = os.path.realpath(path)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    used = {line.split(maxsplit=5)[-1] for line in maps.splitlines()}
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            if stat.S_ISREG(os.stat(int(descriptor)).st_mode):  # noqa: PTH116
                used.add(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        except OSError:  # that of the list itself
            continue
    if real in used:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def check_rename(source: Any, target: Any, *_: object) -> None:
    check_name(target)
    check_unused(source)
    check_unused(target)
    if os.path.isdir(target):  # noqa: PTH112
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), source, None, target)


class Stream(io.FileIO):
    """A file or a pipe as Windows writes it. Where `press` is written, the user presses Ctrl-Break."""

    press: bytes | None = None

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except BrokenPipeError:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
        if self.press and self.press in bytes(data):
            self.press = None
            os.kill(os.getpid(), SIGBREAK)
        return written


@contextmanager
def streams(step: dict[str, Any], out: Path, err: Path) -> Iterator[None]:
    """Inside, stdin, stdout and stderr are those of the step; what is written goes to the files."""
    kept = sys.stdin, sys.stdout, sys.stderr
    opened = []
    for path, name in ((out, "stdout"), (err, "stderr")):
        raw = Stream(str(path), "w")
        if name in step.get("gone", ()):
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, raw.fileno())
            os.close(writer)
        raw.press = step["press_at"].encode() if name == "stderr" and "press_at" in step else None
        errors = "strict" if name == "stdout" else "backslashreplace"  # as Python's own
        line_buffering = name == "stderr"
        opened.append(io.TextIOWrapper(io.BufferedWriter(raw), "cp1252", errors, line_buffering=line_buffering))
    sys.stdout, sys.stderr = opened
    sys.stdin = io.TextIOWrapper(io.BytesIO(bytes.fromhex(step.get("stdin", ""))), "cp1252")
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = kept
        for stream in opened:
            with suppress(OSError):
                stream.close()


def run(step: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """One command, as its console script runs it."""
    code: Any = 0
    out, err = scratch.with_suffix(".out"), scratch.with_suffix(".err")
    with ExitStack() as held, streams(step, out, err):
        for path in step.get("mapped_elsewhere", ()):
            with suppress(FileNotFoundError), Path(path).open("rb") as file:
                held.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        sys.argv = ["cifarctl", *step["arguments"]]
        try:
            from cifarctl.cli import main

            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = 1
            with suppress(OSError):
                traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError as error:  # Python ends with 120 then, after "Exception ignored in: …"
                code = f"{code}, and at exit: {error}"
    return {
        "code": code,
        **{name: path.read_bytes().decode("utf-8", "replace") for name, path in (("out", out), ("err", err))},
    }


if __name__ == "__main__":
    plan, target = Path(sys.argv[1]), Path(sys.argv[2])
    steps, results = json.loads(plan.read_text(encoding="utf-8")), {}
    import_third_parties()
    become_windows()
    for name, step in steps.items():
        results[name] = run(step, target)
        target.write_text(json.dumps(results), encoding="utf-8")
