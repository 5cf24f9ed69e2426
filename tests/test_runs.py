"""A run's folder belongs to one process, is never replaced by less than what it held, and goes on as itself only."""

import errno
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cifarctl import models, weights
from cifarctl.cli import training
from cifarctl.distributed import ALONE
from cifarctl.files import move_file, to_json
from cifarctl.sealed_file import load_sealed
from cifarctl.training import run_dir
from cifarctl.training.loop import EpochDone
from cifarctl.training.preflight import check_batch
from cifarctl.training.recipes import recipe_for
from cifarctl.version import __version__

from support import Cifarctl, model_bytes, start, wait_for_line

SMALL = ("--data", "synthetic", "--limit", 256, "--val-size", 100, "--batch-size", 64, "--no-tensorboard")
MLP = ("train-clf", "--arch", "mlp", "--set", "model.hidden=[16]", *SMALL)
RUN = (*MLP, "--epochs", 4)
# 400 steps an epoch, so that a signal comes before its end.
LONG = (*MLP, "--limit", 4000, "--batch-size", 10, "--epochs", 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN without a break."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert training_command(*RUN, "--out", out) == 0
    return out


def training_command(*arguments: object) -> int:
    from cifarctl.cli import run

    return run([*map(str, arguments), "--quiet"])


def stop_at(epoch: int, out: Path, *arguments: object, stop: Callable[[], None] | None = None) -> int:
    """Run in this process, and stop it, by default with SIGTERM, when it has said how `epoch` went."""
    line = training._epoch_line

    def stops(event: EpochDone) -> str:
        if event.history[-1]["epoch"] == epoch:
            (stop or (lambda: signal.raise_signal(signal.SIGTERM)))()
        return line(event)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "_epoch_line", stops)
        return training_command(*arguments, "--out", out)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "run"
    assert stop_at(3, out, *RUN) == 143
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """RUN, terminated after its third epoch of four."""
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestLock:
    @pytest.mark.needs("POSIX")
    def test_a_folder_in_use_is_refused_and_a_dead_process_does_not_use_it(
        self, cifarctl: Cifarctl, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        process = start(*LONG, "--epochs", 50, "--out", out)
        wait_for_line(process, "4,000 images")
        for how in ("--resume", "--overwrite", "--quiet"):
            refused = cifarctl(*(("train-clf",) if how == "--resume" else RUN), "--out", out, how)
            assert refused.code == 1
            assert f"error: {out}: in use by process {process.pid}" in refused.error
        assert process.poll() is None
        process.kill()
        process.communicate()
        assert cifarctl(*RUN, "--out", out, "--overwrite").code == 0
        assert not list(out.glob(".*"))

    @pytest.mark.needs("POSIX")
    def test_a_file_system_without_locks_is_no_obstacle(
        self, cifarctl: Cifarctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fcntl

        def refuses(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuses)
        done = cifarctl(*RUN, "--out", tmp_path / "run")
        assert done.code == 0
        assert "has no locks" in done.err
        assert not list((tmp_path / "run").glob(".*"))


class TestOverwrite:
    @pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl", "model.safetensors"])
    def test_files_of_others_are_never_replaced(self, cifarctl: Cifarctl, tmp_path: Path, name: str) -> None:
        if name.endswith(".safetensors"):
            save_file({"weight": torch.zeros(2)}, tmp_path / name, {"format": "pt"})
        else:
            (tmp_path / name).write_text('{"compilerOptions": {}}\n')
        before = contents(tmp_path)
        for how in ("--quiet", "--overwrite"):
            refused = cifarctl(*RUN, "--out", tmp_path, how)
            assert refused.code == 1
            assert f"{tmp_path / name}: not of a cifarctl run" in refused.error
            assert contents(tmp_path) == before

    def test_files_with_other_names_stay(self, cifarctl: Cifarctl, whole: Path, tmp_path: Path) -> None:
        out = Path(shutil.copytree(whole, tmp_path / "run"))
        for name in ("notes.txt", "events.out.tfevents.1.other"):
            (out / name).write_text("precious val/loss")
        assert cifarctl(*RUN, "--seed", 1, "--out", out, "--overwrite").code == 0
        assert [(out / name).read_text() for name in ("notes.txt", "events.out.tfevents.1.other")] == [
            "precious val/loss"
        ] * 2
        assert model_bytes(out) != model_bytes(whole)

    def test_a_new_run_that_fails_leaves_the_old_one_as_it_was(
        self, cifarctl: Cifarctl, whole: Path, tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(whole, tmp_path / "run"))
        failed = cifarctl(*RUN, "--lr", 1e30, "--epochs", 1, "--out", out, "--overwrite")
        assert failed.code == 1
        assert "is no longer finite" in failed.error
        assert contents(out) == contents(whole)
        assert "has finished" in cifarctl("train-clf", "--out", out, "--resume").error

    @pytest.mark.needs("POSIX")
    def test_a_new_run_that_is_killed_leaves_the_old_one_and_can_go_on(
        self, cifarctl: Cifarctl, whole: Path, tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(whole, tmp_path / "run"))
        for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
            process = start(*LONG, "--out", out, "--overwrite")
            wait_for_line(process, "4,000 images")
            process.send_signal(number)
            process.communicate()
            assert process.returncode == code
            assert {name: content for name, content in contents(out).items() if not name.startswith(".")} == contents(
                whole
            )
        assert cifarctl("evaluate", "-m", out, "--quiet").code == 0
        refused = cifarctl(*RUN, "--out", out)
        assert "already holds a run, and the start of one that is to replace it" in refused.error
        assert "--resume" in refused.err
        assert cifarctl("train-clf", "--out", out, "--resume", "--quiet").code == 0
        assert json.loads((out / "config.json").read_text())["options"]["limit"] == 4000
        assert json.loads((out / "summary.json").read_text())["epochs"] == 1
        assert not list(out.glob(".*"))

    @pytest.mark.parametrize("moves", [0, 2, 4])
    def test_killed_while_it_takes_the_place_it_ends_with_the_same_bits(
        self, cifarctl: Cifarctl, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
    ) -> None:
        out = tmp_path / "run"
        assert cifarctl(*MLP, "--epochs", 1, "--seed", 1, "--out", out).code == 0
        old = run_dir.read_history(out / "model.safetensors")
        done: list[Path] = []

        def dies(source: Path, target: Path) -> None:
            if len(done) == moves:
                raise OSError(errno.EIO, "died", str(target))
            done.append(target)
            move_file(source, target)

        with monkeypatch.context() as patched:
            patched.setattr("cifarctl.training.run_dir.move_file", dies)
            assert cifarctl(*RUN, "--out", out, "--overwrite").code == 1
        assert not (out / "summary.json").exists()
        assert cifarctl("evaluate", "-m", out, "--quiet").code == 0
        # What is told of the weights that are there is of their own run.
        seed = weights.read_info(out / "model.safetensors").data["seed"]
        assert seed == (1 if moves == 0 else 0)
        assert run_dir.read_config_of(out / "model.safetensors")["options"]["seed"] == seed
        assert (run_dir.read_history(out / "model.safetensors") == old) == (moves == 0)
        resumed = cifarctl("train-clf", "--out", out, "--resume")
        assert resumed.code == 0, resumed.err
        assert "epoch 1/4" not in resumed.err
        assert model_bytes(out) == model_bytes(whole)
        assert not list(out.glob(".*"))

    def test_the_best_weights_are_there_after_a_resume_though_no_epoch_is_better(self, tmp_path: Path) -> None:
        run = run_dir.RunDir(tmp_path / "run")
        last, best = ({"weight": torch.full((1,), value)} for value in (0.0, 1.0))
        files = run_dir.EpochFiles(run, weights.ModelInfo("classifier", "mlp", {}))
        files.add(EpochDone([{"epoch": 3.0}], 4, last, best, best_epoch=1, is_best=False, is_saved=True))
        run.close()
        assert load_file(tmp_path / "run" / "model.safetensors")["weight"] == 1
        assert load_file(tmp_path / "run" / "last.safetensors")["weight"] == 0

    def test_files_of_others_with_like_names_stay(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        names = (".lock", ".lock-holder", ".video-abcdefgh.part1", ".movie-12345678.partial.mkv", "notes.txt")
        for name in names:
            (tmp_path / name).write_text("mine")
        (tmp_path / ".new").mkdir()
        (tmp_path / ".new" / "config.json").write_text("{}")
        assert cifarctl("train-clf", "--out", tmp_path, "--resume").code == 1
        assert cifarctl(*MLP, "--epochs", 1, "--out", tmp_path).code == 0
        assert all((tmp_path / name).read_text() == "mine" for name in names)
        assert (tmp_path / ".new" / "config.json").read_text() == "{}"

    def test_the_log_of_another_trainer_is_not_replaced(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "step": 100, "loss": 3.0}')
        refused = cifarctl(*MLP, "--epochs", 1, "--out", tmp_path)
        assert refused.code == 1
        assert "metrics.jsonl" in refused.error


class TestStart:
    def test_empty_paths_are_refused(self, cifarctl: Cifarctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for arguments, says in (
            ((*RUN, "--out", ""), "--out is empty"),
            ((*RUN, "--out="), "--out is empty"),
            ((*RUN, "--data", ""), "--data is empty"),
            ((*RUN, "--data-dir", ""), "--data-dir is empty"),
            (("evaluate", "-m", ""), "--model is empty"),
            (("evaluate", "-m", "classifier", "-m", ""), "--model is empty"),
            (("predict", "example", "-o", ""), "--out is empty"),
            (("predict", ""), "an argument is an empty name"),
            (("download", "--data-dir", ""), "--data-dir is empty"),
        ):
            refused = cifarctl(*arguments)
            assert refused.code == 2
            assert refused.error == f"error: {says}"
        assert not list(tmp_path.iterdir())

    def test_one_image_and_a_batch_norm_is_refused_before_the_folder_is_made(
        self, cifarctl: Cifarctl, tmp_path: Path
    ) -> None:
        for few in (("--batch-size", 1), ("--limit", 1), ("--limit", 3, "--batch-size", 1)):
            refused = cifarctl(*RUN, *few, "--out", tmp_path / "run")
            assert refused.code == 2
            assert "batch norm" in refused.error
            assert not (tmp_path / "run").exists()

    def test_convolutions_learn_from_one_image(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        few = ("--limit", 3, "--batch-size", 1, "--epochs", 1, "--set", "model.widths=24,24,24")
        assert cifarctl("train-clf", *SMALL, *few, "--out", tmp_path / "run").code == 0

    def test_so_do_convolutions_on_an_encoder_which_takes_whole_images(self) -> None:
        encoder = {"model": "resconv", "config": {"latent_dim": 64, "width": 8}}
        model = models.build("airbench", encoder=encoder, widths=[24, 24, 24])
        recipe = replace(recipe_for("airbench", "fast", "frozen encoder"), batch_size=1)
        assert recipe.image_sizes
        check_batch(model, recipe, torch.zeros(3, 3, 32, 32, dtype=torch.uint8), ALONE)

    def test_a_folder_with_neither_weights_nor_a_checkpoint_is_no_run(
        self, cifarctl: Cifarctl, whole: Path, tmp_path: Path
    ) -> None:
        shutil.copy(whole / "config.json", tmp_path)
        assert cifarctl(*RUN, "--out", tmp_path).code == 0
        assert model_bytes(tmp_path) == model_bytes(whole)

    def test_default_names_of_one_second_get_a_number(
        self, cifarctl: Cifarctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("time.strftime", lambda *_: "20260101-000000")
        for number in ("", "-2", "-3"):
            done = cifarctl(*MLP, "--epochs", 1, "--json")
            assert done.json["run"] == f"runs/train-clf-20260101-000000{number}"

    def test_resume_and_overwrite_exclude_each_other(self, cifarctl: Cifarctl, stopped: Path) -> None:
        before = contents(stopped)
        refused = cifarctl("train-clf", "--out", stopped, "--resume", "--overwrite")
        assert refused.code == 2
        assert "leave one of them out" in refused.err
        assert contents(stopped) == before


class TestCheckpoint:
    def test_a_flipped_bit_leads_to_the_one_before_or_to_an_error(
        self, cifarctl: Cifarctl, whole: Path, stopped_once: Path, tmp_path: Path, thorough: bool
    ) -> None:
        newest = stopped_once / "checkpoint.safetensors"
        size, header = newest.stat().st_size, int.from_bytes(newest.read_bytes()[:8], "little")
        count = 30 if thorough else 3  # kills.py beside the crashes tries 100
        # A third of them in the header, where the position, the format and the digest are.
        places = [
            0,
            *(8 + header * i // count for i in range(1, count // 3)),
            *range(8 + header, size, 3 * size // count),
        ]
        for place in places:
            out = Path(shutil.copytree(stopped_once, tmp_path / f"{place}"))
            damaged = bytearray(newest.read_bytes())
            damaged[place] ^= 1 << place % 8
            (out / newest.name).write_bytes(damaged)
            resumed = cifarctl("train-clf", "--out", out, "--resume")
            assert resumed.code == 0, resumed.err
            assert f"{out / newest.name}: damaged" in resumed.err
            assert "going on from the one before it, after step 8" in resumed.err
            assert model_bytes(out) == model_bytes(whole)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--seed", 1), "seed is 1, not 0"),
            (("--epochs", 5), "recipe.epochs is 5, not 4"),
            (("--lr", 0.001), "recipe.lr is 0.001, not 0.002"),
            (("--precision", "fp32"), "run is "),
        ],
    )
    def test_that_of_another_run_is_refused(
        self, cifarctl: Cifarctl, stopped: Path, tmp_path: Path, options: tuple[object, ...], says: str
    ) -> None:
        assert stop_at(3, tmp_path / "other", *RUN, *options) == 143
        shutil.copy(tmp_path / "other" / "checkpoint.safetensors", stopped)
        before = contents(stopped)
        refused = cifarctl("train-clf", "--out", stopped, "--resume")
        assert refused.code == 1
        assert "checkpoint.safetensors: belongs to another run: " in refused.error
        assert says in refused.error
        assert contents(stopped) == before

    def test_one_of_an_earlier_version_goes_on_with_a_remark(
        self, cifarctl: Cifarctl, whole: Path, stopped: Path
    ) -> None:
        rewrite_checkpoint(stopped, {"format": "1"})
        resumed = cifarctl("train-clf", "--out", stopped, "--resume")
        assert resumed.code == 0, resumed.err
        assert "without a digest" in resumed.err
        assert model_bytes(stopped) == model_bytes(whole)

    def test_one_of_a_later_version_or_without_the_optimizer_is_refused(
        self, cifarctl: Cifarctl, stopped: Path
    ) -> None:
        rewrite_checkpoint(stopped, {"format": "3"})
        assert "of format '3'" in cifarctl("train-clf", "--out", stopped, "--resume").error
        rewrite_checkpoint(stopped, {"format": "1"}, without="optimizer.")
        refused = cifarctl("train-clf", "--out", stopped, "--resume")
        assert refused.code == 1
        assert "the optimizer's tensors are missing" in refused.error

    def test_a_missing_one_is_not_a_finished_run(self, cifarctl: Cifarctl, stopped: Path) -> None:
        for path in stopped.glob("*checkpoint.safetensors"):
            path.unlink()
        refused = cifarctl("train-clf", "--out", stopped, "--resume")
        assert refused.code == 1
        assert "checkpoint.safetensors: missing, and the run has not finished" in refused.error


class TestConfiguration:
    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("seed", "three", "options.seed is 'three', not a whole number"),
            ("seed", -1, "options.seed is -1, not 0 or more"),
            ("limit", 0.5, "options.limit is 0.5, not a whole number or null"),
            ("tensorboard", 1, "options.tensorboard is 1, not true or false"),
            ("precision", "fp8", "options.precision is 'fp8', not one of: "),
            ("arch", "zzz", "options.arch is 'zzz', which names nothing"),
            ("arch", "resconv", "options.arch is 'resconv', which names nothing"),
            ("recipe", "zzz", "options.recipe is 'zzz', which names nothing"),
            ("encoder", "", "options.encoder is '', which names nothing"),
            ("overrides", {"epochs": 0}, "epochs is 0, not a whole number above 0"),
            ("overrides", {"batch_size": -3}, "batch_size is -3, not a whole number above 0"),
            ("overrides", [], "options.overrides is [], not an object or null"),
        ],
    )
    def test_an_edited_field_is_refused_by_name(
        self, cifarctl: Cifarctl, stopped: Path, field: str, value: object, says: str
    ) -> None:
        edit(stopped, lambda config: config["options"].update({field: value}))
        refused = cifarctl("train-clf", "--out", stopped, "--resume")
        assert refused.code == 1
        assert f"{stopped / 'config.json'}: " in refused.error
        assert says in refused.error

    @pytest.mark.parametrize("value", ["pets", 7, ["pets"]])
    def test_data_that_are_no_description_are_refused(self, cifarctl: Cifarctl, stopped: Path, value: object) -> None:
        edit(stopped, lambda config: config.update(data=value))
        refused = cifarctl("train-clf", "--out", stopped, "--resume")
        assert refused.code == 1
        assert refused.error.endswith(f"config.json: data is {value!r}, no description of data")

    @pytest.mark.parametrize(
        ("version", "hint"), [("0.1.0", "resume it with cifarctl 0.1.0"), (__version__, "bring the file back")]
    )
    def test_a_default_that_has_changed_since_is_named(
        self, cifarctl: Cifarctl, stopped: Path, version: str, hint: str
    ) -> None:
        edit(stopped, lambda config: config["recipe"].update(weight_decay=0.5))
        edit(stopped, lambda config: config["versions"].update(cifarctl=version))
        before = contents(stopped)
        refused = cifarctl("train-clf", "--out", stopped, "--resume")
        assert refused.code == 1
        assert "recipe.weight_decay is 0.5, not 0.05" in refused.error
        assert f"hint: {hint}" in refused.err
        assert contents(stopped) == before

    def test_other_threads_may_end_in_other_bits(self, cifarctl: Cifarctl, stopped: Path) -> None:
        threads = torch.get_num_threads()
        edit(stopped, lambda config: config.update(threads=threads + 1))
        resumed = cifarctl("train-clf", "--out", stopped, "--resume")
        assert resumed.code == 0
        assert f"the last bits may differ from those without the break: threads is {threads + 1}" in resumed.err


def test_no_file_of_ours_holds_what_is_no_json() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json({"metrics": [value]})


def rewrite_checkpoint(run: Path, metadata: dict[str, str], without: str = "-") -> None:
    """As another version would have written it: without a digest."""
    path = run / "checkpoint.safetensors"
    _, found, _ = load_sealed(path)
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(without)}
    save_file(tensors, path, {"position": found["position"], **metadata})


def edit(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))
