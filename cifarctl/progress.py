"""How far slow work has come: what `on_event` is called with."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far one piece of work has come.

    work: what is being done, in words. done: how many `unit` are done, or None if they are not counted. total: how many
    there are; None or 0 if that is not known.
    """

    work: str
    done: int | None = None
    total: int | None = None
    unit: str = "images"


OnEvent = Callable[[Progress], object]


def ignore(event: Progress) -> None:
    """What `on_event` is if nobody wants to know."""
