"""Names of files and of classes, and what a weights file says, may hold anything: every output is still whole."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from PIL import Image
from safetensors.torch import save_file

from cifarctl import models, plots, weights
from cifarctl.errors import ImageError, UsageError, WeightsError
from cifarctl.figure_text import drawable
from cifarctl.names import portable_name, printable, spreadsheet_cell

from support import Cifarctl, MadeOnce

BYTES = os.fsdecode(b"caf\xe9")
ORDERS = "new\nline\x1b]0;title\x07"
CLASSES = [BYTES, ORDERS, "$\\frac{$", "$5-$10", "猫", "=1+1", "[red]x[", "abc\u202edef"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain é 猫", "plain é 猫"),
        (BYTES, "caf\\xe9"),
        (ORDERS, "new\\nline\\x1b]0;title\\x07"),
        ("abc\u202edef\u2066", "abc\\u202edef\\u2066"),
        ("\x9b31m\x7f\u2028", "\\x9b31m\\x7f\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_cannot_be_seen_is_escaped(name: str, text: str) -> None:
    assert printable(name) == text


@pytest.mark.parametrize("name", ["=1+1", "@x", "-photo.png", "+1", "\tx", "\r=x"])
def test_a_cell_that_a_spreadsheet_would_run_is_text(name: str) -> None:
    assert spreadsheet_cell(name) == f"'{name}"
    assert spreadsheet_cell(f"x{name}") == f"x{name}"


def test_a_name_becomes_a_files_name_on_any_system() -> None:
    assert portable_name("a photo (1)") == "a photo (1)"
    assert portable_name(f"a/b\\{BYTES}:*?") == "a-b-caf-xe9---"
    assert len(portable_name("猫" * 300).encode()) == 180


def test_no_error_repeats_a_hostile_field(tmp_path: Path) -> None:
    """In Python as on the command line: who catches an error may log it, or write it into a record."""
    text = str(UsageError("model: " + "x" * 1_000_000 + ": no such file", hint="y" * 1_000_000))
    assert len(text) < 2000
    assert text.startswith("model: x")
    assert text.endswith("x: no such file")
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1)}, file, {"format": "1", "kind": "k" * 1_000_000})
    with pytest.raises(WeightsError, match="kkkk") as error:
        weights.read_info(file)
    assert len(str(error.value)) < 2000
    assert len(str(pickle.loads(pickle.dumps(ImageError("z" * 1_000_000))))) < 2000  # as processes hand it on


class TestFigures:
    def test_dollars_are_dollars(self) -> None:
        texts, properties = drawable(["$5-$10", "$\\frac{$"])
        assert texts == [r"\$5-\$10", r"\$\frac{\$"]
        assert properties == {}

    def test_a_long_name_keeps_its_end(self) -> None:
        assert drawable(["a" * 20 + "/1.png"], 10)[0] == ["…aaa/1.png"]

    def test_the_classes_of_a_large_or_hostile_confusion_matrix_stay_readable(self) -> None:
        figure = plots.confusion(torch.eye(1000, dtype=torch.long).tolist(), [f"class {i}" for i in range(1000)])
        for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
            named = [label.get_text() for label in axis.get_ticklabels()]
            assert named == [f"class {i}" for i in range(0, 1000, 7)]
            assert axis.get_ticklocs().tolist() == [*range(0, 1000, 7)]
        figure = plots.confusion([[1, 0], [0, 1]], ["a", "x" * 1_000_000 + "b"])
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "…" + "x" * 58 + "b"]

    def test_characters_that_no_font_has_are_escapes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own = [entry for entry in font_manager.fontManager.ttflist if entry.name.startswith(("DejaVu", "Last Resort"))]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
        texts, properties = drawable(["猫 é \U000f1234"])
        assert texts == ["\\u732b é \\U000f1234"]
        assert properties == {}

    def test_another_font_is_taken_for_characters_that_the_usual_one_lacks(self) -> None:
        """STIX comes with Matplotlib too, and has a few that DejaVu has not."""
        usual, other = (
            font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in ("DejaVu Sans", "STIXGeneral")
        )
        character = next(chr(code) for code in sorted(other.keys() - usual.keys()) if chr(code).isprintable())
        texts, properties = drawable([f"a{character}"])
        assert texts == [f"a{character}"]
        assert properties["fontfamily"][0] == "DejaVu Sans"
        assert len(properties["fontfamily"]) == 2

    def test_every_figure_takes_every_name(self, tmp_path: Path) -> None:
        n = len(CLASSES)
        images, labels = torch.zeros((n, 3, 32, 32), dtype=torch.uint8), torch.arange(n)
        figures = [
            plots.confusion(np.eye(n, dtype=int).tolist(), CLASSES),
            plots.reconstructions(images, images.float(), CLASSES),
            plots.mistakes(images, labels, torch.eye(n).roll(1, 0), CLASSES),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for figure in figures:
                plots.save(figure, tmp_path / "figure.png")


@pytest.fixture(scope="session")
def odd_folder(made_once: MadeOnce) -> Path:
    def make(folder: Path) -> None:
        rng = np.random.default_rng(0)
        for split, count in (("train", 12), ("test", 3)):
            for number, name in enumerate(CLASSES):
                (folder / split / name).mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 80, (32, 32, 3), np.uint8)
                    pixels[..., number % 3] += 40 + 17 * number
                    Image.fromarray(pixels).save(folder / split / name / f"{i}.png")

    return made_once("odd-folder", make)


@pytest.fixture(scope="session")
def odd_run(made_once: MadeOnce, installed: Cifarctl, odd_folder: Path) -> Path:
    """Trained on classes of all these names."""

    def train(out: Path) -> None:
        few = ("--arch", "mlp", "--epochs", 1, "--batch-size", 32, "--val-size", 16, "--quiet", "--no-tensorboard")
        done = installed("train-clf", "--data", odd_folder, *few, "--out", out)
        assert done.code == 0, done.err
        assert done.err == ""
        assert "\x1b" not in done.out

    return made_once("odd-clf", train)


def plain(text: str) -> Iterator[str]:
    """The characters that are neither printable nor the end of a line."""
    return (character for character in text if not character.isprintable() and character != "\n")


@pytest.mark.needs("POSIX")
class TestClasses:
    def test_training_ends_with_its_pictures(self, odd_run: Path) -> None:
        assert (odd_run / "confusion.png").exists()
        assert not (odd_run / "checkpoint.safetensors").exists()
        assert weights.read_info(odd_run / "model.safetensors").classes == tuple(sorted(CLASSES))

    def test_tables_figures_and_the_report(self, cifarctl: Cifarctl, odd_run: Path, tmp_path: Path) -> None:
        page = tmp_path / "report.html"
        done = cifarctl("evaluate", "-m", odd_run, "--plots", tmp_path / "plots", "--report", page, "--quiet")
        assert done.code == 0
        assert done.err == ""
        assert list(plain(done.out)) == []
        for name in CLASSES:
            assert any(line.strip().startswith(printable(name)) for line in done.out.splitlines())
        html = page.read_text("utf-8")
        for shown in ("caf\\xe9", "new\\nline\\x1b]0;title\\x07", "abc\\u202edef", "猫", "$5-$10"):
            assert shown in html
        assert list(plain(html)) == []
        assert len(list((tmp_path / "plots").iterdir())) >= 2

    def test_answers_in_every_format(self, cifarctl: Cifarctl, odd_folder: Path, odd_run: Path, tmp_path: Path) -> None:
        files = sorted((odd_folder / "test").rglob("*.png"))
        for format in ("csv", "json", "jsonl"):
            assert cifarctl("predict", *files, "-m", odd_run, "-o", tmp_path / f"x.{format}").code == 0
        records = json.loads((tmp_path / "x.json").read_text("utf-8"))
        assert records == [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
        assert [os.fsencode(record["path"]) for record in records] == [os.fsencode(path) for path in files]
        assert {record["label"] for record in records} <= set(CLASSES)
        with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["label"] for row in rows] == [spreadsheet_cell(record["label"]) for record in records]
        assert any("caf\\xe9" in row["path"] for row in rows)
        table = cifarctl("predict", *files, "-m", odd_run, "--format", "table").out
        assert len(table.splitlines()) == len(files)
        assert list(plain(table)) == []

    def test_reconstructions(self, cifarctl: Cifarctl, autoencoder_run: Path, odd_folder: Path, tmp_path: Path) -> None:
        files = sorted(odd_folder.glob("test/*/0.png"))
        odd = tmp_path / f"{ORDERS}{BYTES} 猫$.png"
        shutil.copy(files[0], odd)
        grid, latents = tmp_path / "g.png", tmp_path / "z.safetensors"
        done = cifarctl("reconstruct", odd, *files, "-m", autoencoder_run, "-o", grid, "--latents", latents, "--quiet")
        assert done.code == 0
        assert done.err == ""
        assert list(plain(done.out)) == []
        assert cifarctl("reconstruct", odd, "-m", autoencoder_run, "-o", tmp_path / "out").code == 0
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["0000-new-nline-x1b]0;title-x07caf-xe9-猫$.png"]


@pytest.mark.needs("POSIX")
def test_every_field_of_a_weights_file_is_data(cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path) -> None:
    """A model from elsewhere names its classes, its data and itself."""
    model, info = weights.load_classifier(classifier_run / "model.safetensors", torch.device("cpu"))
    forged = "\n/other.png  cat 99 %\x1b]0;title\x07[/]"
    hostile = replace(info, classes=tuple(f"{name}{forged}" for name in info.classes), data={"name": forged})
    path = tmp_path / f"m{ORDERS}.safetensors"
    weights.save(path, model.state_dict(), hostile)
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    done = cifarctl("predict", tmp_path / "x.png", "-m", path, "--format", "table", "--top-k", 3)
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    assert list(plain(done.out)) == []
    results = [
        cifarctl("evaluate", "-m", path),
        cifarctl("evaluate", "-m", path, "--data", "synthetic"),
        cifarctl("reconstruct", "-m", path),
    ]
    for field in ("kind", "model", "format"):
        changes: dict[str, Any] = {field: forged} if field != "format" else {}
        bare = models.build("mlp", classes=2, hidden=[4])
        weights.save(path, bare.state_dict(), replace(info, **changes))
        results.append(cifarctl("predict", tmp_path / "x.png", "-m", path))
    for result in results:
        assert result.code == 1
        assert result.error
        assert list(plain(result.err)) == []


@pytest.mark.needs("POSIX")
def test_names_that_the_encoding_of_stdout_lacks_do_not_end_the_command(odd_folder: Path, classifier_run: Path) -> None:
    line = [sys.executable, "-m", "cifarctl", "predict", str(odd_folder / "test" / "猫"), "-m", str(classifier_run)]
    done = subprocess.run(
        [*line, "--format", "csv"], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True
    )
    assert done.stdout.count(b"\\u732b") == 3
