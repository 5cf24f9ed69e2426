"""The console script. It imports nothing heavy first, so that Ctrl-C ends the command without a traceback even then."""

import os
import sys


def main() -> None:
    """Run the command line and end the process."""
    try:
        _open_closed_streams()
        from cifarctl import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


def _open_closed_streams() -> None:
    """Open what the caller has closed (`>&-`): else the next file that is opened would get its number, and with it what
    a library writes to stderr.

    stdin cannot be read and stdout cannot be written then, as if they were closed still; stderr goes nowhere.
    """
    for name, flags, mode in (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, flags)  # the lowest that is free
            os.set_inheritable(number, True)  # those of other programs that this one starts are closed otherwise
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (for good)
