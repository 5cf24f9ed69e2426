"""`predict`: image files in, one answer each, in order, in the format that was asked for."""

import csv
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import torch
from PIL import Image

from cifarctl import weights
from cifarctl.cli import records
from cifarctl.data import Source
from cifarctl.inference import predict_logits

from support import Cifarctl, command


def labels(out: str) -> list[str]:
    return [json.loads(line)["label"] for line in out.splitlines()]


def test_a_folder_is_answered_in_order_as_json_lines(installed: Cifarctl, classifier_run: Path, photos: Path) -> None:
    done = installed("predict", photos, "-m", classifier_run)
    assert done.code == 0
    assert done.err == ""
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [record["path"] for record in records] == sorted(str(path) for path in photos.iterdir())
    for record in records:
        assert set(record) == {"path", "label", "confidence", "typicality", "top"}
        assert record["top"] == [{"label": record["label"], "confidence": record["confidence"]}]


def test_the_answers_are_those_of_the_model_on_the_same_pixels(
    cifarctl: Cifarctl, classifier_run: Path, photos: Path
) -> None:
    done = cifarctl("predict", photos, "-m", classifier_run, "--format", "jsonl", "--precision", "fp32")
    model, info = weights.load_classifier(classifier_run / "model.safetensors", torch.device("cpu"))
    logits = predict_logits(model, Source("synthetic").load("test").images[:30])
    assert labels(done.out) == [info.classes[index] for index in logits.argmax(1)]


def test_paths_come_from_stdin_too(installed: Cifarctl, classifier_run: Path, photos: Path) -> None:
    names = sorted(photos.iterdir(), reverse=True)
    stdin = "".join(f"{name}\n" for name in names).encode()
    done = installed("predict", "-", "-m", classifier_run, stdin=stdin)
    assert [json.loads(line)["path"] for line in done.out.splitlines()] == [str(name) for name in names]


def test_an_unreadable_file_is_answered_and_the_rest_goes_on(
    installed: Cifarctl, classifier_run: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "05-broken.png").write_bytes(b"\x89PNG\r\n")
    done = installed("predict", folder, tmp_path / "none.jpg", "-m", classifier_run)
    assert done.code == 1
    records = [json.loads(line) for line in done.out.splitlines()]
    failed = [record for record in records if "error" in record]
    assert len(records) == 32
    assert [Path(record["path"]).name for record in failed] == ["05-broken.png", "none.jpg"]
    assert failed[1] == {"path": str(tmp_path / "none.jpg"), "error": "no such file"}
    assert "2 of 32 files could not be read" in done.err


def test_top_k_is_ranked_and_adds_up(cifarctl: Cifarctl, classifier_run: Path, photos: Path) -> None:
    done = cifarctl("predict", photos, "-m", classifier_run, "--format", "jsonl", "--top-k", 10)
    for line in done.out.splitlines():
        record = json.loads(line)
        confidences = [entry["confidence"] for entry in record["top"]]
        assert confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1, abs=1e-4)
        assert (record["label"], record["confidence"]) == (record["top"][0]["label"], confidences[0])
    too_many = cifarctl("predict", photos, "-m", classifier_run, "--top-k", 11)
    assert too_many.code == 2
    assert "10 classes" in too_many.error


def test_every_format_holds_the_same_answers(
    cifarctl: Cifarctl, classifier_run: Path, photos: Path, tmp_path: Path
) -> None:
    def predict(format: str) -> str:
        done = cifarctl(
            "predict", photos, tmp_path / "none.png", "-m", classifier_run, "--format", format, "--top-k", 2
        )
        assert done.code == 1
        return done.out

    records = [json.loads(line) for line in predict("jsonl").splitlines()]
    assert json.loads(predict("json")) == records
    rows = list(csv.DictReader(io.StringIO(predict("csv"))))
    assert list(csv.DictReader(io.StringIO(predict("tsv")), delimiter="\t")) == rows
    assert [row["path"] for row in rows] == [record["path"] for record in records]
    for row, record in zip(rows[:-1], records[:-1], strict=True):
        assert (row["label"], float(row["confidence"])) == (record["label"], record["confidence"])
        assert row["label_2"] == record["top"][1]["label"]
    assert rows[-1]["error"] == "no such file"
    table = predict("table").splitlines()
    assert len(table) == len(records)
    assert table[0].split()[0] == records[0]["label"]
    assert table[-1].startswith("error")


def test_no_images_are_an_empty_answer(cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path) -> None:
    assert cifarctl("predict", tmp_path, "-m", classifier_run, "--format", "json").json == []
    assert cifarctl("predict", tmp_path, "-m", classifier_run, "--format", "jsonl").out == ""


def test_a_file_gets_the_answers_whole_or_not_at_all(
    cifarctl: Cifarctl, classifier_run: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    done = cifarctl("predict", photos, "-m", classifier_run, "-o", out)
    assert done.code == 0
    assert done.out == ""
    assert len(labels(out.read_text())) == 30
    refused = cifarctl("predict", photos, "-m", classifier_run, "-o", out / "answers.jsonl")
    assert refused.code == 1
    assert "answers.jsonl" in refused.error
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_a_reader_that_goes_away_ends_it_quietly(classifier_run: Path, photos: Path, tmp_path: Path) -> None:
    paths = tmp_path / "paths"
    paths.write_text(f"{next(photos.iterdir())}\n" * 20_000, encoding="utf-8")
    line = [command(), "predict", "-", "-m", str(classifier_run)]
    with (
        paths.open() as stdin,
        subprocess.Popen(line, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert all(process.stdout.readline().startswith('{"path"') for _ in range(3))
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.needs("byte names")
def test_names_need_not_be_utf_8(installed: Cifarctl, classifier_run: Path, photos: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shutil.copy(os.fsencode(next(photos.iterdir())), odd)
    for arguments, stdin in (((tmp_path,), b""), (("-",), odd + b"\n")):
        done = installed("predict", *arguments, "-m", classifier_run, stdin=stdin)
        assert done.code == 0, done.err
        path = json.loads(done.out)["path"]
        assert os.fsencode(path) == odd


@pytest.mark.needs("POSIX")
def test_a_name_is_data_and_never_an_order_to_the_terminal(
    cifarctl: Cifarctl, classifier_run: Path, photos: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "new\nline\x1b[31m.png"
    shutil.copy(next(photos.iterdir()), odd)
    table = cifarctl("predict", tmp_path, "-m", classifier_run, "--format", "table").out
    assert len(table.splitlines()) == 1
    assert "\x1b" not in table
    rows = list(csv.DictReader(io.StringIO(cifarctl("predict", odd, "-m", classifier_run, "--format", "csv").out)))
    assert [row["path"] for row in rows] == [str(odd)]


def test_an_empty_name_is_not_the_current_folder(cifarctl: Cifarctl, classifier_run: Path) -> None:
    done = cifarctl("predict", "", "-m", classifier_run)
    assert done.code == 2
    assert "an empty name" in done.error


def test_the_suffix_of_the_file_decides_the_format(
    cifarctl: Cifarctl, classifier_run: Path, photos: Path, tmp_path: Path
) -> None:
    for name in ("a.csv", "a.json", "a.jsonl", "a.TSV", "answers"):
        assert cifarctl("predict", photos, "-m", classifier_run, "-o", tmp_path / name).code == 0
    assert (tmp_path / "a.csv").read_text().startswith("path,label,")
    assert len(json.loads((tmp_path / "a.json").read_text())) == 30
    assert len(labels((tmp_path / "a.jsonl").read_text())) == 30
    assert (tmp_path / "a.TSV").read_text().startswith("path\tlabel\tconfidence\t")
    assert (tmp_path / "answers").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says", "names"),
    [
        (("--format", "xml"), "--format xml: no such format", "table, jsonl, json, csv, tsv"),
        (("-o", "answers.xlsx"), "no format has the suffix .xlsx", ".jsonl, .ndjson, .json, .csv, .tsv"),
    ],
)
def test_an_unknown_format_is_an_error_that_names_what_there_is(
    cifarctl: Cifarctl, tmp_path: Path, arguments: tuple[str, str], says: str, names: str
) -> None:
    done = cifarctl("predict", tmp_path, "-m", tmp_path / "no-model", *arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.error
    assert names in done.err.splitlines()[-1]
    named = cifarctl("predict", "--help")
    assert "table|jsonl|json|csv|tsv" in "".join(named.out.split())


def test_a_file_of_any_name_gets_the_format_that_is_asked_for(
    cifarctl: Cifarctl, classifier_run: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.txt"
    assert cifarctl("predict", photos, "-m", classifier_run, "-o", out, "--format", "csv").code == 0
    assert out.read_text().startswith("path,label,")


def test_a_new_format_needs_nothing_but_its_entry(
    cifarctl: Cifarctl, classifier_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def open_names(stream: IO[str], top_k: int) -> Iterator[records.Writer]:
        yield lambda some: stream.writelines(f"{Path(one['path']).name} {top_k}\n" for one in some)

    monkeypatch.setitem(records.FORMATS, "names", records.Format(open_names, (".names",)))
    wanted = "".join(f"{path.name} 2\n" for path in sorted(photos.iterdir()))
    line = ("predict", photos, "-m", classifier_run, "--top-k", 2)
    assert cifarctl(*line, "--format", "names").out == wanted
    assert cifarctl(*line, "-o", tmp_path / "x.names").code == 0
    assert (tmp_path / "x.names").read_text() == wanted
    assert "names" in cifarctl(*line, "--format", "other").err


@pytest.mark.needs("/dev/full")
def test_a_full_disk_behind_stdout_is_one_line(classifier_run: Path, photos: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [command(), "predict", photos, "-m", classifier_run],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: stdout: No space left on device\n"


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_changes_no_answer(
    cifarctl: Cifarctl, classifier_run: Path, photos: Path, batch_size: int
) -> None:
    wanted = cifarctl("predict", photos, "-m", classifier_run, "--precision", "fp32", "--format", "jsonl")
    done = cifarctl(
        "predict", photos, "-m", classifier_run, "--precision", "fp32", "--format", "jsonl", "--batch-size", batch_size
    )
    assert labels(done.out) == labels(wanted.out)


def test_predicting_loads_neither_torchvision_nor_torchmetrics_nor_matplotlib(
    classifier_run: Path, photos: Path
) -> None:
    code = (
        "import sys; from cifarctl.cli import run; "
        f"code = run(['predict', {str(photos)!r}, '-m', {str(classifier_run)!r}, '--format', 'csv']); "
        "print(code, sorted({'torchvision', 'torchmetrics', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"


@pytest.mark.needs("/proc")
def test_stdout_by_its_path_is_stdout(classifier_run: Path, photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("kept\n")
    with log.open("a") as appended:
        line = [command(), "predict", str(next(photos.iterdir())), "-m", str(classifier_run), "-o", "/dev/stdout"]
        subprocess.run(line, stdout=appended, check=True)
    kept, answer = log.read_text().splitlines()
    assert kept == "kept"
    assert json.loads(answer)["label"]


@pytest.mark.needs("POSIX")
def test_names_with_line_breaks_and_tabs_stay_one_record(
    cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a\rb.png", "c\nd.png", "e\tf.png", 'g"h.png', "i\\nj.png", "k\u2028l.png"]
    for name in names:
        Image.new("RGB", (32, 32)).save(name, "PNG")
    arguments = ("predict", *names, "-m", classifier_run, "--top-k", 1)
    assert cifarctl(*arguments, "-o", "x.csv").code == 0
    with Path("x.csv").open(encoding="utf-8", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == names
    assert cifarctl(*arguments, "-o", "x.tsv").code == 0
    rows = [line.split("\t") for line in Path("x.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert [len(row) for row in rows] == [5] * len(names)
    assert [row[0].encode("latin-1", "backslashreplace").decode("unicode_escape") for row in rows] == names
