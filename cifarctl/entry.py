"""The console script. It imports nothing heavy first, so that Ctrl-C ends the command without a traceback even then."""

import sys


def main() -> None:
    """Run the command line and end the process."""
    try:
        from cifarctl import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)
