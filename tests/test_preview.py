"""`--show`: images drawn on a terminal, and nothing where there is none."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cifarctl.cli.output import Output
from cifarctl.cli.preview import show_images

from support import Cifarctl, on_a_terminal

CELL = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(▀+)")


class Terminal(Output):
    """An output whose messages go to a true-colour terminal of so many columns."""

    redraws = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.file = io.StringIO()
        self.stderr = Console(file=self.file, force_terminal=True, color_system="truecolor", width=width)


def test_a_cell_is_two_pixels() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 32, 32), np.uint8)
    terminal = Terminal(80)
    show_images([image], ["cat"], terminal)
    lines = terminal.file.getvalue().splitlines()
    assert "cat" in lines[16]
    for row, line in enumerate(lines[:16]):
        cells = [tuple(map(int, cell[:6])) for cell in CELL.findall(line)]
        assert cells == [(*image[:, 2 * row, x], *image[:, 2 * row + 1, x]) for x in range(32)]


def test_as_many_as_fit_stand_side_by_side() -> None:
    images = [np.full((3, 32, 32), value, np.uint8) for value in (10, 100, 200)]
    for width, bands in ((32, 3), (65, 2), (98, 1)):
        terminal = Terminal(width)
        show_images(images, ["a", "b", "c"], terminal)
        lines = terminal.file.getvalue().splitlines()
        assert len(lines) == 17 * bands
        assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in lines) <= width


@pytest.mark.thorough
def test_a_pipe_gets_the_answers_alone(installed: Cifarctl, classifier_run: Path, photos: Path) -> None:
    photo = next(photos.iterdir())
    plain = installed("predict", photo, "-m", classifier_run)
    assert installed("predict", photo, "-m", classifier_run, "--show") == plain


@pytest.mark.needs("POSIX")
def test_predict_and_reconstruct_draw_on_a_terminal(
    classifier_run: Path, autoencoder_run: Path, photos: Path, tmp_path: Path
) -> None:
    photo = next(photos.iterdir())
    calls = (
        ["predict", str(photo), "-m", str(classifier_run), "--show"],
        ["reconstruct", str(photo), "-m", str(autoencoder_run), "--show", "-o", str(tmp_path / "grid.png")],
    )
    for arguments in calls:
        done = on_a_terminal(*arguments, env={"COLORTERM": "truecolor", "COLUMNS": "80"})
        assert done.code == 0
        assert done.err.count("▀") >= 32 * 16
