"""`download`: the archive to one verified file, from wherever it comes, or one clear line."""

import hashlib
import json
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cifarctl.data import Source
from cifarctl.data.batch_pickle import read_batch
from cifarctl.errors import DataError

from py2_pickle import CLASSES, SmallArchive, attack, batch, dumps, write_members
from support import Cifarctl


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_local_archive_becomes_one_file_with_every_pixel_in_place(
    cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path
) -> None:
    done = cifarctl("download", "--from", archive.path, "--sha256", archive.sha256, "--data-dir", tmp_path, "--json")
    assert done.code == 0
    assert done.json["sha256"] == archive.sha256
    assert done.json["bytes"] == archive.path.stat().st_size
    assert files_in(tmp_path) == ["cifar10.safetensors"]

    source = Source(folder=tmp_path, val_size=100)
    test = source.load("test")
    assert test.classes == CLASSES
    assert np.array_equal(test.images.numpy(), archive.test_images)
    assert test.labels.tolist() == archive.test_labels
    train, val = source.load("train"), source.load("val")
    assert (len(train), len(val)) == (400, 100)
    both = {image.tobytes() for part in (train, val) for image in part.images.numpy()}
    assert both == {image.tobytes() for image in archive.train_images}
    assert source.describe()["archive_sha256"] == archive.sha256


def test_another_digest_than_the_expected_one_is_refused(
    cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path
) -> None:
    done = cifarctl("download", "--from", archive.path, "--data-dir", tmp_path)
    assert done.code == 1
    assert archive.sha256 in done.error
    assert "--sha256" in done.err
    assert files_in(tmp_path) == []


def test_a_missing_archive_is_one_line(cifarctl: Cifarctl, tmp_path: Path) -> None:
    done = cifarctl("download", "--from", tmp_path / "none.tar.gz", "--data-dir", tmp_path)
    assert done.code == 1
    assert "none.tar.gz: No such file" in done.error


@pytest.mark.parametrize("keep", [0, 10, 1000, -30_000])
def test_a_truncated_archive_is_one_line(cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path, keep: int) -> None:
    data = archive.path.read_bytes()[:keep]
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    done = cifarctl("download", "--from", broken, "--sha256", digest, "--data-dir", tmp_path / "data")
    assert done.code == 1
    assert "broken.tar.gz" in done.error
    assert files_in(tmp_path / "data") == []


def test_an_archive_of_something_else_names_what_it_lacks(cifarctl: Cifarctl, tmp_path: Path) -> None:
    digest = write_members(tmp_path / "other.tar.gz", {"readme.html": b"hello"})
    done = cifarctl("download", "--from", tmp_path / "other.tar.gz", "--sha256", digest, "--data-dir", tmp_path)
    assert done.code == 1
    assert "data_batch_1" in done.error


def test_what_is_there_stays_unless_forced(cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path) -> None:
    arguments = ("download", "--from", archive.path, "--sha256", archive.sha256, "--data-dir", tmp_path)
    assert cifarctl(*arguments).code == 0
    first = (tmp_path / "cifar10.safetensors").stat().st_ino
    again = cifarctl(*arguments, "--json")
    assert again.json["downloaded"] is False
    assert (tmp_path / "cifar10.safetensors").stat().st_ino == first
    other = cifarctl("download", "--from", archive.path, "--sha256", "0" * 64, "--data-dir", tmp_path)
    assert other.code == 1
    assert archive.sha256 in other.error
    assert cifarctl(*arguments, "--force").code == 0
    assert (tmp_path / "cifar10.safetensors").stat().st_ino != first


def test_a_digest_must_look_like_one(cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path) -> None:
    done = cifarctl("download", "--from", archive.path, "--sha256", "abc", "--data-dir", tmp_path)
    assert done.code == 2
    assert "64 hexadecimal" in done.error


@contextmanager
def serving(pages: dict[str, tuple[int, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A real HTTP server on loopback; yields its URL and the list of paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, body = pages[self.path]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_first_good_server_counts(installed: Cifarctl, archive: SmallArchive, tmp_path: Path) -> None:
    good = archive.path.read_bytes()
    changed = bytearray(good)
    changed[len(changed) // 2] ^= 1
    pages = {"/busy": (503, b""), "/page": (200, b"<html>"), "/changed": (200, bytes(changed)), "/good": (200, good)}
    with serving(pages) as (url, asked):
        sources = [part for name in pages for part in ("--from", url + name)]
        done = installed("download", *sources, "--sha256", archive.sha256, "--data-dir", tmp_path, "--json")
    assert done.code == 0, done.err
    assert asked == list(pages)
    assert done.json["source"] == f"{url}/good"
    assert "/busy: the server answered 503" in done.err
    assert "/changed: its SHA-256 is" in done.err
    assert files_in(tmp_path) == ["cifar10.safetensors"]


def test_when_no_server_is_good_nothing_is_left(cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path) -> None:
    with serving({"/a": (404, b""), "/b": (200, b"no")}) as (url, _):
        done = cifarctl(
            "download", "--from", f"{url}/a", "--from", f"{url}/b", "--sha256", archive.sha256, "--data-dir", tmp_path
        )
    assert done.code == 1
    assert "none of 2 sources" in done.error
    assert files_in(tmp_path) == []


def test_training_offline_without_data_says_how_to_get_it(cifarctl: Cifarctl, tmp_path: Path) -> None:
    done = cifarctl("train-clf", "--offline", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert done.code == 1
    assert "hint: cifarctl download --data cifar10" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep", [0, 7, 100, 10_000])
def test_a_truncated_data_file_is_one_line(
    cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path, keep: int
) -> None:
    cifarctl("download", "--from", archive.path, "--sha256", archive.sha256, "--data-dir", tmp_path)
    path = tmp_path / "cifar10.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    done = cifarctl("train-clf", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert done.code == 1
    assert "damaged data file" in done.error
    assert "cifarctl download --force" in done.err


class TestBatchReader:
    """The reader of batch pickles admits exactly what CIFAR's files contain."""

    def test_it_reads_what_python_2_wrote(self) -> None:
        images = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3, 32, 32)
        decoded = read_batch(batch(images, [3, 9], "training batch 1 of 5"))
        assert decoded["labels"] == [3, 9]
        assert decoded["batch_label"] == "training batch 1 of 5"
        assert np.array_equal(decoded["data"], images.reshape(2, 3072))

    def test_it_agrees_with_pythons_own_unpickler_on_trusted_bytes(self) -> None:
        data = dumps({"labels": list(range(200)) * 7, "data": np.full((3, 5), 7, np.uint8), "name": "x" * 300})
        own, theirs = read_batch(data), pickle.loads(data, encoding="latin-1")
        assert own.keys() == theirs.keys()
        assert own["labels"] == theirs["labels"]
        assert own["name"] == theirs["name"]
        assert np.array_equal(own["data"], theirs["data"])

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_a_payload_is_refused_and_never_runs(self, tmp_path: Path, protocol: int) -> None:
        marker = tmp_path / "ran"
        with pytest.raises(DataError):
            read_batch(attack(f"touch {marker}", protocol))
        assert not marker.exists()

    def test_a_call_of_anything_else_is_named(self) -> None:
        with pytest.raises(DataError, match=r"builtins eval"):
            read_batch(b"\x80\x02}(U\x04datacbuiltins\neval\nU\x011\x85Ru.")

    def test_every_truncation_is_an_error(self) -> None:
        data = batch(np.zeros((1, 3, 32, 32), np.uint8), [1], "x")
        for length in [*range(120), *range(len(data) - 120, len(data))]:
            with pytest.raises(DataError):
                read_batch(data[:length])

    def test_flipped_bits_end_in_an_error_or_a_dictionary(self) -> None:
        data = batch(np.zeros((1, 3, 32, 32), np.uint8), [1], "x")
        rng = np.random.default_rng(0)
        outcomes = {"error": 0, "dictionary": 0}
        for _ in range(2000):
            mutated = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                mutated[at] ^= 1 << int(rng.integers(8))
            try:
                assert isinstance(read_batch(bytes(mutated)), dict)
                outcomes["dictionary"] += 1
            except DataError:
                outcomes["error"] += 1
        assert outcomes["error"] > 0

    def test_a_shape_that_does_not_fit_the_bytes_is_an_error(self) -> None:
        data = dumps({"data": np.zeros((2, 8), np.uint8)}).replace(b"K\x02K\x08\x86", b"K\xffK\xff\x86")
        with pytest.raises(DataError, match="255×255 with 16 bytes"):
            read_batch(data)


def test_json_goes_to_stdout_alone(installed: Cifarctl, archive: SmallArchive, tmp_path: Path) -> None:
    done = installed("download", "--from", archive.path, "--sha256", archive.sha256, "--data-dir", tmp_path, "--json")
    assert set(json.loads(done.out)) == {"data", "path", "downloaded", "source", "bytes", "seconds", "sha256"}
    assert "\x1b" not in done.err
