"""Writing files: whole or not at all, under any name."""

from pathlib import Path

import pytest

from cifarctl.files import atomic_path, write_text


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
