"""Fixtures: ways to run the command, a small archive, a folder of images, and models trained in seconds."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# pytest-xdist's workers, and the processes that they start, share out the cores: threads that outnumber these wait for
# each other at every layer.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import numpy as np
from filelock import FileLock
from PIL import Image

from cifarctl.cli import run

from needs import is_demanded, missing
from py2_pickle import SmallArchive, write_archive
from support import Cifarctl, MadeOnce, Result, command


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="Run the long tests, which the usual run leaves out.")


def pytest_sessionstart() -> None:
    """Undo what a shell ignores for tests in its background, or under nohup: their processes would ignore it too."""
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        if (number := getattr(signal, name, None)) and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_report_header(config: pytest.Config) -> str:
    about = "5 minutes more" if config.getoption("--thorough") else "5 to 7 minutes with -n auto --dist loadscope"
    return f"about {about}, on two idle cores"


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "needs(*names): skip the test if this machine lacks one of `needs.NEEDS`, or fail it with CI set",
        "thorough: too long for the usual run; --thorough runs it",
    ):
        config.addinivalue_line("markers", marker)


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: each worker holds torch in memory, and the longest file bounds what more of them could gain."""
    return min(4, os.cpu_count() or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --thorough, the long tests alone: those marked so, and those that try more often then."""
    is_thorough = config.getoption("--thorough")

    def is_wanted(item: pytest.Item) -> bool:
        marked = item.get_closest_marker("thorough") is not None
        return marked or "thorough" in getattr(item, "fixturenames", ()) if is_thorough else not marked

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = filter(is_wanted, items)


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """True if faults are to be tried as often as it takes to be sure."""
    return bool(request.config.getoption("--thorough"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            if reason := missing(name):
                if is_demanded(name):
                    pytest.fail(f"CI must have this: {reason}", pytrace=False)
                pytest.skip(reason)


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own data folder."""
    monkeypatch.setenv("CIFARCTL_DATA_DIR", str(tmp_path_factory.getbasetemp() / "empty-data-dir"))
    monkeypatch.delenv("CIFARCTL_DEBUG", raising=False)


@pytest.fixture
def cifarctl(capfd: pytest.CaptureFixture[str]) -> Cifarctl:
    """Run the command line in this process: fast, and all but the process itself is real."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def installed() -> Cifarctl:
    """Run the installed command as a shell would: a process of its own, pipes, no terminal."""

    def call(*arguments: object, stdin: bytes = b"", env: dict[str, str] | None = None) -> Result:
        done = subprocess.run(
            [command(), *(str(argument) for argument in arguments)],
            input=stdin,
            capture_output=True,
            timeout=300,
            env={**os.environ, **(env or {})},
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> SmallArchive:
    """An archive with the official one's layout and 600 images."""
    return write_archive(tmp_path_factory.mktemp("archive") / "cifar-10-python.tar.gz", per_batch=100)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR/{train,test}/{blue,red}/*: small photographs of two colours, in several sizes and formats."""
    folder = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for channel, name in ((2, "blue"), (0, "red")):
            for i in range(count):
                pixels = rng.integers(0, 120, (24 + i, 32, 3), np.uint8)
                pixels[..., channel] += 120
                path = folder / split / name / f"{i:03d}.{('png', 'jpg', 'bmp')[i % 3]}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """The path of this name, which one of pytest-xdist's workers makes for all of them. No test may change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"

    def call(name: str, make: Callable[[Path], None]) -> Path:
        folder.mkdir(exist_ok=True)
        done = folder / f"{name}.done"
        with FileLock(folder / f"{name}.lock"):
            if not done.exists():
                make(folder / name)
                done.touch()
        return folder / name

    return call


@pytest.fixture(scope="session")
def classifier_run(made_once: MadeOnce, installed: Cifarctl) -> Path:
    """The folder of a finished `train-clf` run on synthetic data."""

    def train(out: Path) -> None:
        few = ("--limit", 1000, "--val-size", 200, "--batch-size", 250, "--epochs", 2)
        done = installed("train-clf", "--data", "synthetic", *few, "--out", out)
        assert done.code == 0, done.err

    return made_once("clf", train)


@pytest.fixture(scope="session")
def autoencoder_run(made_once: MadeOnce, installed: Cifarctl) -> Path:
    """The folder of a finished `train-ae` run on synthetic data."""

    def train(out: Path) -> None:
        few = ("--limit", 2000, "--epochs", 2, "--latent-dim", 64, "--arch", "conv2")
        done = installed("train-ae", "--data", "synthetic", *few, "--out", out)
        assert done.code == 0, done.err

    return made_once("ae", train)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 PNG files of synthetic test images, with names that sort in order: NN-LABEL.png."""
    from cifarctl.data import Source

    folder = tmp_path_factory.mktemp("photos")
    test = Source("synthetic").load("test")
    for i in range(30):
        name = f"{i:02d}-{test.classes[test.labels[i]]}.png"
        Image.fromarray(test.images[i].permute(1, 2, 0).numpy()).save(folder / name)
    return folder
