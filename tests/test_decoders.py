"""Processes that decode image files: the same answers in the same order, and none of them is left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifarctl.data import decoders
from cifarctl.data.decoders import DecoderProcesses
from cifarctl.data.images import Decoded, read_images, read_or_error
from cifarctl.errors import ImageError

# The installed command, with two processes from the first file on, on any machine.
COMMAND = (
    "from cifarctl.data import images; made = images.DecoderProcesses; "
    "images.DecoderProcesses = lambda count, after: made(2, 0); "
    "from cifarctl.cli import main; main()"
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Paths of images, of damaged ones, of nothing, of a folder, and of one that takes much memory."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for i in range(60):
        image = Image.fromarray(rng.integers(0, 256, (32, 32 + i, 3), np.uint8))
        image.save(folder / f"{i:02d}.{('png', 'jpg', 'webp')[i % 3]}")
    Image.new("RGB", (2100, 2100), "teal").save(folder / "large.png")
    (folder / "half.png").write_bytes((folder / "00.png").read_bytes()[:600])
    (folder / "line\nbreak ü.png").write_bytes((folder / "00.png").read_bytes())
    return [*sorted(folder.iterdir()), folder, folder / "none.jpg"]


def same(found: Decoded, wanted: Decoded) -> bool:
    if isinstance(found, ImageError) or isinstance(wanted, ImageError):
        return str(found) == str(wanted) and type(found) is type(wanted)
    return np.array_equal(found, wanted)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def started(count: int) -> Iterator[DecoderProcesses]:
    """So many processes, all ready."""
    helpers = DecoderProcesses(count, after=0)
    helpers.expect(1)
    try:
        until(lambda: helpers._idle.qsize() == count)
        yield helpers
    finally:
        helpers.stop()
        helpers.close()
    assert all(process.returncode is not None for process in helpers._processes)


def test_a_process_answers_as_a_thread_does_and_leaves_what_takes_much_memory(mixed: list[Path]) -> None:
    with started(1) as helpers:
        answers = helpers.decode(mixed)
    assert answers is not None
    left = [path.name for path, answer in zip(mixed, answers, strict=True) if answer is None]
    assert left == ["large.png"]
    for path, answer in zip(mixed, answers, strict=True):
        assert answer is None or same(answer, read_or_error(path))
    assert sum(isinstance(answer, ImageError) for answer in answers) == 3


def test_a_process_that_was_killed_answers_no_more_and_the_others_do(mixed: list[Path]) -> None:
    with started(2) as helpers:
        helpers._processes[0].kill()
        helpers._processes[0].wait()
        answers = [helpers.decode(mixed[:5]) for _ in range(4)]
    assert sum(answer is None for answer in answers) == 1


def test_no_process_starts_for_few_files_or_if_python_is_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    few = DecoderProcesses(2, after=10)
    few.expect(10)
    monkeypatch.setattr(sys, "executable", "/usr/bin/photo-editor")
    embedded = DecoderProcesses(2, after=10)
    embedded.expect(100)
    for helpers in (few, embedded):
        assert helpers.decode([]) is None
        assert helpers._starter.ident is None


@pytest.mark.parametrize("kill", [False, True])
def test_many_files_come_in_order_with_their_errors_though_all_processes_are_killed(
    mixed: list[Path], monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    wanted = {path: read_or_error(path) for path in mixed}
    paths = [path for path in mixed if path.name != "large.png"] * 20
    asked: list[float] = []
    send = decoders._send

    def counted_send(*arguments: Any) -> None:
        asked.append(0)
        send(*arguments)

    monkeypatch.setattr(decoders, "_send", counted_send)
    last = 0
    found = read_images(cycle(paths), processes=2, after=0)  # which is endless
    for i, (path, answer) in enumerate(found):
        assert path == paths[i % len(paths)]
        assert same(answer, wanted[path])
        if not last and len(asked) > 6:  # two of them were the search path
            last = i + 5000  # more than are in flight
            if kill:
                for process in processes:
                    process.kill()
        if i == last > 0:
            break
    found.close()  # type: ignore[attr-defined]
    assert len(processes) == 2
    assert all(process.returncode is not None for process in processes)


def test_a_script_without_a_guard_is_run_once(mixed: list[Path], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from cifarctl.data.images import read_images\n"
        "print(len(list(read_images([Path(sys.argv[1])] * 500, processes=2, after=0))), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, script, mixed[0]], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("500 False\n", "")


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextmanager
def classifying(run: Path, photos: Path, folder: Path, *options: object) -> Iterator["subprocess.Popen[str]"]:
    """`predict -` of an endless list, while processes decode, in a folder with modules that nobody means."""
    for name in ("json", "numpy", "PIL", "cifarctl"):
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the user was run')")
    line = [sys.executable, "-P", "-c", COMMAND, "predict", "-", "-m", run, *options]
    with subprocess.Popen(
        list(map(str, line)),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal can be sent to all of them, as a terminal does
    ) as process:
        assert process.stdin is not None

        def feed() -> None:
            with suppress(OSError, ValueError):
                for path in cycle(map(str, photos.iterdir())):
                    process.stdin.write(f"{path}\n")  # type: ignore[union-attr]

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        workers: list[int] = []
        try:
            until(lambda: process.poll() is not None or len(children(process.pid)) == 2)
            workers = children(process.pid)
            if "-o" not in options:
                assert process.stdout is not None
                answers = [json.loads(line) for line in islice(process.stdout, 1000)]
                expected = cycle(map(str, photos.iterdir()))
                assert all(answer["path"] == path for answer, path in zip(answers, expected, strict=False))
            assert all(map(is_running, workers))
            yield process
            assert len(workers) == 2
            until(lambda: not any(map(is_running, workers)))
        finally:
            process.kill()
            feeder.join(5)
            with suppress(OSError):
                process.stdin.close()


@pytest.mark.needs("/proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_and_leaves_no_file(
    classifier_run: Path, photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    with classifying(classifier_run, photos, tmp_path, "-o", out / "answers.jsonl") as process:
        os.killpg(process.pid, number)
        assert process.stderr is not None
        assert process.stderr.read() == f"error: {number.name} while classifying\n"
        assert process.wait(30) == 128 + number
    assert list(out.iterdir()) == []


@pytest.mark.needs("/proc")
def test_a_reader_that_goes_away_ends_all_processes(classifier_run: Path, photos: Path, tmp_path: Path) -> None:
    with classifying(classifier_run, photos, tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 141


@pytest.mark.needs("/proc")
def test_processes_end_when_the_command_is_killed(classifier_run: Path, photos: Path, tmp_path: Path) -> None:
    with classifying(classifier_run, photos, tmp_path) as process:
        process.kill()
