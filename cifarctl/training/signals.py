"""Signals that end a run: SIGINT, SIGTERM and Windows' SIGBREAK. They are heeded at the end of a training step, and at
once outside of training.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cifarctl.errors import Interrupted

# SIGBREAK is Ctrl-Break, and what a console sends that closes; nobody can send SIGTERM on Windows.
_HEEDED = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Inside, the signals are noted in the list instead of ending the process; a second SIGINT ends it at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        received.append(number)

    with _handled_by(note):
        yield received


@contextmanager
def raised_signals(where: str = "outside of training") -> Iterator[None]:
    """Inside, the signals raise Interrupted, which says `where`."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (what handlers are given)
        raise Interrupted(number, f"{signal.Signals(number).name} {where}")

    with _handled_by(stop):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    previous = {number: signal.signal(number, handler) for number in _HEEDED}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def interrupted(number: int, step: int, steps: int, checkpoint: Path) -> Interrupted:
    """The exception for a signal that was heeded after `step`, once the state is in `checkpoint`."""
    name = signal.Signals(number).name
    return Interrupted(number, f"{name} after step {step} of {steps}; the state is saved in {checkpoint}")
