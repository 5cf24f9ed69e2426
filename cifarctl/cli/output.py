"""Where output goes: results to stdout, everything else to stderr. Commands hand over what happened and never ask how
it is shown.
"""

import errno
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

import typer

from cifarctl.distributed import process_number
from cifarctl.files import to_json
from cifarctl.names import printable, shortened
from cifarctl.training.recipes import WITH_OPTIONS, Recipe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BROKEN_PIPE = 141  # 128 + SIGPIPE, what a shell expects of a writer whose reader has gone


class Output:
    """One command's output.

    json: results as JSON instead of tables. quiet: errors only on stderr. Of several processes under torchrun the
    first one speaks.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self._speaks = process_number() == 0
        self.json, self.quiet = json, quiet or not self._speaks

    @cached_property
    def stderr(self) -> "Console":
        """The console for progress and messages."""
        return make_console(sys.stderr)

    @property
    def redraws(self) -> bool:
        """True if progress may be drawn over and over."""
        return is_interactive(sys.stderr) and not self.quiet

    def status(self, text: str) -> None:
        """Say what goes on, in one line."""
        if self.quiet:
            return
        try:
            self.stderr.print(printable(shortened(text)), markup=False, highlight=False, soft_wrap=True)
        except OSError:  # nobody listens any more, the disk of a log is full, the terminal is closed
            self.quiet = True  # the work goes on
            _silence(sys.stderr)

    def result(self, value: Any, *tables: "Callable[[], RenderableType]") -> None:
        """Give the command's result: `value` as JSON, or else the tables (or lines), which are built only then."""
        if not self._speaks:
            return
        if self.json:
            try:
                text = to_json(value, indent=2)
            except ValueError:
                self.status("Some numbers are not finite: they are null in the JSON")
                text = to_json(_without_nan(value), indent=2)
            write_line(text)
            return
        console = make_console(sys.stdout)
        with writing_to(sys.stdout), console.capture() as capture:  # which writes an empty text
            for table in tables:
                content = table()
                console.print(content, markup=False, highlight=False, soft_wrap=isinstance(content, str))
        write_line("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()))


def _without_nan(value: Any) -> Any:
    """`value` with None instead of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_interactive(stream: IO[str]) -> bool:
    """True if `stream` is a terminal that may get colours and redrawing."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def make_console(stream: IO[str]) -> "Console":
    """A rich console on `stream`: plain text unless it is an interactive terminal."""
    from rich.console import Console

    class OutputConsole(Console):
        def on_broken_pipe(self) -> None:
            """Pass the error on. Rich would silence stdout and end the program, whichever stream it was."""
            raise  # the one that is being handled

    if is_interactive(stream):
        return OutputConsole(file=stream)
    return OutputConsole(file=stream, force_terminal=False, no_color=True, color_system=None)


def write_line(text: str, stream: IO[str] | None = None, end: str = "\n") -> None:
    """A line to stdout (or `stream`), out at once. If the reader has gone, end the program quietly.

    Raises OSError if the line cannot be written for another reason; it names stdout.
    """
    stream = stream or sys.stdout
    with writing_to(stream):
        stream.write(text + end)
        stream.flush()


@contextmanager
def writing_to(stream: IO[str]) -> Iterator[None]:
    """Inside, `stream` is written. If its reader has gone, end the program quietly.

    Raises OSError if it cannot be written for another reason; it names stdout.
    """
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Rich, by which Typer prints help, ends the program with 1
            raise typer.Exit(BROKEN_PIPE) from None
        raise
    except OSError as error:
        if error.filename:
            raise
        _silence(stream)
        if is_reader_gone(error):
            raise typer.Exit(BROKEN_PIPE) from None
        if stream is sys.stdout:
            closed = error.errno == errno.EBADF
            problem = "it is closed, and results go there" if closed else str(error.strerror)
            raise OSError(error.errno, problem, "stdout") from None
        raise


def is_reader_gone(error: OSError) -> bool:
    """Whether a write failed since nobody reads the pipe. Windows often says EINVAL then: see `subprocess.Popen`'s
    `_stdin_write`.
    """
    codes = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)
    return error.errno in codes


def _silence(stream: IO[str]) -> None:
    """Send what is still written to `stream` nowhere: what Python flushes at exit must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def with_options(text: str, parameters: Set[str]) -> str:
    """An error's message or hint as the command line says it: `batch_size` is --batch-size, `cutout` is --set cutout.

    parameters: those with an option. Other words between backquotes are left alone.
    """
    by_assignment = {item.name for item in fields(Recipe)} - WITH_OPTIONS

    def option(match: re.Match[str]) -> str:
        name = match[1]
        if name in parameters:
            return f"--{name.replace('_', '-')}"
        return f"--set {name}" if name in by_assignment else match[0]

    return re.sub(r"`([a-z0-9_]+)`", option, text)


def report_error(message: str, hint: str | None = None) -> None:
    """The one form of every failure: a line `error: …`, and a line `hint: …` if there is one."""
    for label, text in (("error", message), ("hint", hint)):
        if text:
            try:
                # In one write: of several processes, without buffers (PYTHONUNBUFFERED), lines would mix.
                sys.stderr.write(f"{label}: {printable(shortened(text))}\n")
                sys.stderr.flush()
            except OSError:  # nobody hears it; the exit code is left
                _silence(sys.stderr)
