"""Processes that decode image files beside the threads of this one.

The decoding of a small file holds the GIL most of the time, so threads alone gain little. Each of these processes reads
lines of JSON from a pipe and runs nothing but `serve`: it imports neither the program that started it, as
`multiprocessing` would, nor torch. It ends when the pipe is closed, however this process ends.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from cifarctl.errors import ImageError

FILES_IN_THREADS = 2000  # threads decode this many before processes would have started
_READY = b"ready\n"
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from cifarctl.data.decoders import serve; serve()"
)
_Process = subprocess.Popen[bytes]


class DecoderProcesses:
    """At most `count` processes, which start when more than `after` files are expected. Several threads may call
    `decode` at the same time; only one may call the other methods.

    The caller must decode the rest itself: files that come while no process is free, images so large that two at a time
    take too much memory, and the files of a process that was killed.
    """

    def __init__(self, count: int, after: int = FILES_IN_THREADS) -> None:
        # In a program that embeds Python, sys.executable is another program, or empty.
        is_python = Path(sys.executable or "").stem.lower().startswith(("python", "pypy"))
        self._count = count if is_python else 0
        self._after = after
        self._expected = 0
        self._starter = threading.Thread(target=self._start, daemon=True)
        self._processes: list[_Process] = []
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._stopped = threading.Event()

    def expect(self, files: int) -> None:
        """Announce that this many more files will be decoded."""
        self._expected += files
        if self._count and self._expected > self._after and self._starter.ident is None:
            self._starter.start()

    def decode(self, paths: Sequence[Path]) -> list[NDArray[np.uint8] | ImageError | None] | None:
        """The result of `images.read_or_error` for each path, or None for a path that the caller must decode itself.
        Returns None, not a list, if no process is free or the process has ended.
        """
        try:
            process = self._idle.get_nowait()
        except Empty:
            return None
        try:
            answers = _ask(process, paths)
        except (OSError, ValueError):  # a broken pipe, or an answer that ends early
            return None
        self._idle.put(process)
        return answers

    def stop(self) -> None:
        """Kill the processes, even while they decode. Threads that wait for an answer stop waiting."""
        self._stopped.set()
        for process in list(self._processes):
            process.kill()

    def close(self) -> None:
        """Close all pipes and wait for the processes. Call it after `stop`, when no thread is in `decode`."""
        if self._starter.ident is not None:
            self._starter.join()
        for process in self._processes:
            process.kill()
            with suppress(OSError):  # from data that was never sent
                process.__exit__(None, None, None)

    def _start(self) -> None:
        """Start all processes, and make each available as soon as it has said that it is ready."""
        search_path = json.dumps(sys.path).encode() + b"\n"
        with suppress(OSError):  # the system allows no more processes, or one has ended
            while len(self._processes) < self._count and not self._stopped.is_set():
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
                self._processes.append(process)
                _send(process, search_path)
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() == _READY and not self._stopped.is_set():
                self._idle.put(process)


def _send(process: _Process, line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.flush()


def _ask(process: _Process, paths: Sequence[Path]) -> list[NDArray[np.uint8] | ImageError | None]:
    _send(process, json.dumps([str(path) for path in paths]).encode() + b"\n")
    assert process.stdout is not None
    outcomes = json.loads(process.stdout.readline())
    pixels = np.empty((outcomes.count(True), 32, 32, 3), np.uint8)
    if process.stdout.readinto(pixels) != pixels.nbytes:  # type: ignore[attr-defined]
        raise ValueError("the answer ends early")
    images = iter(pixels.transpose(0, 3, 1, 2))
    return [
        next(images) if outcome is True else ImageError(outcome) if isinstance(outcome, str) else None
        for outcome in outcomes
    ]


class _LargeImageError(ImageError):
    """The image is large, so the process that asked must decode it."""


class _RefuseLarge:
    """Takes the place of the lock for large images, and refuses them."""

    def __enter__(self) -> None:
        raise _LargeImageError("large")

    def __exit__(self, *_: object) -> None: ...


def serve() -> None:
    """The program of each process. A line of stdin is a JSON list of paths. The answer is a line with a JSON list: per
    path true, false if the other side must decode it, or the error's text. Then come the pixels for each true.
    """
    from cifarctl.data.images import no_warnings, read_or_error

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the main one ends these
    with os.fdopen(os.dup(1), "wb") as answers, no_warnings(), suppress(OSError):
        os.dup2(2, 1)  # so that output of a decoder is not mistaken for an answer
        answers.write(_READY)
        answers.flush()
        for line in sys.stdin.buffer:
            found = [read_or_error(Path(name), _RefuseLarge()) for name in json.loads(line)]
            answers.write(json.dumps([_outcome(image) for image in found]).encode() + b"\n")
            answers.writelines(image.transpose(1, 2, 0).tobytes() for image in found if isinstance(image, np.ndarray))
            answers.flush()


def _outcome(image: NDArray[np.uint8] | ImageError) -> bool | str:
    return (False if isinstance(image, _LargeImageError) else str(image)) if isinstance(image, ImageError) else True
