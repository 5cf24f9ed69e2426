"""What the tests share: how a command ended, and the ways to run it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one `error:` line. A traceback, or a second error line, is a failure of the program."""
        lines = self.err.splitlines()
        assert not any("Traceback" in line for line in lines), self.err
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        return errors[0]


Cifarctl = Callable[..., Result]
# A name, and what makes a file or a folder of that name: its path.
MadeOnce = Callable[[str, Callable[[Path], None]], Path]


def command() -> str:
    """The installed console script."""
    return str(Path(sys.executable).with_name("cifarctl"))


def on_a_terminal(*arguments: object, env: dict[str, str]) -> Result:
    """Run the command with a pseudo-terminal for stderr. The result's `err` is what the terminal showed."""
    import pty  # here, since Windows has none

    terminal, end = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    environment = {**inherited, "TERM": "xterm-256color", **env}
    shown = b""
    with subprocess.Popen(
        [command(), *map(str, arguments)], stdout=subprocess.PIPE, stderr=end, text=True, env=environment
    ) as process:
        os.close(end)
        # Reading fails with EIO once the other end is closed.
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 65536):
                shown += chunk
        out, _ = process.communicate(timeout=60)
    os.close(terminal)
    return Result(process.returncode, out, shown.decode())


def model_bytes(run: Path) -> dict[str, bytes]:
    """The tensors of a finished run, of the best and of the last epoch."""
    from safetensors.torch import load_file

    return {
        f"{file} {name}": tensor.numpy().tobytes()
        for file in ("model", "last")
        for name, tensor in load_file(run / f"{file}.safetensors").items()
    }


def start(*arguments: object) -> "subprocess.Popen[str]":
    """The installed command, running."""
    return subprocess.Popen(
        [command(), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def wait_for_line(process: "subprocess.Popen[str]", prefix: str) -> None:
    """Read what it says on stderr until a line starts with `prefix`."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(prefix):
            return
    raise AssertionError(f"the process ended before it printed {prefix!r}")


@dataclass(frozen=True)
class Disk:
    """A small file system in memory, mounted for one process and those that join it.

    root: its files, seen from outside.
    """

    owner: int
    root: Path

    def run(self, *line: object) -> Result:
        """Run a command where the file system is mounted."""
        join = ["nsenter", "--target", str(self.owner), "--user", "--mount", "--preserve-credentials"]
        done = subprocess.run([*join, *map(str, line)], capture_output=True, text=True, timeout=100, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    def cifarctl(self, *arguments: object) -> Result:
        """Run the installed command there."""
        return self.run(command(), *arguments)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Disk]:
    """A disk at `folder`. In namespaces of its own it takes no rights, and nothing is left to unmount."""
    script = f"mount -t tmpfs -o {options} none '{folder}' && echo ready && exec sleep 600"
    line = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n", "this needs Linux's user namespaces"
        try:
            yield Disk(owner.pid, Path(f"/proc/{owner.pid}/root{folder}"))
        finally:
            owner.kill()


def peak_memory(pid: int | str = "self") -> int:
    """The most that a process has had in memory, in bytes, by Linux's /proc; 0 once it has ended.

    getrusage would not do: what it says starts from the memory of the process that started this one.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def watched_memory(process: "subprocess.Popen[bytes]") -> int:
    """Wait for the end of a process, and return the most that it has had in memory, in bytes."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_memory(process.pid))
        time.sleep(0.01)
    return peak
