"""What the tests share: how a command ended, and the ways to run it."""

import json
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
