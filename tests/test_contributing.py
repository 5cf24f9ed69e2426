"""What CONTRIBUTING.md says is enough, is enough: each change is made in a copy of the package, and its command run."""

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import cifarctl

PAGE = (Path(__file__).parent.parent / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (Add .*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
CHANGE = re.compile(
    r"^(?:New file )?`(cifarctl/[\w/.]+)`(?:, after `([^`]+)`)?:\n\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
# As few files as a change should touch, beside tests and what is generated.
FILES = {
    "Add an architecture": 2,
    "Add an augmentation": 2,
    "Add a metric": 1,
    "Add an output format": 1,
    "Add a data source": 2,
}


def draw_database(folder: Path) -> None:
    """The file `shapes.sqlite` for the section on data sources: noise of ten classes."""
    images, labels = np.random.default_rng(0).integers(0, 256, (2, 60, 32, 32, 3), np.uint8), np.arange(60) % 10
    with closing(sqlite3.connect(folder / "shapes.sqlite")) as file, file:
        file.execute("CREATE TABLE images (split TEXT, label INTEGER, pixels BLOB)")
        for split, pixels in zip(("train", "test"), images, strict=True):
            rows = ((split, int(label), each.tobytes()) for label, each in zip(labels, pixels, strict=True))
            file.executemany("INSERT INTO images VALUES (?, ?, ?)", rows)


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_is_enough_for_its_change(title: str, tmp_path: Path) -> None:
    package = Path(cifarctl.__file__).parent
    copy = tmp_path / "copy" / "cifarctl"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "pretrained"))
    shutil.copytree(package / "pretrained", copy / "pretrained", copy_function=os.symlink)
    changes = CHANGE.findall(SECTIONS[title])
    assert len({path for path, _, _ in changes}) == FILES[title]
    for path, line, code in changes:
        file = copy.parent / path
        if not line:
            assert not file.exists()
            file.write_text(code, encoding="utf-8")
            continue
        text = file.read_text(encoding="utf-8")
        assert text.count(f"{line}\n") == 1, f"{path} has not one line: {line}"
        file.write_text(text.replace(f"{line}\n", f"{line}\n{code}"), encoding="utf-8")
    draw_database(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(copy.parent)}
    for block in re.findall(r"^```sh\n(.*?)^```$", SECTIONS[title], re.DOTALL | re.MULTILINE):
        for command in block.splitlines():
            words = [sys.executable, "-m", *shlex.split(command)]
            done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_every_section_is_tested() -> None:
    assert SECTIONS.keys() == FILES.keys()
