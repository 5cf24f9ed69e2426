"""A training run that is killed, terminated, or out of disk or memory loses nothing that it had saved."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cifarctl import weights
from cifarctl.cli import run, training
from cifarctl.data import Dataset, Source
from cifarctl.errors import TrainingError
from cifarctl.files import atomic_path, write_text
from cifarctl.training import loop
from cifarctl.training.checkpoint import Record
from cifarctl.training.loop import EpochDone, StepDone, fit
from cifarctl.training.objectives import Classification
from cifarctl.training.recipes import Recipe
from cifarctl.training.run_dir import RunDir

from support import Cifarctl, Result, command, model_bytes, mounted, start, wait_for_line

# 40 steps and 11 checkpoints in a few seconds.
SHORT = (
    "--data",
    "synthetic",
    "--limit",
    400,
    "--val-size",
    100,
    "--batch-size",
    100,
    "--epochs",
    10,
    "--no-tensorboard",
)
RUN = ("train-clf", "--set", "model.widths=24,24,24", "--ema", 0.9, *SHORT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a break."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run([*map(str, RUN), "--quiet", "--out", str(out)]) == 0
    return out


class TestKill:
    @pytest.mark.thorough
    def test_every_resumed_run_ends_with_the_same_bits(self, installed: Cifarctl, whole: Path, tmp_path: Path) -> None:
        """Killed at random moments, a third of them while a file is being written."""
        random_moments = random.Random(0)
        killed_while_saving = 0
        for i in range(6):  # kills.py beside this file makes 40
            broken = tmp_path / f"broken {i}"
            process = start(*RUN, "--out", broken)
            wait_for_line(process, "400 images")
            if i % 3 == 0:
                wait_for_line(process, f"epoch {random_moments.randint(1, 9):>2}/10")
                wait_for_temporary_file(broken)
            else:
                time.sleep(random_moments.uniform(0, 2))
            process.kill()
            process.communicate()
            killed_while_saving += bool(list(broken.glob(".*.part*")))
            if not (broken / "summary.json").exists():
                resumed = installed("train-clf", "--out", broken, "--resume")
                assert resumed.code == 0, resumed.err
            assert model_bytes(broken) == model_bytes(whole), f"run {i}"
            assert not list(broken.glob(".*")), "what the killed process was writing is still there"
        print(f"{killed_while_saving} of the runs were killed while they wrote a file")

    def test_between_the_last_checkpoint_and_what_follows_it(
        self, cifarctl: Cifarctl, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One kill in twenty met this moment: last.safetensors was still the epoch's before."""
        write_history = RunDir.write_history

        def dies(run: RunDir, history: list[Record]) -> None:
            if len(history) == 10:
                raise OSError("died")
            write_history(run, history)

        broken = tmp_path / "broken"
        with monkeypatch.context() as patched:
            patched.setattr(RunDir, "write_history", dies)
            assert cifarctl(*RUN, "--out", broken).code == 1
        assert cifarctl("train-clf", "--out", broken, "--resume").code == 0
        assert model_bytes(broken) == model_bytes(whole)


class TestQuickEpochs:
    """Where epochs take less than writing files does, as on a GPU, they are not saved one by one."""

    @pytest.fixture(autouse=True)
    def _is_quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "_EPOCH_CHECKPOINT_SECONDS", {"cpu": 3600.0})

    def stopped(
        self, cifarctl: Cifarctl, monkeypatch: pytest.MonkeyPatch, out: Path, stop: Callable[[], None], *more: object
    ) -> Result:
        """A run that does `stop` when it has said how its third epoch went."""
        line = training._epoch_line

        def stops(event: EpochDone) -> str:
            if event.history[-1]["epoch"] == 3:
                stop()
            return line(event)

        with monkeypatch.context() as patched:
            patched.setattr(training, "_epoch_line", stops)
            return cifarctl(*RUN, "--out", out, *more)

    def test_a_whole_run_leaves_the_same_files(self, cifarctl: Cifarctl, whole: Path, tmp_path: Path) -> None:
        assert cifarctl(*RUN, "--out", tmp_path / "run").code == 0
        assert model_bytes(tmp_path / "run") == model_bytes(whole)
        assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.iterdir()}
        assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 10

    @pytest.mark.needs("POSIX")
    def test_a_signal_saves_all_of_them(
        self, cifarctl: Cifarctl, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        ended = self.stopped(cifarctl, monkeypatch, out, lambda: signal.raise_signal(signal.SIGTERM))
        assert ended.code == 143
        assert "the state is saved" in ended.error
        epochs = [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
            saved = json.loads(file.metadata()["position"])
        assert epochs == [record["epoch"] for record in saved["history"]] == [1, 2, 3]
        best = load_file(out / "model.safetensors")
        kept = load_file(out / "checkpoint.safetensors")
        assert all(torch.equal(tensor, kept[f"best.{name}"]) for name, tensor in best.items())
        assert cifarctl("train-clf", "--out", out, "--resume").code == 0
        assert model_bytes(out) == model_bytes(whole)

    def test_a_kill_before_the_first_checkpoint_leaves_a_run_to_resume(
        self, cifarctl: Cifarctl, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die() -> None:
            raise OSError("died")

        out = tmp_path / "run"
        assert self.stopped(cifarctl, monkeypatch, out, die).code == 1
        assert {path.name for path in out.iterdir()} == {"config.json"}
        assert cifarctl("train-clf", "--out", out, "--resume").code == 0
        assert model_bytes(out) == model_bytes(whole)

    def test_a_loss_that_is_not_finite_leaves_the_best_epoch(
        self, cifarctl: Cifarctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def break_down() -> None:
            monkeypatch.setattr(torch.Tensor, "backward", lambda loss, **_: loss.detach().fill_(math.nan))

        out = tmp_path / "run"
        ended = self.stopped(cifarctl, monkeypatch, out, break_down)
        assert "no longer finite" in ended.error
        assert weights.read_info(out / "model.safetensors").kind == "classifier"
        assert len((out / "metrics.jsonl").read_text().splitlines()) == 3


def wait_for_temporary_file(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if list(folder.glob(".*.part*")):
            return
    raise AssertionError(f"no file was written in {folder}")


@pytest.mark.needs("POSIX")
class TestSignals:
    @pytest.mark.thorough
    def test_sigterm_ends_a_run_whatever_it_does(self, cifarctl: Cifarctl, whole: Path, tmp_path: Path) -> None:
        """At the start, while training, and while the test split is measured. (SIGINT: tests/test_training.py.)"""
        out, number = tmp_path / "run", signal.SIGTERM
        for moment in ("400 images", "epoch  2/10", "Measuring"):
            process = start(*RUN, "--out", out, "--resume" if out.exists() else "--overwrite")
            wait_for_line(process, moment)
            process.send_signal(number)
            sent = time.monotonic()
            _, err = process.communicate(timeout=60)
            print(f"{moment}: ended after {time.monotonic() - sent:.2f} s")
            ended = Result(process.returncode, "", err)
            assert ended.code == 128 + number, err
            assert signal.Signals(number).name in ended.error
            assert "--resume" in err
        assert cifarctl("train-clf", "--out", out, "--resume").code == 0
        assert model_bytes(out) == model_bytes(whole)

    def test_a_second_sigint_ends_it_at_once(self, tmp_path: Path) -> None:
        process = start(*RUN, "--out", tmp_path / "run", "--epochs", 1000)
        wait_for_line(process, "epoch    2/1000")
        # In one go, so that no step ends between them.
        os.kill(process.pid, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        os.kill(process.pid, signal.SIGCONT)
        _, err = process.communicate(timeout=20)
        assert process.returncode in (130, 143), err
        assert "Traceback" not in err


@pytest.mark.thorough
@pytest.mark.needs("namespaces")
def test_a_full_disk_keeps_what_was_saved(whole: Path, tmp_path: Path) -> None:
    disk_folder = tmp_path / "disk"
    disk_folder.mkdir()
    with mounted(disk_folder, "size=20m") as disk:
        out, filler = disk.root / "run", disk.root / "filler"
        # The disk fills up after the second epoch, while checkpoints are being written.
        code = (
            "import sys\n"
            "from cifarctl.cli import run\n"
            "from cifarctl.cli import training\n"
            "line = training._epoch_line\n"
            "def fill(event):\n"
            "    if event.history[-1]['epoch'] == 2:\n"
            f"        try:\n            open({str(disk_folder / 'filler')!r}, 'wb').write(bytes(40 << 20))\n"
            "        except OSError: pass\n"
            "    return line(event)\n"
            "training._epoch_line = fill\n"
            f"sys.exit(run({[str(a) for a in (*RUN, '--out', disk_folder / 'run')]!r}))\n"
        )
        failed = disk.run(sys.executable, "-c", code)
        assert failed.code == 1, failed.err
        assert "No space left on device" in failed.error
        assert "checkpoint.safetensors" in failed.error
        assert not list(out.glob(".*")), "an unfinished file takes the room that is missing"
        assert (out / "model.safetensors").exists()
        usable = disk.run(command(), "evaluate", "-m", disk_folder / "run", "--json")
        assert usable.code == 0, usable.err
        filler.unlink()
        resumed = disk.run(command(), "train-clf", "--out", disk_folder / "run", "--resume")
        assert resumed.code == 0, resumed.err
        assert model_bytes(out) == model_bytes(whole)


class Failing(Classification):
    """Raises `error` at every step with more than `fits` images, from the third step on."""

    def __init__(self, error: Exception, fits: int, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.error, self.fits, self.steps = error, fits, 0

    def loss(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        if self.steps > 2 and len(x) > self.fits:
            raise self.error
        return super().loss(x, labels)


class TestSteps:
    RECIPE = Recipe(epochs=2, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.0)

    def events(self, checkpoint: Path, error: Exception, fits: int) -> Iterator[object]:
        from cifarctl.models import build

        source = Source("synthetic", limit=320)
        data: Dataset = source.load("train")
        model = build("mlp", hidden=[8])
        objective = Failing(error, fits, model, self.RECIPE, 0)
        return fit(
            model,
            objective,
            data,
            source.load("val"),
            self.RECIPE,
            seed=0,
            precision="fp32",
            checkpoint=checkpoint,
        )

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
            MemoryError(),
        ],
    )
    def test_out_of_memory_says_which_batch_fits(self, tmp_path: Path, error: Exception) -> None:
        with pytest.raises(TrainingError, match="out of memory at step 3 of 10, with 64 images") as caught:
            list(self.events(tmp_path / "checkpoint.safetensors", error, fits=20))
        assert "`batch_size` 16 fits" in str(caught.value.hint)

    def test_a_gpu_that_disappears_is_one_line(self, tmp_path: Path) -> None:
        kind = getattr(torch, "AcceleratorError", RuntimeError)
        error = kind("CUDA error: unspecified launch failure\nCUDA kernel errors might be …")
        with pytest.raises(TrainingError, match=r"the GPU failed at step 3 of 10: .*unspecified launch failure$"):
            list(self.events(tmp_path / "checkpoint.safetensors", error, fits=0))

    def test_there_are_checkpoints_inside_long_epochs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
        checkpoint = tmp_path / "checkpoint.safetensors"
        events = self.events(checkpoint, MemoryError(), fits=64)
        steps = 0
        while steps < 3:
            steps += isinstance(next(events), StepDone)
        assert checkpoint.exists()

    @pytest.mark.thorough
    @pytest.mark.needs("/proc")
    def test_memory_that_is_really_too_little(self, tmp_path: Path) -> None:
        """The process may have 1.5 GB of address space more than it has with torch imported."""
        code = (
            "import resource, sys, torch\n"
            "from cifarctl.cli import run\n"
            "size = int(open('/proc/self/statm').read().split()[0]) * 4096 + 1_500_000_000\n"
            "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
            "sys.exit(run(sys.argv[1:]))\n"
        )
        arguments = ("train-clf", *SHORT[:2], "--epochs", 1, "--batch-size", 10_000, "--out", tmp_path / "run")
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments), "--no-tensorboard"],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        failed = Result(done.returncode, done.stdout, done.stderr)
        assert failed.code == 1
        assert "out of memory at step 1 of" in failed.error
        assert "fits" in failed.err


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"file": "old"}


@pytest.mark.needs("POSIX")
def test_a_device_or_a_link_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "to the reader")
    assert os.read(reader, 100) == b"to the reader"
    os.close(reader)
    assert pipe.is_fifo()
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
