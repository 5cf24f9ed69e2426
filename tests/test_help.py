"""The help and the messages about wrong values are in our words, not in those of the parser or of Python's types."""

import os
import re
import subprocess
import sys

import pytest

from support import Cifarctl, Result

COMMANDS = ("", "download", "train-ae", "train-clf", "evaluate", "reconstruct", "predict")
INNER_WORDS = (
    r"<[a-z][^>\n]*>",
    r"list\[",
    r"Path\]",
    r"\]\.\.\.\]\.\.\.",
    r"\{[^}]*\}\.\.\.",
    "Optional",
    "Value error",
)
VALUES = {
    "download": {("--data", "cifar10|cifar100"), ("--data-dir", "DIR")},
    "train-ae": {("--latent-dim", "N"), ("--set", "FIELD=VALUE"), ("--tensorboard", "Write")},
    "train-clf": {("--epochs", "N"), ("--out", "DIR"), ("--resume", "Continue")},
    "evaluate": {("--split", "train|val|test"), ("--report", "FILE.html")},
    "reconstruct": {("--split", "train|val|test"), ("--count", "N")},
    "predict": {("--out", "FILE"), ("--top-k", "K")},
}


def drawn(name: str) -> str:
    """The help of a command at 80 columns, as users see it."""
    line = [sys.executable, "-m", "cifarctl", *name.split(), "--help"]
    environment = {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        line, capture_output=True, encoding="utf-8", env={**os.environ, **environment}, check=True
    ).stdout


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name or "cifarctl")
def test_the_help_names_values_and_no_types(name: str) -> None:
    text = drawn(name)
    assert [pattern for pattern in INNER_WORDS if re.search(pattern, text)] == []
    rows = re.findall(r"^│ (?:\* +)?(--[a-z0-9-]+) +(?:-\w +)?(?:--no-[a-z-]+ +)?(\S+)", text, re.MULTILINE)
    assert {("--help", "Show"), *VALUES.get(name, ())} <= set(rows)  # a flag has no value


def test_arguments_stand_in_the_usage_as_they_are_declared() -> None:
    assert "Usage: cifarctl predict [OPTIONS] IMAGE|DIR|-... " in drawn("predict")
    assert "Usage: cifarctl reconstruct [OPTIONS] [IMAGE|DIR]... " in drawn("reconstruct")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("evaluate --split test --split banana", "--split banana: not one of: train, val, test"),
        ("train-clf --device gpu", "--device gpu: not one of: auto, cpu, cuda, mps"),
        ("download --data x", "--data x: not one of: cifar10, cifar100"),
        ("train-clf --epochs many", "--epochs many: not a whole number of at least 1"),
        ("train-clf --epochs 2.5", "--epochs 2.5: not a whole number of at least 1"),
        ("train-clf --seed -1", "--seed -1: not a whole number from 0 to 2147483647"),
        ("train-clf --ema 2", "--ema 2: not a number from 0 to 0.99999"),
        ("train-clf --lr nan", "--lr nan: not a number of at least 0"),
        ("train-clf --lr inf", "--lr inf: not a number of at least 0"),
        ("reconstruct --count 1000", "--count 1000: not a whole number from 1 to 240"),
    ],
)
def test_a_wrong_value_is_repeated_with_what_it_should_be(cifarctl: Cifarctl, arguments: str, error: str) -> None:
    done: Result = cifarctl(*arguments.split())
    assert done.code == 2
    assert done.err.splitlines() == [f"error: {error}", f"hint: cifarctl {arguments.split()[0]} --help"]


def test_an_option_and_set_for_the_same_field_are_refused_by_their_names(cifarctl: Cifarctl) -> None:
    done = cifarctl("train-clf", "--epochs", 1, "--set", "epochs=2")
    assert done.code == 2
    assert done.err.splitlines() == ["error: --set epochs=2: --epochs is given too", "hint: leave one of them out"]
