"""Progress: a line that is redrawn on a terminal, whole lines elsewhere, and nothing where it would be in the way."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cifarctl.cli import progress
from cifarctl.cli.output import Output
from cifarctl.cli.progress import ProgressLine, shown_progress
from cifarctl.data import Source
from cifarctl.evaluation import evaluate_autoencoder
from cifarctl.inference import predict_logits
from cifarctl.models.base import Classifier
from cifarctl.progress import Progress
from cifarctl.weights import load_autoencoder, load_classifier

from support import command, on_a_terminal

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def drawn(line: ProgressLine, width: int) -> str:
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(line)
    return capture.get()


def line_of(*events: Progress) -> ProgressLine:
    line = ProgressLine()
    for event in events:
        line.show(event)
    return line


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_it_is_one_line_of_any_terminal(width: int) -> None:
    for event in (
        Progress("Classifying", 12_345, 1_000_000),
        Progress("Computing PCA of 48,000 training images"),
        Progress("Reading images", 7, unit="files"),
        Progress("Drawing \N{CJK UNIFIED IDEOGRAPH-56FE}" * 30),
    ):
        (text,) = drawn(line_of(event), width).splitlines()
        assert Console().render_str(text).cell_len <= width
    line = ProgressLine()
    line.update("epoch 12", ["loss 0.1234", "accuracy 91.23%", "12,345 images/s", "12:34 left"], 5, 10)
    (text,) = drawn(line, width).splitlines()
    assert Console().render_str(text).cell_len <= width


def test_a_count_and_its_total_are_the_last_to_go() -> None:
    line = line_of(Progress("Classifying", 5_000, 10_000))
    assert "━" in drawn(line, 40)
    assert "5,000 of 10,000" in drawn(line, 40)
    assert drawn(line, 30).strip() == "Classifying  5,000 of 10,000"


def test_names_are_made_visible_and_are_no_markup() -> None:
    shown = drawn(line_of(Progress("Reading train of [red]\x1b[2J")), 80)
    assert "[red]" in shown
    assert "\x1b[2J" not in shown


def test_without_a_terminal_there_is_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_PER_LINE", 0.05)
    with shown_progress(Output()) as line:
        line.show(Progress("Computing PCA of 48,000 training images"))
        time.sleep(0.2)
        line.show(Progress("Classifying", 250, 10_000))
        time.sleep(0.2)
    first, *_, last = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"Computing PCA of 48,000 training images … \d s", first)
    assert last.startswith("Classifying: 250 of 10,000")


def test_quiet_says_nothing_and_quick_work_neither(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with shown_progress(Output()) as line:
        line.show(Progress("Classifying", 250, 10_000))
    monkeypatch.setattr(progress, "_SECONDS_PER_LINE", 0.01)
    with shown_progress(Output(quiet=True)) as line:
        line.show(Progress("Classifying", 250, 10_000))
        time.sleep(0.05)
    assert capfd.readouterr().err == ""


def test_the_library_tells_each_batch_and_names_what_is_slow_once(classifier_run: Path, autoencoder_run: Path) -> None:
    source = Source("synthetic", limit=100)
    test = source.load("test")
    device = test.images.device
    events: list[Progress] = []
    classifier, _ = load_classifier(classifier_run / "model.safetensors", device)
    predict_logits(classifier, test.images, on_event=events.append)
    assert events == [Progress("Classifying", done, 1000) for done in range(0, 1001, 125)]
    events.clear()
    autoencoder, _ = load_autoencoder(autoencoder_run / "model.safetensors", device)
    evaluate_autoencoder(autoencoder, test, source.load("train").images, on_event=events.append)
    assert "Computing PCA of 100 training images" in [event.work for event in events]


class SlowClassifier(Classifier):
    """Quick with black images, and 500 calls of a layer for others."""

    def __init__(self) -> None:
        super().__init__(classes=2)
        self.calls = 0
        self.layer = torch.nn.Linear(3, 2)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        for _ in range(500 if features.any() else 1):
            logits = self.layer(features.mean((2, 3)))
            self.calls += 1
            time.sleep(0.001 if features.any() else 0)
        return logits


def test_an_interruption_waits_for_no_batch() -> None:
    model, images = SlowClassifier(), torch.zeros(1000, 3, 32, 32, dtype=torch.uint8)
    images[125:] = 255

    def interrupt(event: Progress) -> None:
        if event.done:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            predict_logits(model, images, on_event=interrupt)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert model.calls < 500
    assert not model.layer._forward_pre_hooks


@pytest.mark.needs("POSIX")
class TestOnATerminal:
    def test_evaluate_draws_a_bar_and_takes_it_away(self, autoencoder_run: Path) -> None:
        done = on_a_terminal("evaluate", "-m", autoencoder_run, "--json", env={"COLUMNS": "80"})
        assert done.code == 0
        assert done.json["n"] == 1000
        assert "Computing PCA of" in done.err
        assert done.err.count(HIDE_CURSOR) == done.err.count(SHOW_CURSOR) == 1
        assert done.err.endswith("\x1b[1A\x1b[2K")  # the line is gone

    @pytest.mark.parametrize(("option", "env"), [("--quiet", {}), ("--json", {"NO_COLOR": "1"})])
    def test_nothing_is_redrawn_that_must_not_be(self, classifier_run: Path, option: str, env: dict[str, str]) -> None:
        done = on_a_terminal("evaluate", "-m", classifier_run, option, env=env)
        assert done.code == 0
        assert "\x1b" not in done.err

    def test_a_closed_terminal_is_no_reason_to_fail(self, classifier_run: Path) -> None:
        import pty

        terminal, end = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        line = [command(), "evaluate", "-m", str(classifier_run), "--json"]
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=end, env={**environment, "TERM": "xterm"}
        ) as process:
            os.close(end)
            os.close(terminal)
            out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert json.loads(out)["n"] == 1000

    def test_an_encoding_without_our_characters_gets_plain_ones(self, autoencoder_run: Path) -> None:
        done = on_a_terminal("evaluate", "-m", autoencoder_run, env={"COLUMNS": "80", "PYTHONIOENCODING": "ascii"})
        assert done.code == 0
        assert "Computing the metrics ...  " in done.err
        assert "\\u2" not in done.err + done.out

    def test_predict_draws_a_bar_unless_its_answers_may_appear_there(
        self, classifier_run: Path, photos: Path, tmp_path: Path
    ) -> None:
        arguments = ("predict", photos, "-m", classifier_run)
        to_file = on_a_terminal(*arguments, "-o", tmp_path / "out.csv", env={})
        assert (to_file.code, HIDE_CURSOR in to_file.err) == (0, True)
        piped = on_a_terminal(*arguments, env={})  # to a program that may print on the same terminal
        assert (piped.code, len(piped.out.splitlines())) == (0, 30)
        assert "\x1b" not in piped.err

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.thorough)]
    )
    def test_a_signal_leaves_a_clean_terminal(self, autoencoder_run: Path, number: signal.Signals, code: int) -> None:
        import pty

        terminal, end = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        with subprocess.Popen(
            [command(), "evaluate", "-m", str(autoencoder_run)],
            stdout=end,
            stderr=end,
            env={**environment, "TERM": "xterm-256color", "COLUMNS": "80"},
        ) as process:
            os.close(end)
            shown = read_until(terminal, lambda text: "Computing PCA" in text)
            process.send_signal(number)
            shown += read_until(terminal, lambda _: False)
            assert process.wait() == code
        os.close(terminal)
        assert "Traceback" not in shown
        assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
        assert shown.splitlines()[-1].endswith(f"error: {number.name} while measuring")


def read_until(terminal: int, is_enough: Callable[[str], bool]) -> str:
    """What the terminal shows until then, or until the process ends."""
    shown = b""
    while not is_enough(shown.decode(errors="replace")):
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    return shown.decode(errors="replace")
