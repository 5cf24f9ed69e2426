"""Command lines for a user to paste, quoted for the shells of this system."""

import re
import shlex
import sys
from collections.abc import Sequence


def command_line(words: Sequence[str]) -> str:
    """The words as one line. On Windows with double quotes, which cmd and PowerShell both take."""
    if sys.platform == "win32":
        return " ".join(word if re.fullmatch(r"[\w:\\/.+=-]+", word) else f'"{word}"' for word in words)
    else:  # noqa: RET505 (mypy knows platforms by such blocks)
        return shlex.join(words)
