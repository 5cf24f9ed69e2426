"""Writing files: whole or not at all, under any name."""

import os
from pathlib import Path

import pytest

from cifarctl.files import atomic_path, write_text

from support import Cifarctl


@pytest.mark.needs("POSIX")  # where Windows has more than 260 characters is a setting
def test_the_longest_name_that_a_system_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".json")
    write_text(path, "whole\n")
    assert path.read_bytes() == b"whole\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught, atomic_path(tmp_path):
        raise AssertionError("nothing must be worked out")
    assert caught.value.filename == str(tmp_path)
    assert list(tmp_path.parent.glob(".*.part*")) == []


@pytest.mark.needs("byte names")
def test_names_that_are_no_text_can_be_written_into_a_text_file(cifarctl: Cifarctl, tmp_path: Path) -> None:
    out = tmp_path / "answers.csv"
    assert cifarctl("predict", os.fsdecode(b"none-\xff.png"), "-o", out).code == 1
    assert out.read_text(encoding="utf-8").splitlines()[1] == "none-\\xff.png,,,no such file,"
