"""Only results on stdout, and only our words on stderr: without a home, without streams, on full disks."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from cifarctl.cli.output import Output
from cifarctl.names import shortened

from py2_pickle import SmallArchive
from support import Cifarctl, Result, mounted

COMMAND = [sys.executable, "-m", "cifarctl"]
UNKNOWN_USER = ("unshare", "--user", "--map-user=12345", "--map-group=12345")  # who is in no passwd, as in a container
FEW = "--data synthetic --limit 100 --val-size 50 --batch-size 50 --epochs 1 --arch mlp --no-tensorboard"


def run(*arguments: object, before: tuple[str, ...] = (), env: dict[str, str] | None = None) -> Result:
    """Run the command in an environment without the variables that name homes and caches, but those in `env`."""
    away = ("HOME", "USER", "LOGNAME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "CIFARCTL_DATA_DIR")
    inherited = {name: value for name, value in os.environ.items() if name not in away}
    done = subprocess.run(
        [*before, *COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**inherited, **(env or {})},
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def in_shell(line: str, *arguments: object) -> Result:
    """Run a line of the shell, in which $CIFARCTL is the command with these arguments."""
    command = shlex.join([*COMMAND, *map(str, arguments)])
    script = line.replace("$CIFARCTL", command)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.png")
    return tmp_path / "x.png"


@pytest.mark.needs("namespaces")
class TestHomes:
    @pytest.fixture(params=["none", "read-only"])
    def home(self, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
        if request.param == "none":
            return {}
        (tmp_path / "home").mkdir(mode=0o555)
        return {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "missing")}

    def test_figures_need_none(self, home: dict[str, str], classifier_run: Path, tmp_path: Path) -> None:
        arguments = ("-m", classifier_run, "--plots", tmp_path / "plots", "--quiet")
        done = run("evaluate", *arguments, before=UNKNOWN_USER, env=home)
        assert (done.code, done.err) == (0, "")
        assert (tmp_path / "plots" / "confusion.png").exists()

    def test_training_needs_none(self, tmp_path: Path) -> None:
        done = run("train-clf", *FEW.split(), "--out", tmp_path / "run", before=UNKNOWN_USER)
        assert done.code == 0
        assert [line.split()[0] for line in done.err.splitlines()] == ["Training", "100", "epoch", "Measuring"]

    def test_a_download_says_which_folder_it_needs(self, archive: SmallArchive, tmp_path: Path) -> None:
        arguments = ("download", "--from", archive.path, "--sha256", archive.sha256)
        done = run(*arguments, before=UNKNOWN_USER)
        assert done.code == 1
        assert done.error == "error: no data folder: this user has no home folder"
        assert "--data-dir or the variable CIFARCTL_DATA_DIR" in done.err
        named = {"CIFARCTL_DATA_DIR": str(tmp_path / "data")}
        assert run(*arguments, before=UNKNOWN_USER, env=named).code == 0
        assert (tmp_path / "data" / "cifar10.safetensors").exists()


@pytest.mark.needs("namespaces")
class TestNoFolderForCaches:
    """As in `docker run --read-only`: no home, no temporary folder, and a current folder that cannot be written."""

    NO_HOME: ClassVar = {"HOME": "/dev/null/home"}

    @pytest.fixture
    def read_only(self, tmp_path: Path) -> tuple[str, ...]:
        """What comes before a command: in its own view, nothing but `tmp_path` can be written under /tmp."""
        script = (
            'mount --bind "$1" /var/tmp && mount --bind /tmp /tmp && mount -o remount,bind,ro,nosuid,nodev /tmp &&'
            ' mount --bind /var/tmp "$1" && mount -t tmpfs -o ro none /var/tmp && mount -t tmpfs -o ro none /dev/shm &&'
            ' cd /proc && shift && exec "$@"'
        )
        return ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(tmp_path))

    @pytest.mark.parametrize(
        "command",
        ["train-ae --arch conv2 --latent-dim 64", pytest.param("train-clf --arch mlp", marks=pytest.mark.thorough)],
    )
    def test_a_run_keeps_them_in_its_folder_and_leaves_none(
        self, command: str, read_only: tuple[str, ...], tmp_path: Path
    ) -> None:
        few = "--data synthetic --limit 100 --val-size 50 --batch-size 50 --epochs 1"
        done = run(*command.split(), *few.split(), "--out", tmp_path / "run", before=read_only, env=self.NO_HOME)
        assert (done.code, "error" in done.err) == (0, False), done.err
        names = {path.name for path in (tmp_path / "run").iterdir()}
        assert {"model.safetensors", "summary.json", "curves.png"} <= names
        assert [name for name in names if name.startswith(".") and name != ".cifarctl-lock"] == []

    def test_figures_keep_them_beside_what_is_written(
        self, read_only: tuple[str, ...], autoencoder_run: Path, tmp_path: Path
    ) -> None:
        model = shutil.copy(autoencoder_run / "model.safetensors", tmp_path)
        out = tmp_path / "new" / "grid.png"
        done = run("reconstruct", "-m", model, "-o", out, "--quiet", before=read_only, env=self.NO_HOME)
        assert (done.code, done.err) == (0, "")
        assert [path.name for path in out.parent.iterdir()] == ["grid.png"]

    def test_without_any_folder_the_variable_that_helps_is_named(
        self, read_only: tuple[str, ...], autoencoder_run: Path, tmp_path: Path
    ) -> None:
        model = shutil.copy(autoencoder_run / "model.safetensors", tmp_path)
        done = run("evaluate", "-m", model, "--quiet", before=read_only, env=self.NO_HOME)
        assert done.code == 1
        assert done.err.splitlines() == [
            "error: Matplotlib needs a folder for its caches, and no temporary folder can be written",
            "hint: let TMPDIR name a folder that can be written",
        ]


@pytest.mark.needs("namespaces")
@pytest.mark.parametrize("home", [{}, {"HOME": "/dev/null/home"}])
def test_kernels_are_kept_in_a_private_folder_if_there_is_no_home(home: dict[str, str], tmp_path: Path) -> None:
    script = (
        "import os; from cifarctl import caches; caches.give_triton_a_folder(); print(os.environ['TRITON_CACHE_DIR'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "TRITON_HOME")}
    done = subprocess.run(
        [*UNKNOWN_USER, sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**environment, **home, "TMPDIR": str(tmp_path)},
        check=True,
    )
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []  # it went with the process, and there is no folder `~`


@pytest.mark.needs("POSIX")
class TestClosedStreams:
    def test_work_is_done_without_stderr_and_no_file_gets_its_number(
        self, classifier_run: Path, tmp_path: Path
    ) -> None:
        page = tmp_path / "report.html"
        done = in_shell("$CIFARCTL 2>&-", "evaluate", "-m", classifier_run, "--report", page, "--json")
        assert (done.code, done.err) == (0, "")
        assert done.json["n"] > 0
        text = page.read_text("utf-8")
        assert text.startswith("<!doctype html>")
        assert text.rstrip().endswith("</html>")

    @pytest.mark.needs("/dev/full")
    @pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["evaluate"], ["--show-completion"]])
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_full_disk_for_stdout_is_named(self, arguments: list[str], unbuffered: str, classifier_run: Path) -> None:
        more = ["-m", classifier_run, "--stored"] if arguments == ["evaluate"] else []
        done = in_shell(f"PYTHONUNBUFFERED={unbuffered} SHELL=bash $CIFARCTL >/dev/full", *arguments, *more)
        assert done.code == 1
        assert done.err.splitlines() == ["error: stdout: No space left on device"]

    def test_work_goes_on_if_messages_cannot_be_written(self, tmp_path: Path) -> None:
        done = in_shell("$CIFARCTL 2>/dev/full", "train-clf", *FEW.split(), "--out", tmp_path / "run", "--json")
        assert done.code == 0
        assert done.json["epochs"] == 1

    @pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["predict"]])
    def test_a_result_that_cannot_be_written_is_a_failure(
        self, arguments: list[str], picture: Path, classifier_run: Path
    ) -> None:
        more = [picture, "-m", classifier_run] if arguments == ["predict"] else []
        done = in_shell("$CIFARCTL >&-", *arguments, *more)
        assert done.code == 1
        assert done.error == "error: stdout: it is closed, and results go there"

    def test_a_file_needs_no_stream(self, picture: Path, classifier_run: Path, tmp_path: Path) -> None:
        out = tmp_path / "x.json"
        assert in_shell("$CIFARCTL <&- >&- 2>&-", "predict", picture, "-m", classifier_run, "-o", out).code == 0
        assert json.loads(out.read_text())[0]["path"] == str(picture)

    def test_a_list_on_a_closed_stdin_is_not_an_empty_list(self, classifier_run: Path) -> None:
        done = in_shell("$CIFARCTL <&-", "predict", "-", "-m", classifier_run)
        assert done.code == 1
        assert done.error == "error: stdin: it is closed"

    def test_a_file_that_grows_too_large_is_named_and_left_out(
        self, picture: Path, classifier_run: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "list").write_text(f"{picture}\n" * 300)
        out = tmp_path / "answers.csv"
        line = f"ulimit -f 8; $CIFARCTL < {shlex.quote(str(tmp_path / 'list'))}"
        done = in_shell(line, "predict", "-", "-m", classifier_run, "-o", out)
        assert done.code == 1
        assert done.error == f"error: {out}: File too large"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["list", "x.png"]


@pytest.mark.needs("namespaces")
def test_a_full_disk_names_the_run_which_goes_on_once_there_is_room(tmp_path: Path) -> None:
    few = "--data synthetic --limit 100 --val-size 50 --batch-size 50 --epochs 1 --arch conv2 --latent-dim 64"
    out = tmp_path / "disk" / "run"
    out.parent.mkdir()
    with mounted(out.parent, "size=100k") as disk:
        full = disk.cifarctl("train-ae", *few.split(), "--out", out)
        assert full.code == 1
        assert full.error.startswith(f"error: {out}")
        assert full.error.endswith(": No space left on device")
        assert disk.run("mount", "-o", "remount,size=20m", out.parent).code == 0
        assert disk.cifarctl("train-ae", "--out", out, "--resume").code == 0
        assert (disk.root / "run" / "summary.json").exists()


@pytest.mark.needs("POSIX")
class TestFoldersThatCannotBe:
    def test_a_current_folder_that_has_been_deleted(self, tmp_path: Path) -> None:
        gone = shlex.quote(str(tmp_path / "gone"))
        done = in_shell(f"mkdir {gone} && cd {gone} && rmdir {gone} && $CIFARCTL", "predict", "x.png")
        assert done.code == 1
        assert done.err.splitlines()[0] == "error: the current folder: No such file or directory"

    def test_a_link_to_nothing(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("nowhere")
        done = cifarctl("train-clf", *FEW.split(), "--out", tmp_path / "link")
        assert done.code == 1
        assert done.error == f"error: {tmp_path / 'link'}: a link to nowhere, which does not exist"

    def test_a_name_that_is_too_long(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        done = cifarctl("train-clf", *FEW.split(), "--out", tmp_path / ("n" * 300))
        assert done.code == 1
        assert done.error == f"error: {tmp_path / ('n' * 300)}: File name too long"

    @pytest.mark.needs("byte names")
    def test_a_name_whose_weights_could_not_be_read(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        done = cifarctl("train-clf", *FEW.split(), "--out", tmp_path / os.fsdecode(b"caf\xe9"))
        assert done.code == 1
        assert "caf\\xe9: not UTF-8" in done.error
        assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_are_null(capfd: pytest.CaptureFixture[str]) -> None:
    Output(json=True).result({"metrics": {"nll": math.inf, "psnr": [math.nan, 1.5]}})
    out, err = capfd.readouterr()
    assert json.loads(out, parse_constant=pytest.fail) == {"metrics": {"nll": None, "psnr": [None, 1.5]}}
    assert err == "Some numbers are not finite: they are null in the JSON\n"


def test_a_message_keeps_both_ends_of_a_value_of_a_megabyte(cifarctl: Cifarctl) -> None:
    done = cifarctl("train-clf", "--set", f"crop={'x' * 1_000_000}end")
    assert done.code == 2
    assert len(done.err) < 5000
    assert done.error.startswith("error: ")
    assert shortened("a" * 2000) == "a" * 2000
    assert shortened(f"first{'a' * 9999}last").startswith("first")
    assert shortened(f"first{'a' * 9999}last").endswith("last")


def test_a_picture_that_cannot_be_drawn_costs_no_model(
    cifarctl: Cifarctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert (tmp_path / "run" / "model.safetensors").exists()
        raise ValueError("no font")

    monkeypatch.setattr("cifarctl.plots.confusion", fail)
    done = cifarctl("train-clf", *FEW.split(), "--out", tmp_path / "run")
    assert done.code == 0
    assert "The pictures could not be drawn (ValueError: no font). The model is complete" in done.err
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("option", ["--plots", "--report"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    option: str, cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifarctl.evaluation.evaluate_classifier", lambda *_, **__: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    done = cifarctl("evaluate", "-m", classifier_run, option, tmp_path / "file" / "x.html")
    assert done.code == 1
    assert done.error.startswith(f"error: {tmp_path / 'file'}")
