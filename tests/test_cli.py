"""What all commands share: help that is fast, one line for what goes wrong, and the same program under both names."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import cifarctl as package

from support import Cifarctl, command

COMMANDS = ("download", "train-ae", "train-clf", "evaluate", "reconstruct", "predict")


def test_help_lists_the_six_commands(installed: Cifarctl) -> None:
    done = installed("--help")
    assert done.code == 0
    assert all(f" {name} " in done.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_in_80_columns(installed: Cifarctl, name: str) -> None:
    done = installed(name, "--help", env={"COLUMNS": "80"})
    assert done.code == 0
    assert re.search(r"Examples:\s+cifarctl", done.out)
    assert max(len(line) for line in done.out.splitlines()) <= 80


@pytest.mark.parametrize("name", [(), *((name,) for name in COMMANDS)], ids=lambda name: " ".join(name) or "cifarctl")
def test_help_imports_no_torch(name: tuple[str, ...]) -> None:
    code = (
        f"import sys; from cifarctl.cli import run; run({[*name, '--help']}); "
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_python_m_is_the_same_command(installed: Cifarctl) -> None:
    done = subprocess.run([sys.executable, "-m", "cifarctl", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == installed("--version").out == f"cifarctl {package.__version__}\n"


def test_no_command_shows_the_help_and_is_wrong_usage(cifarctl: Cifarctl) -> None:
    done = cifarctl()
    assert done.code == 2
    assert "Usage: cifarctl" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pedict",), "pedict"),
        (("predict",), "IMAGE"),
        (("predict", "x.png", "--tpo-k", "2"), "--tpo-k"),
        (("evaluate", "--split", "banana"), "banana"),
        (("train-clf", "--epochs", "many"), "--epochs"),
    ],
)
def test_wrong_usage_is_one_line_a_hint_and_exit_2(installed: Cifarctl, arguments: tuple[str, ...], says: str) -> None:
    done = installed(*arguments)
    assert done.code == 2
    assert says in done.error
    assert done.out == ""
    assert len(done.err.splitlines()) == 2
    assert done.err.splitlines()[1].endswith("--help")


def test_an_unexpected_failure_is_one_line_and_a_traceback_only_on_demand(
    cifarctl: Cifarctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("cifarctl.weights.resolve", fail)
    done = cifarctl("predict", "x.png")
    assert done.code == 1
    assert done.error == "error: internal error: ZeroDivisionError: surprise"
    monkeypatch.setenv("CIFARCTL_DEBUG", "0")
    assert cifarctl("predict", "x.png").code == 1
    monkeypatch.setenv("CIFARCTL_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cifarctl("predict", "x.png")


@pytest.mark.needs("POSIX")
def test_a_line_is_written_whole_without_buffers() -> None:
    """With PYTHONUNBUFFERED, which Docker images set, the lines of several processes must not mix."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # a datagram is a write
    with ours, theirs:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        arguments = [command(), "train-clf", "--epochs", "many"]
        assert subprocess.run(arguments, stderr=theirs.fileno(), env=environment, check=False).returncode == 2
        ours.settimeout(10)
        error, hint = ours.recv(1000), ours.recv(1000)
    assert (error[:7], error[-1:]) == (b"error: ", b"\n")
    assert (hint[:6], hint[-1:]) == (b"hint: ", b"\n")


def test_a_terminal_with_another_encoding_is_no_failure(installed: Cifarctl) -> None:
    done = installed("predict", "ключ.png", "-m", "ключ.safetensors", env={"PYTHONIOENCODING": "cp1252"})
    assert done.code == 1
    assert "no such file" in done.error


class TestCompletion:
    """What bash asks for when Tab is pressed, in the words that it asks with."""

    @pytest.fixture
    def offered(
        self, installed: Cifarctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[str], list[str]]:
        monkeypatch.chdir(tmp_path)
        for name in ("runs/a", "runs/b"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "runs/a/model.safetensors").touch()
        (tmp_path / "other.safetensors").touch()
        (tmp_path / "other.txt").touch()

        def offered(line: str) -> list[str]:
            words = line.split(" ")
            environment = {
                "_CIFARCTL_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(words) - 1),
            }
            return installed(env=environment).out.split()

        return offered

    @pytest.mark.parametrize(
        ("line", "offers"),
        [
            ("cifarctl pre", ["predict"]),
            ("cifarctl predict -m ", ["autoencoder", "classifier", "other.safetensors", "runs/"]),
            ("cifarctl predict -m runs/", ["runs/a", "runs/b/"]),
            ("cifarctl predict -m oth", ["other.safetensors"]),
            ("cifarctl predict -m none/", []),
            ("cifarctl train-clf --arch ", ["airbench", "mlp"]),
            ("cifarctl train-ae --arch c", ["conv2"]),
            ("cifarctl train-clf --recipe ", ["fast", "best", "max"]),
            ("cifarctl train-ae --set c", ["class_weights=", "crop=", "cutout=", "cutmix="]),
            ("cifarctl train-clf --data c", ["cifar10", "cifar100"]),
            ("cifarctl train-clf --data r", ["runs/"]),
            ("cifarctl evaluate --split t", ["train", "test"]),
        ],
    )
    def test_tab_offers_what_fits(self, offered: Callable[[str], list[str]], line: str, offers: list[str]) -> None:
        assert offered(line) == offers


def test_work_goes_on_when_nobody_reads_the_messages(tmp_path: Path) -> None:
    reader, messages = os.pipe()
    os.close(reader)
    (tmp_path / "notes.txt").touch()  # which is said to be ignored
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    line = [command(), "predict", str(tmp_path), "--format", "jsonl"]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=messages, text=True, timeout=100, check=False)
    os.close(messages)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
