"""Damaged files through the real loaders, images of absurd sizes, and a reader of answers that goes away."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifarctl.data.images import expand, read_image, read_images
from cifarctl.errors import ImageError

from support import Cifarctl, command, peak_memory, watched_memory

GIB = 1 << 30


@pytest.mark.needs("/proc")
@pytest.mark.parametrize("reader", ["weights", "images"])
def test_mutated_files_end_in_an_error_line_or_a_right_answer(reader: str, thorough: bool) -> None:
    script = Path(__file__).parent / "mutated_files.py"
    count = 10_000 if thorough else 500
    done = subprocess.run(
        [sys.executable, str(script), reader, "--count", str(count)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"seed 0: {count:,} variants" in done.stdout


@pytest.mark.needs("/proc")
@pytest.mark.parametrize(
    ("mode", "size", "suffix"),
    [
        ("RGBA", (5600, 5600), "png"),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in (
                ("P", (5600, 5600), "png"),
                ("LA", (5600, 5599), "png"),
                ("I;16", (5600, 5600), "png"),
                ("1", (5600, 5600), "tiff"),
                ("CMYK", (5600, 5600), "tiff"),
            )
        ),
        ("RGB", (12_000, 9000), "jpg"),
    ],
)
def test_the_largest_images_that_are_read_take_little_memory(
    tmp_path: Path, mode: str, size: tuple[int, int], suffix: str
) -> None:
    path = tmp_path / f"large.{suffix}"
    Image.new(mode, size, 200 if mode in ("P", "1", "I;16") else (200,) * len(mode)).save(path)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cifarctl.data.images import read_image\n"
        "from support import peak_memory\n"
        "before = peak_memory()\n"
        "print(read_image(Path(sys.argv[1])).shape, peak_memory() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    shape, taken = done.stdout.rsplit(" ", 1)
    assert shape == "(3, 32, 32)"
    assert 0 < int(taken) < 0.35 * GIB


def test_an_image_of_extreme_shape(tmp_path: Path) -> None:
    pixels = np.zeros((1, 60_000, 3), np.uint8)
    pixels[:, 30_000:] = 255
    Image.fromarray(pixels).save(tmp_path / "line.png")
    line = read_image(tmp_path / "line.png")
    assert line[:, :, :15].max() < 20
    assert line[:, :, 17:].min() > 235


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "nul\0.png", "a/" * 3000 + "b.png"])
def test_a_name_that_cannot_be_is_an_answer_like_others(name: str) -> None:
    ((path, answer),) = read_images(expand([Path(name)]))
    assert path == Path(name)
    assert isinstance(answer, ImageError)


@pytest.mark.thorough
@pytest.mark.needs("/proc")
def test_100_000_paths_for_a_reader_that_goes_away(classifier_run: Path, photos: Path) -> None:
    """No traceback, no hang, and memory that does not grow with the number of paths."""
    photo = os.fsencode(next(photos.iterdir()))
    process = subprocess.Popen(
        [command(), "predict", "-", "-m", str(classifier_run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    started, peak = time.monotonic(), 0
    try:
        for i in range(100_000):
            process.stdin.write(photo + b"\n")
            if i % 500 == 0:
                peak = max(peak, peak_memory(process.pid))
            if i == 1000:  # more than it reads before it answers, less than the pipes hold
                lines = [process.stdout.readline() for _ in range(10)]
                process.stdout.close()
    except BrokenPipeError:
        pass
    print(f"ended after {time.monotonic() - started:.1f} s")
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert error == b""
    assert all(line.startswith(b'{"path"') for line in lines)
    print(f"{peak / 2**20:.0f} MiB at most")
    assert 0 < peak < 2 * GIB


@pytest.mark.thorough
@pytest.mark.needs("/proc")
def test_memory_does_not_grow_with_the_number_of_images(classifier_run: Path, photos: Path) -> None:
    photo = os.fsencode(next(photos.iterdir())) + b"\n"

    def peak(count: int) -> int:
        process = subprocess.Popen(
            [command(), "predict", "-", "-m", str(classifier_run), "-o", os.devnull], stdin=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(photo * count)
        process.stdin.close()
        most = watched_memory(process)
        assert process.returncode == 0
        return most

    few = peak(1000)
    assert 0 < peak(4000) < 1.2 * few


def test_a_damaged_tiff_says_nothing_but_its_error(installed: Cifarctl, classifier_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    Image.fromarray(np.random.default_rng(0).random((40, 40)) > 0.5).save(path, compression="group4")
    data = bytearray(path.read_bytes())
    data[20:60] = b"\xff" * 40
    path.write_bytes(data)
    done = installed("predict", path, "-m", classifier_run)
    assert [line for line in done.err.splitlines() if "Fax" in line or "TIFF" in line] == []
