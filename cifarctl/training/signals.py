"""Signals that end a run: SIGINT, SIGTERM, SIGHUP and Windows' SIGBREAK. A training run ends after the current step,
everything else at once. What the process was told to ignore when it started, as by `nohup`, stays ignored.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cifarctl.errors import Interrupted

# A closing terminal sends SIGHUP, a closing console on Windows SIGBREAK, where nobody can send SIGTERM.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
_HANDLED = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))


class Request(IntEnum):
    """What one process asks of all processes of a run, at the end of a step.

    It travels between them as a number, and all follow the greatest one: see `Ranks.average`. STOP_…: save, and stop as
    that signal demands.
    """

    NONE = 0
    SAVE = 1
    STOP_SIGINT = 2
    STOP_SIGTERM = 3
    STOP_SIGBREAK = 4
    STOP_SIGHUP = 5

    @property
    def stops(self) -> bool:
        """True if a signal is the reason."""
        return self > Request.SAVE

    @property
    def signal(self) -> signal.Signals:
        """The signal that a request to stop is made for."""
        return signal.Signals[self.name.removeprefix("STOP_")]

    @classmethod
    def for_signal(cls, number: int) -> "Request":
        """The request to stop that a signal makes."""
        return cls[f"STOP_{signal.Signals(number).name}"]


@contextmanager
def deferred_signals() -> Iterator[list[Request]]:
    """Inside, signals do not end the process, but join the list as requests; a second SIGINT ends it at once."""
    received: list[Request] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        received.append(Request.for_signal(number))

    with _handled_by(note):
        yield received


@contextmanager
def raised_signals(where: str = "outside of training") -> Iterator[None]:
    """Inside, the signals raise Interrupted, whose message ends with `where`."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (what handlers are given)
        raise Interrupted(number, f"{signal.Signals(number).name} {where}")

    with _handled_by(stop):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    heeded = [number for number in _HANDLED if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def interrupted(request: Request, step: int, steps: int, checkpoint: Path) -> Interrupted:
    """The exception for a request to stop that was followed after `step`, once the state is in `checkpoint`."""
    return Interrupted(
        request.signal, f"{request.signal.name} after step {step} of {steps}; the state is saved in {checkpoint}"
    )
