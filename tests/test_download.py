"""`download`: the archive to one verified file, from wherever it comes, or one clear line."""

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from cifarctl.data import Source
from cifarctl.data.archive import ARCHIVES, CIFAR10
from cifarctl.data.batch_pickle import read_batch
from cifarctl.data.download.local import find_in, why_none
from cifarctl.errors import DataError

from loopback import Mirror, serving
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
    assert len(done.err.splitlines()) == 2
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


def test_when_no_server_is_good_nothing_is_left(cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path) -> None:
    with serving({"/a": Mirror(status=404), "/b": Mirror(b"no")}) as url:
        done = cifarctl(
            "download", "--from", f"{url}/a", "--from", f"{url}/b", "--sha256", archive.sha256, "--data-dir", tmp_path
        )
    assert done.code == 1
    assert "none of 2 sources" in done.error
    assert files_in(tmp_path) == []


class TestCopiesOfOtherTools:
    """What is on the machine already is used, after it is verified."""

    @pytest.fixture(autouse=True)
    def _official(self, archive: SmallArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The small archive is the official one, and nothing else is on this machine."""
        with tarfile.open(archive.path) as tar:
            contents = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
        digests = {Path(name).name: f"SHA-256:{hashlib.sha256(data).hexdigest()}" for name, data in contents.items()}
        size = archive.path.stat().st_size
        official = dataclasses.replace(
            CIFAR10,
            sha256=archive.sha256,
            size=size,
            digests=digests,
            urls=("http://127.0.0.1:1/cifar-10-python.tar.gz",),
        )
        monkeypatch.setitem(ARCHIVES, "cifar10", official)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")

    @pytest.fixture
    def unpacked(self, archive: SmallArchive, tmp_path: Path) -> Path:
        """The folder cifar-10-batches-py, as other tools unpack it."""
        with tarfile.open(archive.path) as tar:
            tar.extractall(tmp_path / "elsewhere", filter="data")
        return tmp_path / "elsewhere" / "cifar-10-batches-py"

    @pytest.mark.parametrize("parent", [False, True])
    def test_an_unpacked_folder_or_its_parent(
        self, cifarctl: Cifarctl, archive: SmallArchive, unpacked: Path, tmp_path: Path, parent: bool
    ) -> None:
        folder = unpacked.parent if parent else unpacked
        done = cifarctl("download", "--from", folder, "--data-dir", tmp_path / "data", "--json")
        assert done.code == 0, done.err
        assert done.json["source"] == str(unpacked)
        assert done.json["sha256"] == archive.sha256
        test = Source(folder=tmp_path / "data", val_size=100).load("test")
        assert np.array_equal(test.images.numpy(), archive.test_images)

    def test_a_folder_with_another_file_is_refused(self, cifarctl: Cifarctl, unpacked: Path, tmp_path: Path) -> None:
        file = unpacked / "data_batch_3"
        data = bytearray(file.read_bytes())
        data[5000] ^= 1
        file.write_bytes(data)
        done = cifarctl("download", "--from", unpacked, "--data-dir", tmp_path / "data")
        assert done.code == 1
        assert "data_batch_3: its SHA-256 is" in done.error
        assert files_in(tmp_path / "data") == []

    def test_a_folder_without_a_copy_says_what_it_lacks(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        done = cifarctl("download", "--from", tmp_path, "--data-dir", tmp_path / "data")
        assert done.code == 1
        assert "no cifar-10-batches-py and no cifar-10-python.tar.gz in this folder" in done.error

    @pytest.mark.parametrize("place", ["work/data", "home/.keras/datasets", "home/data"])
    def test_a_copy_in_a_common_place_is_found_without_the_network(
        self, cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path, place: str
    ) -> None:
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(archive.path, tmp_path / place / "cifar-10-python.tar.gz")
        done = cifarctl("download", "--offline", "--data-dir", tmp_path / "cache", "--json")
        assert done.code == 0, done.err
        assert Path(done.json["source"]).resolve() == tmp_path / place / "cifar-10-python.tar.gz"

    def test_offline_without_a_copy_asks_no_server(
        self, cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mirror = Mirror(archive.path.read_bytes())
        with serving({"/good": mirror}) as url:
            monkeypatch.setenv("CIFARCTL_MIRRORS", f"{url}/good")
            done = cifarctl("download", "--offline", "--data-dir", tmp_path / "cache")
        assert done.code == 1
        assert "no copy of cifar10 on this machine" in done.error
        assert "hint: --from FILE or DIR" in done.err
        assert mirror.offsets == []
        assert cifarctl("download", "--offline", "--from", f"{url}/good").code == 2

    def test_a_broken_copy_is_left_for_the_mirrors_that_the_environment_names(
        self, cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "work" / "data").mkdir()
        (tmp_path / "work" / "data" / "cifar-10-python.tar.gz").write_bytes(archive.path.read_bytes()[:1000])
        with serving({"/good": Mirror(archive.path.read_bytes())}) as url:
            monkeypatch.setenv("CIFARCTL_MIRRORS", f"{url}/missing,{url}/good {url}/good")
            done = cifarctl("download", "--data-dir", tmp_path / "cache", "--json")
        assert done.code == 0, done.err
        assert f"cifar-10-python.tar.gz: too short: 1,000 of {archive.path.stat().st_size:,} bytes" in done.err
        assert done.json["source"] == f"{url}/good"

    def test_a_training_command_uses_a_copy_too(self, cifarctl: Cifarctl, unpacked: Path, tmp_path: Path) -> None:
        shutil.move(unpacked, tmp_path / "work")
        done = cifarctl(
            "train-clf", "--arch", "mlp", "--epochs", 1, "--val-size", 100, "--data-dir", tmp_path / "cache",
            "--out", tmp_path / "run", "--no-tensorboard",
        )  # fmt: skip
        assert done.code == 0, done.err
        assert files_in(tmp_path / "cache") == ["cifar10.safetensors"]

    def test_a_folder_that_lacks_a_file_names_it(self, cifarctl: Cifarctl, unpacked: Path, tmp_path: Path) -> None:
        (unpacked / "data_batch_2").unlink()
        done = cifarctl("download", "--from", unpacked.parent, "--data-dir", tmp_path / "data")
        assert done.code == 1
        assert f"no file data_batch_2 in {unpacked}" in done.error


@pytest.mark.needs("POSIX")
def test_a_folder_of_somebody_else_is_not_said_to_be_empty() -> None:
    with TemporaryDirectory() as parent:
        folder = Path(parent) / CIFAR10.folder
        folder.mkdir(mode=0)
        root = os.geteuid() == 0
        if root:  # who may read everything
            Path(parent).chmod(0o755)
            os.seteuid(65534)
        try:
            found, reason = list(find_in(CIFAR10, Path(parent))), why_none(CIFAR10, Path(parent))
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o700)
        assert found == []
        assert reason == f"{folder}: permission denied"


class TestArchivesOfOtherTools:
    """What is the archive is read however it was packed; what is not is named, within little memory."""

    def test_one_that_was_packed_again(self, cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path) -> None:
        """As `tar -C folder .` on a Mac does: ./names, pax headers, folders, and a ._file beside each file."""
        path = tmp_path / "again.tar.gz"
        with tarfile.open(archive.path) as old, tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as new:
            folder = tarfile.TarInfo("./cifar-10-batches-py/")
            folder.type = tarfile.DIRTYPE
            new.addfile(folder)
            for entry in old:
                name = Path(entry.name).name
                for path_in_it, content in ((f"._{name}", b"x" * 163), (name, old.extractfile(entry).read())):  # type: ignore[union-attr]
                    again = tarfile.TarInfo(f"./cifar-10-batches-py/{path_in_it}")
                    again.size, again.mtime = len(content), 1.5
                    again.pax_headers = {"LIBARCHIVE.xattr.com.apple.provenance": "x" * 20_000}
                    new.addfile(again, io.BytesIO(content))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        done = cifarctl("download", "--from", path, "--sha256", digest, "--data-dir", tmp_path)
        assert done.code == 0, done.err
        test = Source(folder=tmp_path, val_size=100).load("test")
        assert np.array_equal(test.images.numpy(), archive.test_images)

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda _: b"", "an empty file"),
            (lambda _: b"\n<!DOCTYPE html>\n<title>Sign in</title>", "a web page (HTML or XML), not a .tar.gz archive"),
            (lambda data: zipped(data), "a ZIP archive, not a .tar.gz archive"),
            (gzip.decompress, "an uncompressed .tar archive, not a .tar.gz archive"),
            (lambda data: b"BZh9" + data, "not a .tar.gz archive"),
            (lambda data: data[:1000], "too short: 1,000 of 170,498,071 bytes"),
            (lambda data: data[:-1], "too short: 1,8"),
            (lambda data: data[:5000] + bytes(50) + data[5050:], "a damaged .tar.gz archive"),
        ],
    )
    def test_a_file_that_is_no_whole_archive_is_called_what_it_is(
        self, cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path, make: Callable[[bytes], bytes], reason: str
    ) -> None:
        path = tmp_path / "a name with spaces.tar.gz"
        path.write_bytes(make(archive.path.read_bytes()))
        done = cifarctl("download", "--from", path, "--data-dir", tmp_path / "data")
        assert done.code == 1
        assert f"{path}: {reason}" in done.error
        assert "--sha256" not in done.err

    def test_a_file_that_is_too_large_or_no_file_is_not_read(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        with (tmp_path / "huge.tar.gz").open("wb") as file:
            file.truncate(1 << 40)
        done = cifarctl("download", "--from", tmp_path / "huge.tar.gz", "--data-dir", tmp_path)
        assert "1,099,511,627,776 bytes, more than any CIFAR archive has" in done.error
        if sys.platform != "win32":
            os.mkfifo(tmp_path / "pipe")
            done = cifarctl("download", "--from", tmp_path / "pipe", "--data-dir", tmp_path)
            assert "pipe: not a regular file" in done.error

    def test_no_header_takes_memory_by_what_it_claims(self, tmp_path: Path) -> None:
        reasons = {
            "sparse": "stored as a sparse file",
            "pax sparse": "stored as a sparse file",
            "pax sparse map": "no cifar-10-batches-py/data_batch_1 in it",
            "pax": "no cifar-10-batches-py/data_batch_1 in it",
            "long name": "no cifar-10-batches-py/data_batch_1 in it",
            "many headers": "no cifar-10-batches-py/data_batch_1 in it",
            "claim": "unpacks to more than",
            "bomb": "unpacks to more than",
        }
        paths = [tmp_path / name for name in reasons]
        compress = functools.cache(gzip.compress)  # one gzip member for each piece
        for path in paths:
            path.write_bytes(b"".join(map(compress, hostile_blocks(path.name))))
        script = (
            "import sys; from pathlib import Path; from support import peak_memory\n"
            "from cifarctl.data.archive import CIFAR10, read_archive\n"
            "before = peak_memory()\n"
            "for path in map(Path, sys.argv[1:]):\n"
            "    try: read_archive(CIFAR10, path)\n"
            "    except Exception as error: print(f'{type(error).__name__}: {error}')\n"
            "print(peak_memory() - before)"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        line = [sys.executable, "-c", script, *map(str, paths)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False, env=env)
        *messages, memory = done.stdout.splitlines()
        assert len(messages) == len(reasons), done.stderr
        for (name, reason), message in zip(reasons.items(), messages, strict=True):
            assert message.startswith(f"DataError: {tmp_path / name}: "), message
            assert reason in message
        assert int(memory) < 50e6


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cifar-10-python.tar.gz", data)
    return file.getvalue()


def hostile_blocks(kind: str) -> Iterator[bytes]:
    """The blocks of a tar that takes gigabytes or recurses without end in a reader that believes it."""
    name, size = "cifar-10-batches-py/data_batch_1", 100 << 20
    zeros, holes = bytes(1 << 20), b"0\n" * (1 << 19)
    if kind == "sparse":  # GNU's, of one hole: 8 GB
        block = bytearray(header(name, b"S", 0))
        block[386:410] = b"00000000000\0" * 2
        block[483:495] = b"77777777777\0"
        yield with_checksum(block)
    elif kind == "pax sparse":
        records = pax(GNU_sparse_major="0", GNU_sparse_minor="1", GNU_sparse_size="8000000000", GNU_sparse_map="0,0")
        yield header("x", b"x", len(records))
        yield records.ljust(512, b"\0")
        yield header("cifar-10-batches-py/GNUSparseFile.1/data_batch_1", b"0", 0)
    elif kind == "pax sparse map":  # 50 million holes
        records = pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_name=name, GNU_sparse_realsize="9")
        yield header("x", b"x", len(records))
        yield records.ljust(512, b"\0")
        yield header("other", b"0", size)
        yield b"050000000\n" + holes[10:]
        yield from (holes for _ in range(99))
    elif kind in ("pax", "long name"):
        yield header("x", b"x" if kind == "pax" else b"L", size)
        yield from (zeros for _ in range(100))
    elif kind == "many headers":
        yield (header("x", b"x", 11) + b"11 comment=".ljust(512, b"\0")) * 2_000
    elif kind == "claim":
        yield header(name, b"0", 8_000_000_000)
    elif kind == "bomb":
        for i in range(3):
            yield header(f"other {i}", b"0", size)
            yield from (zeros for _ in range(100))
    yield bytes(1024)


def header(name: str, kind: bytes, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**values: str) -> bytes:
    """Records of a pax header; none is longer than 99 bytes."""
    texts = [f" {key.replace('GNU_sparse_', 'GNU.sparse.')}={value}\n" for key, value in values.items()]
    return "".join(f"{len(text) + 2}{text}" for text in texts).encode()


def test_cifar100_is_read_by_the_same_reader(cifarctl: Cifarctl, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (300, 3, 32, 32), np.uint8)}
    images["test"] = rng.integers(0, 256, (100, 3, 32, 32), np.uint8)
    fine = [f"fine {i:02d}" for i in range(100)]
    members = {"meta": dumps({"fine_label_names": fine, "coarse_label_names": [f"coarse {i}" for i in range(20)]})}
    for name, pixels in images.items():
        labels = [i % 100 for i in range(len(pixels))]
        members[name] = dumps(
            {
                "filenames": [f"{i:06d}.png" for i in range(len(pixels))],
                "batch_label": f"{name} batch 1 of 1",
                "fine_labels": labels,
                "coarse_labels": [label // 5 for label in labels],
                "data": pixels.reshape(len(pixels), -1),
            }
        )
    path = tmp_path / "cifar-100-python.tar.gz"
    digest = write_members(path, members, folder="cifar-100-python")
    done = cifarctl("download", "--data", "cifar100", "--from", path, "--sha256", digest, "--data-dir", tmp_path)
    assert done.code == 0, done.err
    test = Source("cifar100", folder=tmp_path, val_size=100).load("test")
    assert test.classes == tuple(fine)
    assert np.array_equal(test.images.numpy(), images["test"])
    assert test.labels.tolist() == [i % 100 for i in range(100)]


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

    @pytest.mark.thorough
    def test_hostile_variants_execute_nothing_and_stay_small(self) -> None:
        script = Path(__file__).parent / "benchmarks" / "mutated_pickles.py"
        done = subprocess.run(
            [sys.executable, script, "--count", "10000"],
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "commands executed: none" in done.stdout
        assert "escaped" not in done.stdout

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            (b"]q\x00h\x00a.", "list in a list"),
            (b"}q\x00U\x01ah\x00s.", "dict in a dictionary"),
            (b"]" + b"K\x01a" * 2000 + b".", "more opcodes"),
            (b"T\xff\xff\xff\x7f.", "in the middle of a value"),
            (b"q\x00.", "index out of range"),
            (b"]h\x07.", "7"),
        ],
    )
    def test_what_no_batch_needs_is_refused(self, program: bytes, reason: str) -> None:
        with pytest.raises(DataError, match=reason):
            read_batch(b"\x80\x02" + program)

    def test_a_damaged_batch_in_an_archive_is_one_line(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        members = {name: attack(f"touch {tmp_path}/ran", 2) for name in CIFAR10.members}
        digest = write_members(tmp_path / "evil.tar.gz", members)
        done = cifarctl(
            "download", "--from", tmp_path / "evil.tar.gz", "--sha256", digest, "--data-dir", tmp_path / "d"
        )
        assert done.code == 1
        assert "batches.meta: refused: pickle opcode" in done.error
        assert files_in(tmp_path / "d") == []
        assert not (tmp_path / "ran").exists()

    def test_a_shape_that_does_not_fit_the_bytes_is_an_error(self) -> None:
        data = dumps({"data": np.zeros((2, 8), np.uint8)}).replace(b"K\x02K\x08\x86", b"K\xffK\xff\x86")
        with pytest.raises(DataError, match="255×255 with 16 bytes"):
            read_batch(data)


def test_json_goes_to_stdout_alone(installed: Cifarctl, archive: SmallArchive, tmp_path: Path) -> None:
    done = installed("download", "--from", archive.path, "--sha256", archive.sha256, "--data-dir", tmp_path, "--json")
    assert set(json.loads(done.out)) == {"data", "path", "downloaded", "source", "bytes", "seconds", "sha256"}
    assert "\x1b" not in done.err
