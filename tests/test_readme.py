"""The README's promises that a test can keep."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cifarctl import models
from cifarctl.cli import options
from cifarctl.data.archive import ARCHIVES

from support import Cifarctl

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def shown_options(command: str) -> set[str]:
    """The options that the README's commands give to `command`."""
    lines = re.findall(rf"cifarctl {command}\b([^\n|`]*)", README)
    return {option for line in lines for option in re.findall(r"(?<!\S)--[a-z0-9-]+", line)}


@pytest.mark.parametrize("command", ["download", "train-ae", "train-clf", "evaluate", "reconstruct", "predict"])
def test_every_option_in_the_readmes_examples_exists(cifarctl: Cifarctl, command: str) -> None:
    help_text = cifarctl(command, "--help").out
    assert f"cifarctl {command}" in README
    assert {option for option in shown_options(command) if option not in help_text} == set()


def test_the_python_example_runs(photos: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shutil.copy(next(photos.iterdir()), tmp_path / "photo.jpg")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    answer, accuracy = done.stdout.splitlines()
    assert re.match(r"\w+ 0\.\d+ \(\(", answer)
    assert 0 <= float(accuracy) <= 1


def test_the_readme_names_every_model_and_data_set() -> None:
    for name in (*models.REGISTRY, *ARCHIVES, "synthetic"):
        assert f"`{name}`" in README


def test_the_default_data_folders_variable_is_documented() -> None:
    assert "CIFARCTL_DATA_DIR" in README
    assert options.DataDir is not None
