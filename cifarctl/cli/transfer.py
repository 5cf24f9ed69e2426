"""How a download looks: a bar on a terminal, and a line every few seconds anywhere else."""

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cifarctl.cli.output import Output
from cifarctl.cli.progress import shown_progress

if TYPE_CHECKING:
    from cifarctl.data.download import Event, Installed, Present, Progress


def follow(events: "Iterator[Event]", name: str, output: Output) -> "Installed | Present":
    """Show `events` of the download of the data set `name` as they come. Returns the last one."""
    from cifarctl.data.download import Chosen, Failed, Installed, Present, Progress, Waiting

    with shown_progress(output) as line:
        line.update(name, ["waiting"])
        failure, said = "", set[str]()
        for event in events:
            if failure and failure not in said:  # and only when something follows it: the error says the last one
                output.status(failure)
                said.add(failure)
            failure = ""
            match event:
                case Waiting():
                    output.status(f"Another process makes {event.path}: waiting for it")
                case Chosen():
                    there = f", from {_megabytes(event.received)} on" if event.received else ""
                    output.status(f"Downloading {event.source}{there}")
                case Progress():
                    pace = f"{_pace(event)}, {_host(event.source)}"
                    line.update(name, [_portion(event), pace], event.received, event.total)
                case Failed():
                    failure = f"Left {event.source}: {event.reason}"
                case Installed() | Present():
                    return event
    raise AssertionError("a download ends with Installed, Present or an exception")


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _portion(event: "Progress") -> str:
    if not event.total:
        return _megabytes(event.received)
    return f"{100 * event.received // event.total} % of {_megabytes(event.total)}"


def _pace(event: "Progress") -> str:
    """Speed, and the time that is left at this speed."""
    speed = f"{event.speed / 1e6:.2f} MB/s"
    if not event.total or event.speed < 1:
        return speed
    seconds = round((event.total - event.received) / event.speed)
    left = f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
    return f"{speed}, {left} left"


def _host(source: str) -> str:
    try:
        return urlsplit(source).hostname or source
    except ValueError:  # "[" without "]"
        return source
