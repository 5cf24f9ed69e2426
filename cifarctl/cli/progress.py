"""How slow work looks while it goes on: a line with a bar on a terminal, and a line every few seconds elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from cifarctl.cli.output import Output
from cifarctl.names import printable
from cifarctl.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_SECONDS_PER_DRAWING = 0.25  # drawing takes about a millisecond
_SECONDS_PER_LINE = 5.0
_MIN_BAR = 10


class ProgressLine:
    """The work that goes on, as one line. Changing it draws nothing: a thread draws, a few times a second.

    prefix: comes before the work's name, "2 of 7: " for one. is_drawn: whether it is redrawn on a terminal.
    """

    def __init__(self, *, is_drawn: bool = False) -> None:
        self.is_drawn = is_drawn
        self.prefix = ""
        self._label, self._details = "", [""]
        self._done, self._total = 0.0, 0.0
        self._work, self._started = Progress(""), 0.0

    def update(self, label: str, details: Sequence[str], done: float = 0, total: float | None = None) -> None:
        """Show this. details: the most important one first; if a terminal is too narrow, the last ones are left out."""
        self._work = Progress(label)
        self._set(label, details, done, total)

    def show(self, event: Progress) -> None:
        """Show how far the work has come and how fast it goes, or for how long it has gone on if it is not counted."""
        last, self._work = self._work, event
        if event.work != last.work or (event.done or 0) < (last.done or 0):
            self._started = time.monotonic()
        details = []
        if event.done is not None:
            details.append(f"{event.done:,} of {event.total:,}" if event.total else f"{event.done:,} {event.unit}")
            if event.done and (seconds := time.monotonic() - self._started) > 0.1:
                details.append(f"{event.done / seconds:,.0f} {event.unit}/s")
        self._set(f"{self.prefix}{event.work}", details, event.done or 0, event.total)

    def _set(self, label: str, details: Sequence[str], done: float, total: float | None) -> None:
        self._label, self._details, self._done, self._total = printable(label), list(details), done, total or 0.0

    def _texts(self) -> tuple[str, list[str]]:
        if self._details or not self._label:
            return self._label, self._details
        return f"{self._label} …", [f"{time.monotonic() - self._started:.0f} s"]

    def __str__(self) -> str:
        label, details = self._texts()
        return f"{label} {details[0]}" if label.endswith("…") else f"{label}: {', '.join(details)}"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.cells import cell_len
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        label, details = self._texts()
        if not label:
            return

        def room(bar: int) -> int:
            return options.max_width - cell_len(label) - bar - sum(cell_len(each) + 2 for each in details)

        bar = _MIN_BAR + 2 if self._total else 0
        while len(details) > 1 and room(bar) < 0:
            details = details[:-1]
        line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        line.add_column(no_wrap=True, overflow="ellipsis", max_width=cell_len(label) + min(0, room(0)))
        cells: list[Text | ProgressBar] = [Text(label)]
        if self._total and room(bar) >= 0:
            line.add_column()
            cells.append(ProgressBar(self._total, self._done, width=room(2)))
        for _ in details:
            line.add_column(no_wrap=True)
        line.add_row(*cells, *map(Text, details))
        yield line


@contextmanager
def shown_progress(output: Output, *, lines: bool = True, redraws: bool = True) -> Iterator[ProgressLine]:
    """Show a line of progress on stderr until the block ends.

    lines: print one every few seconds if it cannot be redrawn. redraws: False if something else writes to the same
    terminal meanwhile.
    """
    line, ended = ProgressLine(is_drawn=output.redraws and redraws), threading.Event()
    with ExitStack() as shown:
        if line.is_drawn:
            from rich.live import Live

            # Redirection would send what is printed to stdout to stderr.
            live = Live(
                line,
                console=output.stderr,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            seconds, draw = _SECONDS_PER_DRAWING, live.refresh
            with suppress(OSError):  # the terminal is closed
                live.start()
            shown.callback(_stop, live.stop)
        elif lines and not output.quiet:
            seconds, draw = _SECONDS_PER_LINE, lambda: output.status(str(line))
        else:
            yield line
            return
        thread = threading.Thread(target=_draw, args=(draw, seconds, ended), daemon=True)
        thread.start()
        try:
            yield line
        finally:
            ended.set()
            thread.join()


def _stop(stop: Callable[[], None]) -> None:
    with suppress(OSError):
        stop()


def _draw(draw: Callable[[], None], seconds: float, ended: threading.Event) -> None:
    while not ended.wait(seconds):
        with suppress(OSError):  # the terminal has gone; what the work itself writes will say so
            draw()
