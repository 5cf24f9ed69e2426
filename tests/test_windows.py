"""Windows, as far as Linux can show it: the whole command line in a process that has what Python has there, and no more
(`windows_like.py` says what that is).
"""

import csv
import io
import json
import ntpath
import os
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifarctl import wording
from cifarctl.cli import completion
from cifarctl.data.data_file import archive_digest, write_data_file
from cifarctl.data.dataset import Dataset
from cifarctl.data.download import common_places, is_url
from cifarctl.hardware import is_out_of_memory
from cifarctl.shell import command_line
from cifarctl.training.checkpoint import Checkpoint, TrainingState

from py2_pickle import SmallArchive
from support import Cifarctl, MadeOnce, Result

FEW = ("--limit", 200, "--val-size", 50, "--batch-size", 50, "--device", "cpu")
HOSTILE_CLASSES = ("cat: a?", "n/a")
PHOTOS = ("Zürich.png", "a b.png", "東京.png")


class Session:
    """A folder in which commands have run as on Windows, and how they ended, by the names that the plan gives them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._results = json.loads((folder / "results.json").read_text(encoding="utf-8"))

    def __getitem__(self, name: str) -> Result:
        return Result(**self._results[name])


def run_as_windows(folder: Path, archive: SmallArchive) -> None:
    """All commands in one process: torch takes seconds to import."""
    folder.mkdir()
    clf, ae, photos, data = folder / "my runs" / "clf", folder / "ae", folder / "photos", folder / "data"
    pictures = folder / "own images"
    rng = np.random.default_rng(0)
    own = [Path(split, name, f"{i}.png") for split in ("train", "test") for name in ("red", "blue") for i in range(20)]
    for path in (*(photos / name for name in PHOTOS), *(pictures / name for name in own)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    train, test = (
        Dataset(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 2, HOSTILE_CLASSES) for _ in "ab"
    )
    write_data_file(folder / "odd" / "cifar10.safetensors", train, test, "0" * 64)
    download = ("download", "--from", archive.path, "--sha256", archive.sha256, "--data-dir", data)
    mlp = ("train-clf", "--data", "synthetic", "--arch", "mlp", *FEW, "--out", clf)
    predict = ("predict", "-m", clf)
    zurich = f"{photos / PHOTOS[0]}\r\n"

    def step(*arguments: object, **more: Any) -> dict[str, Any]:
        return {"arguments": [str(argument) for argument in arguments], **more}

    plan = {
        "help": step("--help"),
        "version": step("--version"),
        "usage": step("train-clf", "--epochs", "x"),
        "download": step(*download),
        "force, in use": step(*download, "--force", mapped_elsewhere=[str(data / "cifar10.safetensors")]),
        "force": step(*download, "--force", "--json"),
        "interrupted": step(*mlp, "--epochs", 2, press_at="epoch 1/2"),
        "resumed": step("train-clf", "--out", clf, "--resume"),
        "unheard": step(*mlp, "--epochs", 1, "--overwrite", "--json", gone=["stderr"]),
        "own images": step(
            *("train-clf", "--data", pictures, "--arch", "mlp", "--epochs", 1, "--val-size", 10, "--batch-size", 10),
            *("--device", "cpu", "--no-tensorboard", "--out", folder / "own"),
        ),
        "evaluate": step("evaluate", "-m", clf, "--plots", folder / "plots", "--report", folder / "report.html"),
        "compare": step("evaluate", *("-m", folder / "own") * 2, "--plots", folder / "plots of two"),
        "train-ae": step(
            *("train-ae", "--data", "synthetic", "--arch", "conv2", "--latent-dim", 64, "--epochs", 1, *FEW),
            *("--out", ae),
        ),
        "reconstruct": step(
            *("reconstruct", "-m", ae, "--data", "cifar10", "--data-dir", folder / "odd", "--count", 2),
            *("-o", folder / "made", "--latents", folder / "latents.safetensors"),
        ),
        **{format: step(*predict, photos, "--format", format) for format in ("jsonl", "json", "csv", "table")},
        "paths, PowerShell": step(*predict, "-", stdin=f"\ufeff{zurich}{zurich}".encode().hex()),
        "paths, cmd": step(*predict, "-", stdin=zurich.encode("cp850").hex()),
        "to a file": step(*predict, photos, "-o", folder / "answers.csv"),
        "to a folder": step(*predict, photos, "-o", photos),
        "to a file in use": step(
            *predict, photos, "-o", folder / "answers.csv", mapped_elsewhere=[str(folder / "answers.csv")]
        ),
        "predict, unread": step(*predict, photos, gone=["stdout"]),
        "help, unread": step("--help", gone=["stdout"]),
        "usage, unheard": step("train-clf", "--epochs", "x", gone=["stderr"]),
    }
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    script = Path(__file__).with_name("windows_like.py")
    line: list[str | Path] = [sys.executable, "-X", "warn_default_encoding", script]
    line += [folder / "plan.json", folder / "results.json"]
    # No CPU's own number formats: what is trained is the same everywhere.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CIFARCTL_DATA_DIR": str(folder / "none")}
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def windows(made_once: MadeOnce, archive: SmallArchive) -> Session:
    return Session(made_once("windows", lambda folder: run_as_windows(folder, archive)))


@pytest.mark.needs("/proc")
def test_every_command_starts_and_says_what_is_wrong(windows: Session) -> None:
    assert windows["help"].code == windows["version"].code == 0
    assert "predict" in windows["help"].out
    assert windows["version"].out.startswith("cifarctl ")
    assert windows["usage"].code == 2
    assert "--epochs" in windows["usage"].error


@pytest.mark.needs("/proc")
def test_no_command_ends_in_a_traceback_or_an_internal_error(windows: Session) -> None:
    said = "".join(windows[name].err for name in json.loads((windows.folder / "plan.json").read_text(encoding="utf-8")))
    assert "Traceback" not in said
    assert "internal error" not in said


@pytest.mark.needs("/proc")
def test_no_temporary_file_is_left_anywhere(windows: Session) -> None:
    assert [path for path in windows.folder.rglob("*") if ".part" in path.name] == []


@pytest.mark.needs("/proc")
def test_a_file_that_another_program_has_mapped_is_whole_and_can_be_replaced_later(
    windows: Session, archive: SmallArchive
) -> None:
    assert windows["download"].code == 0
    refused = windows["force, in use"]
    data = windows.folder / "data" / "cifar10.safetensors"
    assert refused.code == 1
    assert refused.error == f"error: {data}: cannot be replaced: another program has it open, or it is read-only"
    assert "hint: close the program that uses it" in refused.err
    assert windows["force"].json["downloaded"] is True
    assert archive_digest(data) == archive.sha256
    assert windows["to a file"].code == 0
    assert f"{windows.folder / 'answers.csv'}: cannot be replaced" in windows["to a file in use"].error


@pytest.mark.needs("/proc")
def test_a_checkpoint_that_was_read_is_not_in_use(tmp_path: Path) -> None:
    from windows_like import check_unused  # here, since Windows itself has not all that it imports

    model, path = torch.nn.Linear(8, 8), tmp_path / "checkpoint.safetensors"
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    copies = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for _ in range(2)]
    Checkpoint(path).save(TrainingState(best=copies[0], ema=copies[1]), model, optimizer)
    state = Checkpoint(path).load(model, optimizer, torch.device("cpu"))
    check_unused(path)
    assert state.best.keys() == state.ema.keys() == copies[0].keys()


@pytest.mark.needs("/proc")
def test_ctrl_break_saves_the_run_and_the_hint_can_be_pasted(windows: Session) -> None:
    stopped, run = windows["interrupted"], windows.folder / "my runs" / "clf"
    assert stopped.code == 128 + 21
    assert "SIGBREAK after step 4 of 8" in stopped.error
    assert stopped.err.endswith(f'hint: go on with: cifarctl train-clf --out "{run}" --resume\n')
    assert windows["resumed"].code == 0
    assert "epoch 2/2" in windows["resumed"].err
    assert "epoch 1/2" not in windows["resumed"].err


@pytest.mark.needs("/proc")
def test_training_measuring_and_drawing_write_their_files(windows: Session) -> None:
    for name in ("own images", "evaluate", "compare", "train-ae", "reconstruct"):
        assert windows[name].code == 0, windows[name].err
    assert {path.name for path in (windows.folder / "ae").iterdir()} >= {"model.safetensors", "reconstructions.png"}
    assert {path.name for path in (windows.folder / "plots").iterdir()} >= {"confusion.png", "reliability.png"}
    page = (windows.folder / "report.html").read_bytes()
    assert page.startswith(b"<!doctype html>")
    assert b"\r" not in page


@pytest.mark.needs("/proc")
def test_what_is_named_after_classes_and_folders_gets_a_name_that_windows_takes(windows: Session) -> None:
    assert sorted(path.name for path in (windows.folder / "made").iterdir()) == ["0000-0-cat--a-.png", "0001-1-n-a.png"]
    folders = sorted(path.name for path in (windows.folder / "plots of two").iterdir())
    assert folders == ["0-own images-test", "1-own images-test"]


@pytest.mark.needs("/proc")
def test_every_format_is_utf8_also_where_the_code_page_is_not(windows: Session) -> None:
    paths = sorted(str(windows.folder / "photos" / name) for name in PHOTOS)
    assert sorted(json.loads(line)["path"] for line in windows["jsonl"].out.splitlines()) == paths
    assert sorted(record["path"] for record in windows["json"].json) == paths
    assert sorted(row["path"] for row in csv.DictReader(io.StringIO(windows["csv"].out))) == paths
    assert sorted(line.replace("* ", "").split(maxsplit=2)[2] for line in windows["table"].out.splitlines()) == paths
    with (windows.folder / "answers.csv").open(encoding="utf-8", newline="") as file:
        assert sorted(row["path"] for row in csv.DictReader(file)) == paths


@pytest.mark.needs("/proc")
def test_paths_on_stdin_are_read_as_powershell_and_cmd_write_them(windows: Session) -> None:
    path = str(windows.folder / "photos" / PHOTOS[0])
    for name, count in (("paths, PowerShell", 2), ("paths, cmd", 1)):
        assert windows[name].code == 0
        assert [json.loads(line)["path"] for line in windows[name].out.splitlines()] == [path] * count


@pytest.mark.needs("/proc")
def test_a_folder_is_no_file_to_write_to(windows: Session) -> None:
    assert windows["to a folder"].code == 1
    assert f"{windows.folder / 'photos'}: Is a directory" in windows["to a folder"].error


@pytest.mark.needs("/proc")
def test_a_reader_that_has_gone_ends_the_program_quietly(windows: Session) -> None:
    for name in ("predict, unread", "help, unread"):
        assert (windows[name].code, windows[name].err) == (141, "")


@pytest.mark.needs("/proc")
def test_work_goes_on_where_nobody_reads_the_messages(windows: Session) -> None:
    assert windows["unheard"].code == 0
    assert windows["unheard"].json["epochs"] == 1
    assert windows["usage, unheard"].code == 2


@pytest.mark.needs("byte names")
def test_a_users_files_give_names_that_every_system_takes(cifarctl: Cifarctl, tmp_path: Path) -> None:
    photo = tmp_path / "shot 12:30?.png"
    Image.new("RGB", (32, 32)).save(photo)
    assert cifarctl("reconstruct", photo, "-o", tmp_path / "made").code == 0
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["0000-shot-12-30-.png"]


@pytest.mark.parametrize("words", [["a b"], ["C:\\my runs\\clf"], ["a&b"], ["a,b"]])
def test_words_that_a_shell_of_windows_would_split_are_in_double_quotes(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifarctl.shell.sys", SimpleNamespace(platform="win32"))
    assert command_line(["cifarctl", "--out", *words, "runs\\clf"]) == f'cifarctl --out "{words[0]}" runs\\clf'


def test_a_run_is_called_by_its_folder_whatever_separates_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "Path", PureWindowsPath)
    assert wording.model_name("runs\\clf\\model.safetensors") == "runs\\clf"
    assert wording.model_name("model.safetensors") == "model.safetensors"


def test_completion_takes_a_backslash_for_the_end_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "clf").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(completion, "os", SimpleNamespace(path=ntpath, sep="\\"))
    assert completion.complete_data("runs\\") == [f"{Path('runs', 'clf')}\\"]
    assert completion.complete_data("runs\\c") == [f"{Path('runs', 'clf')}\\"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("C:\\data\\cifar-10-python.tar.gz", False),
        ("c:/data/cifar-10-python.tar.gz", False),
        ("\\\\server\\share\\cifar [1].tar.gz", False),
        ("//[1]x/cifar.tar.gz", False),
        ("HTTPS://example.org/cifar.tar.gz", True),
    ],
)
def test_a_drive_is_no_scheme(source: str, expected: bool) -> None:
    assert is_url(source) is expected


def test_a_user_without_a_home_has_fewer_places_for_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> Path:  # as `Path.home` does where neither USERPROFILE nor HOMEPATH is set
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    assert common_places(tmp_path) == (tmp_path, Path(), Path("data"), Path("datasets"))


def test_memory_that_windows_refuses_is_out_of_memory() -> None:
    # torch's c10/core/impl/alloc_cpu.cpp, where there is no posix_memalign.
    assert is_out_of_memory(
        RuntimeError("data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")
    )
