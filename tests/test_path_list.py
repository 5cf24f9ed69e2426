"""`predict -`: lists of names in every form in which systems and tools write them."""

import io
import json
import os
import subprocess
from pathlib import Path

import pytest

from cifarctl.cli.path_list import read_path_list

from support import Cifarctl, command

NAMES = ["a b.png", "é猫.jpg"]


@pytest.mark.parametrize(
    "data",
    [
        "a b.png\né猫.jpg\n".encode(),
        "a b.png\r\n\r\né猫.jpg".encode(),
        "\ufeffa b.png\r\né猫.jpg\r\n".encode(),
        "\ufeffa b.png\r\né猫.jpg\r\n".encode("utf-16-le"),
        "\ufeffa b.png\né猫.jpg\n".encode("utf-16-be"),
        "a b.png\0é猫.jpg\0".encode(),
        "a b.png\0é猫.jpg".encode(),
    ],
    ids=["lines", "CRLF", "UTF-8 with a mark", "UTF-16 LE", "UTF-16 BE", "NUL", "NUL, no last one"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_every_form_of_a_list_gives_the_same_names(data: bytes, at_once: bool) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size if at_once else 1)

    assert [str(path) for path in read_path_list(Slow(data))] == NAMES


@pytest.mark.needs("POSIX")
def test_names_are_bytes_and_after_nul_any_but_nul() -> None:
    assert [os.fsencode(path) for path in read_path_list(io.BytesIO(b"caf\xe9\nx"))] == [b"caf\xe9", b"x"]
    assert [os.fsencode(path) for path in read_path_list(io.BytesIO(b"a\nb\r\n\0\xff\0"))] == [b"a\nb\r\n", b"\xff"]
    assert list(read_path_list(io.BytesIO(b""))) == []
    assert list(read_path_list(io.BytesIO(b"\xef\xbb\xbf"))) == []


def test_a_list_with_a_byte_order_mark_is_answered(installed: Cifarctl, classifier_run: Path, photos: Path) -> None:
    names = [str(path) for path in sorted(photos.iterdir())[:2]]
    for stdin in ("\ufeff" + "\r\n".join(names)).encode(), "\0".join([*names, ""]).encode():
        done = installed("predict", "-", "-m", classifier_run, stdin=stdin)
        assert done.code == 0, done.out
        assert [json.loads(line)["path"] for line in done.out.splitlines()] == names


def test_a_name_is_answered_before_the_list_ends(classifier_run: Path, photos: Path) -> None:
    """As many as fill the first batches; the rest of the list is not there yet."""
    name = os.fsencode(next(photos.iterdir())) + b"\0"
    line = [command(), "predict", "-", "-m", str(classifier_run), "--batch-size", "1"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(name * 100)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["label"]
        process.stdin.close()
        assert len(process.stdout.readlines()) == 99


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_refused_and_no_folder_is_searched(installed: Cifarctl, encoding: str) -> None:
    done = installed("predict", "-", stdin="./a.png\n./b.png\n".encode(encoding))
    assert (done.code, done.out) == (2, "")
    assert "UTF-16 without a byte-order mark" in done.error
