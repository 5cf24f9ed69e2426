"""The README's promises that a test can keep."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cifarctl import models
from cifarctl.cli import options
from cifarctl.data.archive import ARCHIVES

from support import Cifarctl, command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown_options(name: str) -> set[str]:
    """The options that the README's commands give to the command `name`."""
    lines = re.findall(rf"cifarctl {name}\b([^\n|`]*)", README)
    return {option for line in lines for option in re.findall(r"(?<!\S)--[a-z0-9-]+", line)}


@pytest.mark.parametrize("name", ["download", "train-ae", "train-clf", "evaluate", "reconstruct", "predict"])
def test_every_option_in_the_readmes_examples_exists(cifarctl: Cifarctl, name: str) -> None:
    help_text = cifarctl(name, "--help").out
    assert f"cifarctl {name}" in README
    assert {option for option in shown_options(name) if option not in help_text} == set()


def test_the_python_example_runs(photos: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shutil.copy(next(photos.iterdir()), tmp_path / "photo.jpg")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    answer, accuracy = done.stdout.splitlines()
    assert re.match(r"\w+ 0\.\d+ \(\(", answer)
    assert 0 <= float(accuracy) <= 1


@pytest.mark.needs("POSIX")
class TestAutomation:
    """The recipes' own lines, on data and settings that take seconds."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        """A home folder with the command where pipx puts it."""
        programs = tmp_path / ".local" / "bin"
        programs.mkdir(parents=True)
        (programs / "cifarctl").symlink_to(command())
        return tmp_path

    @staticmethod
    def run(line: str, home: Path, accuracy: float) -> subprocess.CompletedProcess[str]:
        quick = line.replace("train-clf", "train-clf --data synthetic --limit 250 --epochs 1 --arch mlp")
        quick = quick.replace("accuracy=0.88", f"accuracy={accuracy}")
        assert quick.count(f"accuracy={accuracy}") == line.count("--fail-under")
        path = f"{home}/.local/bin:/usr/bin:/bin"
        environment = {**os.environ, "HOME": str(home), "PATH": path}
        return subprocess.run(
            ["/bin/sh", "-c", quick], cwd=home, env=environment, capture_output=True, text=True, check=False
        )

    def test_the_actions_job_keeps_the_report_of_a_failure(self, home: Path) -> None:
        (job,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
        install, *lines = re.findall(r"- run: (.*)", job)
        assert install == "pip install ."
        assert [self.run(line, home, accuracy=1.01).returncode for line in lines] == [0, 3]
        (kept,) = re.findall(r"path: ([^}\s]+)\}", job)
        assert (home / kept).stat().st_size > 10_000

    @pytest.mark.parametrize(("accuracy", "code"), [(0.0, 0), (1.01, 3)])
    def test_the_cron_line(self, home: Path, accuracy: float, code: int) -> None:
        (line,) = re.findall(r"```cron\n(?:\S+\s+){5}(.*)\n```", README)
        done = self.run(line.replace(r"\%", "%"), home, accuracy)  # as cron reads it
        assert (done.returncode, done.stdout) == (code, "")
        assert len(done.stderr.splitlines()) == (1 if code else 0), done.stderr
        (page,) = home.glob("runs/20*/report.html")
        assert page.stat().st_size > 10_000


def test_the_reference_of_commands_is_the_programs() -> None:
    script = runpy.run_path(str(ROOT / ".github" / "readme_reference.py"))
    assert script["with_reference"](README) == README, "run python .github/readme_reference.py"


def test_the_readme_names_every_model_and_data_set() -> None:
    for name in (*models.REGISTRY, *ARCHIVES, "synthetic"):
        assert f"`{name}`" in README


def test_the_default_data_folders_variable_is_documented() -> None:
    assert "CIFARCTL_DATA_DIR" in README
    assert options.DataDir is not None
