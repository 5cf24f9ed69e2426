"""What the tests share: how a command ended, and the ways to run it."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
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


def command() -> str:
    """The installed console script."""
    return str(Path(sys.executable).with_name("cifarctl"))


def on_a_terminal(*arguments: object, env: dict[str, str]) -> Result:
    """Run the command with a pseudo-terminal for stderr. The result's `err` is what the terminal showed."""
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
