"""`train-ae` and `train-clf`: one loop that is reproducible, survives a signal, and leaves a whole folder."""

import itertools
import json
import math
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifarctl import hardware, models, weights
from cifarctl.data import Dataset, Source
from cifarctl.data.dataset import to_float
from cifarctl.data.synthetic import draw_synthetic
from cifarctl.distributed import Ranks
from cifarctl.errors import TrainingError, UsageError
from cifarctl.models.base import calibrated
from cifarctl.models.pca import pca_reconstruct
from cifarctl.training import recipes
from cifarctl.training.calibration import fit_calibration
from cifarctl.training.cuda_graph import CapturedStep
from cifarctl.training.loop import EpochDone, Fitted, StepDone, fit
from cifarctl.training.objectives import Classification, FrozenLatents, FrozenPictures, ThawingPictures
from cifarctl.training.optim import (
    Muon,
    build_optimizer,
    keep_rates_on,
    learning_rate_factor,
    newton_schulz,
    set_learning_rate,
)
from cifarctl.training.recipes import Recipe

from support import Cifarctl, command, model_bytes, on_a_terminal, start, wait_for_line

DATA = ("--data", "synthetic", "--val-size", 100)
CLASSIFIER = ("train-clf", *DATA, "--limit", 500, "--batch-size", 125, "--epochs", 2)
AUTOENCODER = ("train-ae", *DATA, "--limit", 1000, "--arch", "conv2", "--epochs", 2)
MLP = ("train-clf", *DATA, "--arch", "mlp", "--batch-size", 125, "--epochs", 2)
ONE_STEP = ("train-clf", *DATA, "--limit", 250, "--arch", "mlp", "--epochs", 1)


class TestRunFolder:
    def test_it_holds_all_that_the_design_says(self, classifier_run: Path) -> None:
        names = {path.name for path in classifier_run.iterdir() if not path.name.startswith("events.")}
        assert names == {
            "model.safetensors",
            "last.safetensors",
            "config.json",
            "metrics.jsonl",
            "summary.json",
            "curves.png",
            "confusion.png",
        }
        config = json.loads((classifier_run / "config.json").read_text())
        assert config["options"]["limit"] == 1000
        assert config["recipe"]["epochs"] == 2
        assert config["versions"]["torch"] == torch.__version__
        lines = [json.loads(line) for line in (classifier_run / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2]
        for name in ("curves.png", "confusion.png"):
            with Image.open(classifier_run / name) as picture:
                assert min(picture.size) > 400

    def test_an_autoencoder_is_validated_before_its_first_step(
        self, cifarctl: Cifarctl, image_folder: Path, tmp_path: Path
    ) -> None:
        arguments = ("--data", image_folder, "--epochs", 2, "--latent-dim", 16, "--out", tmp_path / "ae")
        assert cifarctl("train-ae", *arguments).code == 0
        first, *others = [json.loads(line) for line in (tmp_path / "ae" / "metrics.jsonl").read_text().splitlines()]
        assert (first["epoch"], first["step"], "train_loss" in first) == (0, 0, False)
        assert [line["epoch"] for line in others] == [1, 2]
        source = Source(str(image_folder))
        val = source.load("val").images
        error = pca_reconstruct(source.load("train").images, val, 16) - val.float() / 255
        assert first["val_psnr"] == pytest.approx(-10 * math.log10(error.square().mean().item()), abs=0.05)  # bf16
        assert json.loads((tmp_path / "ae" / "summary.json").read_text())["epochs"] == 2

    def test_tensorboard_has_scalars_and_pictures(self, autoencoder_run: Path) -> None:
        events = EventAccumulator(str(autoencoder_run)).Reload()
        tags = events.Tags()
        assert {"train/loss", "val/loss", "val/psnr"} <= set(tags["scalars"])
        assert {"val/reconstructions", "test/reconstructions"} == set(tags["images"])
        history = [json.loads(line) for line in (autoencoder_run / "metrics.jsonl").read_text().splitlines()]
        logged = [event.value for event in events.Scalars("val/psnr")]
        assert logged == pytest.approx([line["val_psnr"] for line in history])

    def test_the_model_knows_its_data_and_what_it_scored(self, classifier_run: Path) -> None:
        with safe_open(classifier_run / "model.safetensors", framework="pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["data"]) == {"name": "synthetic", "val_size": 200, "seed": 0, "limit": 1000}
        summary = json.loads((classifier_run / "summary.json").read_text())
        assert json.loads(metadata["metrics"])["test"] == summary["test"]
        assert summary["test"]["accuracy"] > 0.3  # ten classes: chance is 0.1
        training = json.loads(metadata["training"])
        assert training["command"] == (
            "cifarctl train-clf --data synthetic --val-size 200 --limit 1000 --epochs 2 --batch-size 250"
        )
        assert training["versions"]["torch"] == torch.__version__

    def test_a_finished_run_is_not_overwritten(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        out = tmp_path / "run"
        assert cifarctl(*ONE_STEP, "--out", out, "--no-tensorboard").code == 0
        before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
        refused = cifarctl(*ONE_STEP, "--out", out)
        assert refused.code == 1
        assert "already holds a run" in refused.error
        assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
        finished = cifarctl("train-clf", "--out", out, "--resume")
        assert finished.code == 1
        assert "has finished" in finished.error
        assert cifarctl(*ONE_STEP, "--out", out, "--overwrite", "--no-tensorboard").code == 0
        assert (out / "model.safetensors").stat().st_mtime_ns != before["model.safetensors"]

    def test_without_out_runs_get_folders_of_their_own(
        self, cifarctl: Cifarctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = cifarctl(*ONE_STEP, "--json", "--no-tensorboard")
        assert Path(done.json["model"]).exists()
        assert done.json["run"].startswith("runs/train-clf-")

    def test_a_file_in_the_folders_place(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("precious")
        done = cifarctl(*ONE_STEP, "--out", tmp_path / "file")
        assert done.code == 1
        assert "a file, not a folder" in done.error
        assert cifarctl(*ONE_STEP, "--out", tmp_path / "file" / "run").code == 1
        assert (tmp_path / "file").read_text() == "precious"

    @pytest.mark.needs("/proc")
    def test_a_folder_that_cannot_be_written(self, cifarctl: Cifarctl) -> None:
        done = cifarctl(*ONE_STEP, "--out", "/proc/run")  # where root may not write either
        assert done.code == 1
        assert "cannot be written" in done.error


@pytest.mark.needs("POSIX")
class TestResume:
    @pytest.mark.parametrize(
        ("arguments", "number"),
        [
            pytest.param(CLASSIFIER, signal.SIGINT, marks=pytest.mark.thorough),
            (("train-clf", "--data", "synthetic", "--arch", "mlp", "--epochs", 2), signal.SIGTERM),
            (("train-clf", "--data", "synthetic", "--arch", "mlp", "--epochs", 2), getattr(signal, "SIGHUP", 1)),
        ],
        ids=["airbench", "adamw and dropout", "a closed terminal"],  # muon with averaged weights: tests/faults
    )
    def test_an_interrupted_run_ends_with_the_same_bits(
        self, cifarctl: Cifarctl, tmp_path: Path, arguments: tuple[object, ...], number: int
    ) -> None:
        whole, broken = tmp_path / "whole", tmp_path / "broken run"
        assert cifarctl(*arguments, "--out", whole).code == 0
        process = start(*arguments, "--out", broken)
        wait_for_line(process, "epoch 1/2")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert f"error: {signal.Signals(number).name} after step" in err
        resume = f"cifarctl {arguments[0]} --out '{broken}' --resume"
        assert f"hint: go on with: {resume}" in err
        assert (broken / "checkpoint.safetensors").exists()

        assert subprocess.run(resume.replace("cifarctl", command(), 1), shell=True, check=False).returncode == 0
        assert model_bytes(broken) == model_bytes(whole)
        assert not (broken / "checkpoint.safetensors").exists()
        histories = [
            [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")} for line in lines]
            for lines in ((run / "metrics.jsonl").read_text().splitlines() for run in (whole, broken))
        ]
        assert histories[0] == histories[1]

    def test_a_signal_that_was_ignored_at_the_start_is_ignored(self, tmp_path: Path) -> None:
        ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
        try:
            process = start(*MLP, "--out", tmp_path / "run")  # as by nohup, and in the background of a shell
        finally:
            for number, handler in ignored.items():
                signal.signal(number, handler)
        wait_for_line(process, "epoch 1/2")
        for number in ignored:
            process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 0

    def test_options_that_contradict_the_run_are_refused(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        process = start(*MLP, "--out", tmp_path / "run")
        wait_for_line(process, "epoch 1/2")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        refused = cifarctl(*MLP, "--out", tmp_path / "run")
        assert refused.code == 1
        assert "already holds an unfinished run" in refused.error
        for option, value, stored in (("--epochs", 5, 2), ("--seed", 1, 0), ("--data", "cifar10", "synthetic")):
            done = cifarctl("train-clf", "--out", tmp_path / "run", "--resume", option, value)
            assert done.code == 2
            assert f"{option}: the run was started with {stored}" in done.error
        other = cifarctl("train-ae", "--out", tmp_path / "run", "--resume")
        assert other.code == 2
        assert "trains a classifier" in other.error

    def test_nothing_to_resume(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        assert "holds no run to resume" in cifarctl("train-clf", "--resume", "--out", tmp_path).error
        nameless = cifarctl("train-clf", "--resume")
        assert nameless.code == 2
        assert "--out" in nameless.err

    @pytest.mark.parametrize("compiled", [False, True])
    def test_a_run_of_a_version_that_had_compile_goes_on_without(
        self, cifarctl: Cifarctl, tmp_path: Path, compiled: bool
    ) -> None:
        process = start(*MLP, "--out", tmp_path / "run")
        wait_for_line(process, "epoch 1/2")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        path = tmp_path / "run" / "config.json"
        config = json.loads(path.read_text())
        config["options"]["compile"] = compiled
        path.write_text(json.dumps(config))
        done = cifarctl("train-clf", "--out", tmp_path / "run", "--resume")
        assert done.code == 0, done.err
        assert ("was started with --compile" in done.err) == compiled
        assert "compile" not in json.loads(path.read_text())["options"]

    def test_a_damaged_checkpoint_is_one_line(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        process = start(*MLP, "--out", tmp_path / "run")
        wait_for_line(process, "epoch 1/2")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        for checkpoint in (tmp_path / "run").glob("*checkpoint.safetensors"):
            checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
        done = cifarctl("train-clf", "--out", tmp_path / "run", "--resume")
        assert done.code == 1
        assert "cannot resume from it" in done.error


class TestSpeech:
    def test_without_a_terminal_there_is_one_plain_line_an_epoch(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        done = cifarctl(*AUTOENCODER, "--out", tmp_path / "run", "--json")
        assert "\x1b" not in done.err + done.out
        assert "\r" not in done.err
        assert [line[:9] for line in done.err.splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
        assert done.json["test"]["latent_floats"] == 256

    @pytest.mark.needs("POSIX")
    @pytest.mark.parametrize(
        ("environment", "drawn"),
        [
            ({}, True),
            pytest.param({"NO_COLOR": "1"}, False, marks=pytest.mark.thorough),
            pytest.param({"TERM": "dumb"}, False, marks=pytest.mark.thorough),
        ],
    )
    def test_a_terminal_gets_a_bar_unless_it_asks_for_none(
        self, tmp_path: Path, environment: dict[str, str], drawn: bool
    ) -> None:
        done = on_a_terminal(*ONE_STEP, "--out", tmp_path / "run", env=environment)
        assert done.code == 0
        assert ("\x1b" in done.err) == drawn
        assert "epoch 1/1" in done.err
        assert "accuracy" in done.out
        assert "\x1b" not in done.out

    def test_quiet_says_nothing(self, installed: Cifarctl, tmp_path: Path) -> None:
        done = installed(*ONE_STEP, "--out", tmp_path / "run", "--quiet", "--json")
        assert done.code == 0
        assert done.err == ""

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("--epochs", 0), "--epochs"),
            (("--batch-size", 0), "--batch-size"),
            (("--arch", "banana"), "--arch banana"),
            (("--arch", "resconv"), "--arch resconv"),
            (("--finetune",), "--finetune"),
            (("--val-size", 10_000), "--val-size 10000"),
            (("--device", "toaster"), "toaster"),
            (("--precision", "fp16"), "--precision fp16"),
            (("--recipe", "slow"), "--recipe"),
            (("--recipe", "best", "--arch", "mlp"), "--recipe best"),
            (("--teacher", "classifier", "--encoder", "autoencoder"), "--teacher"),
            (("--set", "banana=1"), "there is no banana, only: epochs, "),
            (("--set", "jitter"), "not FIELD=VALUE"),
            (("--set", "optimizer=sgd"), "optimizer is 'sgd', not one of: airbench, muon, adamw"),
            (("--set", "schedule=step"), "schedule is 'step'"),
            (("--set", "flip=horizontal"), "flip is 'horizontal'"),
            (("--set", "crop=1.5"), "crop is 1.5, not a whole number"),
            (("--set", "jitter=NaN"), "jitter is nan, not a number"),
            (("--set", "cutmix=2"), "cutmix is 2, not from 0 to 1"),
            (("--set", "mixup=0.7", "--set", "cutmix=0.5"), "more than 1 together"),
            (("--set", "epochs=2", "--epochs", 3), "--epochs is given too"),
            (("--set", "model=3"), "model.NAME"),
            (("--set", "image_sizes=24"), "image_sizes is 24"),
            (("--set", 'trained_until={"banana":0.5}'), "trained_until names banana"),
            (("--set", "thaw=0.5"), "no effect in this training: --set thaw"),
            (("--teacher", "classifier", "--label-smoothing", 0.1), "no effect in this training: --label-smoothing"),
            (
                ("--encoder", "autoencoder", "--arch", "mlp", "--set", "cutmix=0.5"),
                "no effect in this training: --set cutmix",
            ),
            (("--set", "model.depht=3"), "airbench has no argument depht, only: widths, depth, "),
            (("--set", "model.classes=3"), "no argument classes"),
            (("--set", "model.widths=24,32"), "widths has 2 values"),
        ],
    )
    def test_wrong_usage_is_one_line_and_exit_2(
        self, cifarctl: Cifarctl, tmp_path: Path, arguments: tuple[object, ...], says: str
    ) -> None:
        done = cifarctl("train-clf", "--data", "synthetic", "--out", tmp_path / "run", *arguments)
        assert done.code == 2
        assert says in done.error
        assert not (tmp_path / "run").exists()

    def test_every_value_of_a_recipe_can_be_set_and_the_command_says_so(
        self, cifarctl: Cifarctl, tmp_path: Path
    ) -> None:
        few = ("--data", "synthetic", "--limit", 100, "--val-size", 20, "--epochs", 1, "--batch-size", 50)
        values = (
            "--set",
            "model.widths=24,24,32",
            "--set",
            "flip=random",
            "--set",
            "cutout=8",
            "--set",
            "image_sizes=[[0.5,16]]",
        )
        assert cifarctl("train-clf", *few, *values, "--out", tmp_path / "a").code == 0
        recipe = json.loads((tmp_path / "a" / "config.json").read_text())["recipe"]
        assert (recipe["flip"], recipe["cutout"], recipe["image_sizes"]) == ("random", 8, [[0.5, 16]])
        info = weights.read_info(tmp_path / "a" / "model.safetensors")
        assert (info.config["widths"], info.config["depth"]) == ([24, 24, 32], [2, 3, 3])
        again = shlex.split(info.training["command"])[1:]
        assert cifarctl(*again, "--out", tmp_path / "b").code == 0
        assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")

        (tmp_path / "a" / "model.safetensors").unlink()  # as if it had not finished
        other = cifarctl("train-clf", "--out", tmp_path / "a", "--resume", "--set", "cutout=9")
        assert other.code == 2
        assert "--set cutout: the run was started with 8" in other.error

    @pytest.mark.thorough
    def test_the_best_recipe_builds_the_larger_model(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        arguments = ("--recipe", "best", "--epochs", 1, "--batch-size", 50, "--limit", 50, "--val-size", 20)
        done = cifarctl("train-clf", "--data", "synthetic", "--out", tmp_path / "run", *arguments)
        assert done.code == 0, done.err
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert config["recipe"]["epochs"] == 1
        assert config["recipe"]["cutout"] == recipes.RECIPES["airbench"]["best"].cutout
        info = weights.read_info(tmp_path / "run" / "model.safetensors")
        assert {**info.config, "widths": tuple(info.config["widths"])} == {
            "classes": 10,
            **recipes.RECIPES["airbench"]["best"].model,
        }
        assert cifarctl("evaluate", "-m", tmp_path / "run", "--quiet").code == 0

    def test_an_impossible_latent_dim_says_what_is_possible(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        done = cifarctl("train-ae", "--arch", "conv2", "--latent-dim", 100, "--out", tmp_path / "run")
        assert done.code == 2
        assert "a multiple of 64" in done.error

    @pytest.mark.parametrize("data", ["none", "one-class", "empty"])
    def test_a_folder_that_is_no_data_set(self, cifarctl: Cifarctl, tmp_path: Path, data: str) -> None:
        (tmp_path / "one-class" / "train" / "a").mkdir(parents=True)
        (tmp_path / "empty").mkdir()
        done = cifarctl("train-clf", "--data", tmp_path / data, "--out", tmp_path / "run")
        assert done.code == 1
        assert data in done.error
        assert not (tmp_path / "run").exists()


def test_a_folder_of_images_trains_and_is_measured(cifarctl: Cifarctl, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = cifarctl("train-clf", "--data", image_folder, "--epochs", 3, "--batch-size", 24, "--out", out, "--json")
    assert done.code == 0
    assert done.json["test"]["accuracy"] > 0.8  # red against blue


@pytest.mark.parametrize("arch", [pytest.param("airbench", marks=pytest.mark.thorough), "mlp"])
def test_a_head_on_frozen_latents_leaves_the_encoder_alone(
    cifarctl: Cifarctl, autoencoder_run: Path, tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in (recipes.FROZEN_ENCODER, recipes.FINE_TUNED_ENCODER):  # the same with a net that learns in seconds
        monkeypatch.setitem(table, "airbench", replace(table["airbench"], model={"widths": (24, 32, 32)}))
    arguments = ("train-clf", *DATA, "--encoder", autoencoder_run, "--arch", arch, "--batch-size", 50)
    frozen = cifarctl(*arguments, "--limit", 1000, "--epochs", 20, "--out", tmp_path / "frozen", "--json")
    assert frozen.code == 0, frozen.err
    assert frozen.err.count("Encoding 1,000 images") == 1  # minutes where there are 50,000
    assert frozen.json["arch"] == arch
    assert frozen.json["test"]["accuracy"] > 0.3
    encoder = load_file(autoencoder_run / "model.safetensors")
    head = load_file(tmp_path / "frozen" / "model.safetensors")
    shared = [name for name in head if name.startswith("encoder.")]
    assert {name.removeprefix("encoder.") for name in shared} == encoder.keys()
    for name in shared:
        assert torch.equal(head[name], encoder[name.removeprefix("encoder.")])

    few = ("--limit", 500, "--epochs", 1)  # of its ten steps, the last thaws
    tuned = cifarctl(*arguments, *few, "--finetune", "--out", tmp_path / "tuned", "--json")
    assert tuned.code == 0
    moved = load_file(tmp_path / "tuned" / "model.safetensors")
    assert not torch.equal(moved["encoder.encoder.0.weight"], head["encoder.encoder.0.weight"])


def test_a_classifier_learns_from_another_and_from_no_third(
    cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    steps = (*ONE_STEP, "--batch-size", 50)
    assert cifarctl(*steps, "--teacher", classifier_run, "--out", out).code == 0
    assert cifarctl(*steps, "--out", tmp_path / "alone").code == 0
    assert model_bytes(out) != model_bytes(tmp_path / "alone")
    info = weights.read_info(out / "model.safetensors")
    assert f"--teacher {classifier_run.absolute()}" in info.training["command"]
    (out / "model.safetensors").unlink()  # as if it had not finished
    other = cifarctl("train-clf", "--out", out, "--resume", "--teacher", tmp_path / "alone")
    assert other.code == 1
    assert "not the classifier that the run was started with" in other.err


@pytest.mark.parametrize(
    ("teacher", "says"), [("autoencoder", "an autoencoder"), ("classifier", "classes of other data")]
)
def test_a_teacher_that_cannot_teach_is_refused_before_the_run(
    cifarctl: Cifarctl, tmp_path: Path, teacher: str, says: str
) -> None:
    done = cifarctl(*ONE_STEP, "--teacher", teacher, "--out", tmp_path / "run")
    assert done.code == 1
    assert says in done.error
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_a_classifiers_run_loads_no_compiler_and_no_torchvision(tmp_path: Path) -> None:
    runs = [[*map(str, ONE_STEP), "--out", str(tmp_path / arch), "--arch", arch] for arch in ("airbench", "mlp")]
    code = (
        f"import sys; from cifarctl.cli import run; codes = [run(arguments) for arguments in {runs}]; "
        "print(codes, sorted({'torch._dynamo', 'torchvision', 'torchmetrics'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[0, 0] []"


class TestLoop:
    """The parts of the loop where a mistake would be quiet."""

    recipe = Recipe(epochs=3, batch_size=50, optimizer="adamw", lr=1e-2, weight_decay=0.0)

    def data(self) -> tuple[Dataset, Dataset]:
        source = Source("synthetic")
        return source.load("train").take(torch.arange(200)), source.load("val").take(torch.arange(100))

    def run(self, recipe: Recipe, checkpoint: Path, validations: list[float] | None = None) -> list[object]:
        train, val = self.data()
        torch.manual_seed(0)
        model = models.build("mlp", hidden=[16])
        objective = Classification(model, recipe, seed=0)  # type: ignore[arg-type]
        if validations is not None:
            values = iter(validations)
            objective.validate = lambda *_: {"loss": 1.0, "accuracy": next(values)}  # type: ignore[method-assign]
        return list(fit(model, objective, train, val, recipe, seed=0, precision="fp32", checkpoint=checkpoint))

    def test_the_best_epoch_is_kept_not_the_last(self, tmp_path: Path) -> None:
        events = self.run(self.recipe, tmp_path / "c.safetensors", validations=[0.2, 0.9, 0.5])
        epochs = [event for event in events if isinstance(event, EpochDone)]
        fitted = events[-1]
        assert isinstance(fitted, Fitted)
        assert [epoch.is_best for epoch in epochs] == [True, True, False]
        assert fitted.best_epoch == 2

    def test_a_batch_that_processes_cannot_share_is_refused_before_any_image_is_encoded(self, tmp_path: Path) -> None:
        train, val = self.data()
        model = models.build("mlp", hidden=[16])
        objective = Classification(model, self.recipe, seed=0)  # type: ignore[arg-type]
        objective.encodes_first = True
        events = fit(
            model,
            objective,
            train,
            val,
            self.recipe,
            seed=0,
            precision="fp32",
            checkpoint=tmp_path / "c",
            ranks=Ranks(0, 3),
        )
        with pytest.raises(UsageError, match="50: 3 processes cannot share it equally"):
            next(events)

    def test_a_loss_that_is_not_finite_stops_the_run(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="no longer finite at step"):
            self.run(Recipe(epochs=3, batch_size=50, optimizer="adamw", lr=1e38, weight_decay=0.0), tmp_path / "c")

    def test_an_average_of_few_steps_is_no_average_with_the_first_weights(self, tmp_path: Path) -> None:
        weights_after = []
        for decay in (0.0, 0.9999):
            *_, fitted = self.run(replace(self.recipe, ema=decay), tmp_path / f"{decay}.safetensors")
            assert isinstance(fitted, Fitted)
            weights_after.append(fitted.last["head.0.weight"])
        torch.manual_seed(0)
        first = models.build("mlp", hidden=[16]).get_parameter("head.0.weight").detach()
        last, averaged = weights_after
        assert 0 < (averaged - last).norm() < 0.5 * (averaged - first).norm()

    def test_a_teachers_answers_are_learnt_at_its_temperature(self) -> None:
        train, _ = self.data()
        teacher, model = (models.build("airbench", widths=(24, 24, 24)).eval() for _ in range(2))
        for each in (teacher, model):
            each.initialize(train.images)
        recipe = Recipe(1, 8, "airbench", 0.1, 0.0, label_smoothing=0.2, teacher_temperature=3.0)
        objective = Classification(model, recipe, 0, teacher=teacher)  # type: ignore[arg-type]
        x, targets = objective.augment(train.images[:8], train.labels[:8], torch.arange(8), 0, 0.0)
        answers = teacher.classify(x).detach() / 3  # type: ignore[operator]
        assert torch.allclose(targets, answers.softmax(1), atol=1e-5)
        learnt = model.train()(x) / 3
        expected = 9 * -(answers.softmax(1) * learnt.log_softmax(1)).sum(1).mean()
        assert objective.loss(x, targets).item() == pytest.approx(expected.item(), rel=1e-4)

    def test_a_run_is_reproducible_and_the_seed_matters(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            assert cifarctl(*ONE_STEP, "--seed", seed, "--out", tmp_path / name, "--no-tensorboard").code == 0
        assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")
        assert model_bytes(tmp_path / "a") != model_bytes(tmp_path / "c")

    def test_a_small_data_set_is_one_batch(self, tmp_path: Path) -> None:
        recipe = Recipe(epochs=1, batch_size=10_000, optimizer="adamw", lr=1e-3, weight_decay=0.0)
        assert len(self.run(recipe, tmp_path / "c.safetensors")) == 3

    def test_a_parameter_may_stay_as_it_is_after_a_part_of_the_steps(self, tmp_path: Path) -> None:
        train, val = self.data()
        config: dict[str, Any] = {"widths": (24, 24, 24), "whiten_bias": True}
        recipe = Recipe(4, 100, "airbench", 0.1, 0.0, trained_until={"whiten.bias": 0.5}, model=config)
        model = models.build("airbench", **config)
        objective = Classification(model, recipe, seed=0)  # type: ignore[arg-type]
        biases = [model.get_parameter("whiten.bias").detach().clone()]
        for event in fit(
            model,
            objective,
            train,
            val,
            recipe,
            seed=0,
            precision="fp32",
            checkpoint=tmp_path / "c.safetensors",
        ):
            if isinstance(event, StepDone):
                biases.append(model.get_parameter("whiten.bias").detach().clone())
        moved = [not torch.equal(one, other) for one, other in itertools.pairwise(biases)]
        assert moved == [True] * 4 + [False] * 4

    def test_images_are_small_in_the_first_part(self) -> None:
        train, _ = self.data()
        recipe = Recipe(1, 10, "airbench", 0.1, 0.0, image_sizes=((0.25, 16), (0.5, 24)))
        objective = Classification(models.build("airbench"), recipe, seed=0)  # type: ignore[arg-type]
        sides = [
            objective.augment(train.images[:10], train.labels[:10], torch.arange(10), 0, progress)[0].shape[-1]
            for progress in (0.0, 0.24, 0.25, 0.49, 0.5, 0.99)
        ]
        assert sides == [16, 16, 24, 24, 32, 32]

    def test_frozen_latents_are_encoded_once_in_several_views(self) -> None:
        train, _ = self.data()
        model = models.build("mlp", encoder={"model": "conv2", "config": {"latent_dim": 64}})
        objective = FrozenLatents(model, recipes.RECIPES["mlp"]["fast"], 0, "fp32")  # type: ignore[arg-type]
        inputs = objective.inputs(train.images)
        assert inputs.shape == (200, FrozenLatents.VIEWS, 64)
        plain = model.encoder.encode(train.images)  # type: ignore[union-attr, operator]
        assert torch.allclose(inputs[:, 0], plain, atol=1e-5)
        assert not torch.allclose(inputs[:, 2], plain, atol=1e-2)
        batch, labels = objective.augment(inputs[:10], train.labels[:10], torch.arange(10), 0, 0.0)
        assert torch.equal(labels, train.labels[:10])
        assert all((row == views).all(1).any() for row, views in zip(batch, inputs[:10], strict=True))

    def test_frozen_pictures_are_what_the_latents_say(self) -> None:
        train, _ = self.data()
        model = models.build("airbench", encoder={"model": "resconv", "config": {"latent_dim": 64, "width": 8}}).eval()
        model.encoder.initialize(train.images)  # type: ignore[union-attr, operator]
        objective = FrozenPictures(model, recipes.FROZEN_ENCODER["airbench"], 0, "fp32")  # type: ignore[arg-type]
        pictures = objective.inputs(train.images)
        assert (pictures.dtype, pictures.shape) == (torch.uint8, train.images.shape)
        exact = model.features(train.images)  # type: ignore[operator]
        assert (pictures.float() / 255 - exact).abs().max() < 0.6 / 255
        x, y = to_float(pictures[:4]), train.labels[:4]
        whole = objective.cross_entropy(model(train.images[:4]), y)
        assert objective.loss(x, y).item() == pytest.approx(whole.item(), rel=0.05)

    def test_an_autoencoder_thaws_where_the_recipe_says(self) -> None:
        train, _ = self.data()
        model = models.build("airbench", encoder={"model": "resconv", "config": {"latent_dim": 64, "width": 8}})
        model.encoder.initialize(train.images)  # type: ignore[union-attr, operator]
        model.encoder.requires_grad_()
        model.train()
        plain = replace(
            recipes.FINE_TUNED_ENCODER["airbench"], crop=0, cutout=0, affine=0.0, flip="none", image_sizes=()
        )
        objective = ThawingPictures(model, plain, 0, "fp32")  # type: ignore[arg-type]
        pictures, indices = objective.inputs(train.images), torch.arange(8)
        whole = Classification(model, plain, 0)  # type: ignore[arg-type]
        frozen, _ = objective.augment(pictures[:8], train.labels[:8], indices, 0, plain.thaw - 0.01)
        assert objective.validate(train, "fp32") == pytest.approx(whole.validate(train, "fp32"), rel=1e-4)
        thawed, _ = objective.augment(pictures[:8], train.labels[:8], indices, 0, plain.thaw)
        assert not frozen.requires_grad
        assert thawed.requires_grad
        assert (frozen - thawed).abs().max() < 0.6 / 255  # the same pictures, but for their whole levels

        optimizer = build_optimizer(model, plain)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        objective.loss(thawed, train.labels[:8]).backward()
        optimizer.step()
        components = before["encoder.components"]
        moved = torch.linalg.svdvals(model.encoder.components.detach() - components)  # type: ignore[union-attr, operator]
        assert 0 < moved.max() < 1.6 * plain.encoder_lr * (3072 / 64) ** 0.5
        assert not torch.equal(model.head.weight, before["head.weight"])  # type: ignore[union-attr, arg-type]
        # What was seen of the images while the autoencoder was frozen is forgotten.
        with torch.no_grad():
            model.encoder.mean.add_(0.5)  # type: ignore[union-attr, operator]
        assert objective.validate(train, "fp32") == pytest.approx(whole.validate(train, "fp32"), rel=1e-4)


@pytest.mark.needs("GPU")
class TestOnAGpu:
    GPU = torch.device("cuda")

    def fitted(self, checkpoint: Path, recipe: Recipe) -> tuple[Fitted, list[float]]:
        data = draw_synthetic(1000, seed=0).to(self.GPU)
        torch.manual_seed(0)
        model = models.build("airbench", widths=(24, 32, 32), whiten_bias=True).to(self.GPU)
        model.eval().initialize(data.images)
        objective = Classification(model, recipe, 0)  # type: ignore[arg-type]
        *events, fitted = fit(
            model,
            objective,
            data,
            data,
            recipe,
            seed=0,
            precision="bf16",
            checkpoint=checkpoint,
        )
        assert isinstance(fitted, Fitted)
        return fitted, [event.loss.item() for event in events if isinstance(event, StepDone)]

    @pytest.mark.parametrize("optimizer", ["airbench", "muon", "adamw"])
    def test_captured_steps_train_as_others_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Literal["airbench", "muon", "adamw"]
    ) -> None:
        recipe = replace(
            recipes.RECIPES["airbench"]["best"],
            optimizer=optimizer,
            lr=0.01,
            epochs=3,
            batch_size=100,
            affine=0.0,
            model={},
        )
        captured, losses = self.fitted(tmp_path / "captured.safetensors", recipe)

        def uncaptured(self: CapturedStep, indices: torch.Tensor, epoch: int, *_: object) -> torch.Tensor:
            return self._step(indices, torch.tensor(epoch, device=indices.device))

        monkeypatch.setattr(CapturedStep, "__call__", uncaptured)
        plain, plain_losses = self.fitted(tmp_path / "plain.safetensors", recipe)
        # A library may choose other kernels while a graph is recorded, and these sum up in another order.
        assert losses[:8] == pytest.approx(plain_losses[:8], rel=0.02)
        assert losses == pytest.approx(plain_losses, rel=0.2)
        assert len(set(losses)) == len(losses) == 30
        assert captured.history[-1]["learning_rate"] == plain.history[-1]["learning_rate"]

    def test_a_captured_step_sees_new_arguments_rates_and_random_numbers(self) -> None:
        rate = torch.zeros((), device=self.GPU)
        step = CapturedStep(lambda indices, epoch: indices.sum() + epoch + rate + torch.rand((), device=self.GPU))
        found, expected = [], []
        for i in range(16):
            rate.fill_(1000 * i)
            torch.manual_seed(i)
            found.append(step(torch.arange(i, i + 3, device=self.GPU), 100 * i, phase=i // 12, variant=i % 2).item())
            torch.manual_seed(i)
            expected.append(3 * i + 3 + 1100 * i + torch.rand((), device=self.GPU).item())
        assert found == pytest.approx(expected, rel=1e-6)


def test_rates_that_a_gpu_reads_move_as_far() -> None:
    moved = []
    for on_device in (False, True):
        torch.manual_seed(0)
        model = models.build("airbench", widths=(24, 24, 24))
        optimizer = build_optimizer(model, recipes.RECIPES["airbench"]["fast"])
        if on_device:
            keep_rates_on(torch.device("cpu"), optimizer)
        for factor in (1.0, 0.5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.rand(16, 3, 32, 32)), torch.arange(16) % 10).backward()
            set_learning_rate(optimizer, factor)
            optimizer.step()
        moved.append([parameter.detach().clone() for parameter in model.parameters()])
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_run_turns_where_its_steps_change() -> None:
    assert recipes.RECIPES["airbench"]["fast"].phase_boundaries == [0.0, 1 / 3, 0.6]
    assert recipes.FINE_TUNED_ENCODER["airbench"].phase_boundaries == [0.5, 0.9]


def test_a_calibration_undoes_what_was_done_to_the_logits() -> None:
    torch.manual_seed(0)
    honest = torch.randn(20_000, 10) * 2
    labels = torch.distributions.Categorical(logits=honest).sample()
    for factor in (0.25, 1.0, 3.0):
        for smoothing in (0.0, 0.1, 0.2):
            smoothed = ((1 - smoothing) * honest.softmax(1) + smoothing / 10).log()
            found = fit_calibration(smoothed * factor, labels)
            assert found == pytest.approx((factor, smoothing), rel=0.05, abs=0.02)
            scaled = calibrated(smoothed * factor, *map(torch.tensor, found)).softmax(1)
            assert (scaled - honest.softmax(1)).abs().mean() < 5e-3


@pytest.mark.parametrize("count", [2, 9, 50])
def test_a_few_images_that_are_all_right_make_no_answer_certain(count: int) -> None:
    labels = torch.arange(count) % 2
    logits = 4 * torch.nn.functional.one_hot(labels, 2) + torch.randn(
        count, 2, generator=torch.Generator().manual_seed(0)
    )
    found = calibrated(logits, *map(torch.tensor, fit_calibration(logits, labels))).softmax(1)
    # The rule of succession: of N that were right, the next one is with (N + 1) / (N + 2).
    assert found.amax(1).mean().item() == pytest.approx((count + 1) / (count + 2), abs=0.03)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_calibrated_logits_are_finite_and_in_the_same_order(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.cat((torch.randn(500, 10), 500 * torch.randn(500, 10)))  # probabilities down to zero
    found = calibrated(logits, torch.tensor(1.5), torch.tensor(smoothing))
    assert found.isfinite().all()
    assert torch.equal(found.argsort(1), logits.argsort(1))


def test_numbers_that_a_processor_traps_on_are_zero_in_every_thread() -> None:
    code = """
import torch
from cifarctl.hardware import select_device
print(torch.full((4,), 1e-30).mul(1e-10).count_nonzero().item())
torch.set_num_threads(4)
select_device("cpu")
print(torch.full((1_000_000,), 1e-30).mul(1e-10).count_nonzero().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.split() == ["4", "0"]


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_a_gpu_that_emulates_bf16_trains_in_fp16(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, minor = capability
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=major, minor=minor))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda *_: True, raising=False)  # a T4
    assert hardware.select_precision("auto", torch.device("cuda")) == precision


class TestOptimizers:
    @pytest.mark.parametrize("has_bf16", [True, False])
    def test_newton_schulz_brings_singular_values_near_one(
        self, has_bf16: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hardware, "cpu_bf16", lambda: "avx512" if has_bf16 else "emulated")
        torch.manual_seed(0)
        for shape in ((2, 24, 216), (1, 64, 24)):
            found = newton_schulz(torch.randn(shape), steps=5)
            assert found.dtype == (torch.bfloat16 if has_bf16 else torch.float32)
            values = torch.linalg.svdvals(found.float())
            assert values.min() > 0.5
            assert values.max() < 1.5

    @pytest.mark.parametrize("shape", [(2, 24, 216), (1, 64, 24)])
    def test_newton_schulz_in_fp32_is_the_quintic_step_by_step(
        self, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hardware, "cpu_bf16", lambda: "emulated")
        torch.manual_seed(0)
        matrices = torch.randn(shape)
        x = matrices.double() / matrices.double().norm(dim=(1, 2), keepdim=True)
        for _ in range(3):
            gram = x @ x.mT
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        assert torch.allclose(newton_schulz(matrices), x.float(), rtol=0, atol=1e-5)

    def test_the_rate_warms_up_and_decays_to_zero(self) -> None:
        recipe = Recipe(1, 1, "adamw", 1.0, 0.0, warmup=0.2, schedule="cosine")
        factors = [learning_rate_factor(recipe, progress / 100) for progress in range(101)]
        assert factors[0] == 0
        assert max(factors) == factors[20] == 1
        assert factors[60] == pytest.approx(0.5)
        assert factors[100] == pytest.approx(0, abs=1e-12)
        linear = Recipe(1, 1, "airbench", 1.0, 0.0)
        assert [learning_rate_factor(linear, p) for p in (0, 0.25, 1)] == [1, 0.75, 0]

    def test_every_step_of_muon_has_the_same_size(self) -> None:
        torch.manual_seed(0)
        filters, bias = torch.nn.Parameter(torch.randn(16, 4, 3, 3)), torch.nn.Parameter(torch.randn(16))
        optimizer = Muon([filters, bias], lr=0.5)
        for size in (1e-4, 1.0, 1e4):
            before = filters.detach().clone(), bias.detach().clone()
            filters.grad, bias.grad = size * torch.randn(16, 4, 3, 3), size * torch.randn(16)
            optimizer.state.clear()
            optimizer.step()
            singular = torch.linalg.svdvals((filters - before[0]).flatten(1)) / 0.5
            assert 0.4 < singular.min() <= singular.max() < 1.6
            assert (bias - before[1]).square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-3)

    def test_airbench_keeps_the_norm_of_filters_and_moves_everything_else_by_sgd(self) -> None:
        torch.manual_seed(0)
        model = models.build("airbench", widths=(24, 24, 24))
        optimizer = build_optimizer(model, recipes.RECIPES["airbench"]["fast"])
        images = torch.rand(16, 3, 32, 32)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        torch.nn.functional.cross_entropy(model(images), torch.arange(16) % 10).backward()
        set_learning_rate(optimizer, 0.0)
        optimizer.step()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4 and parameter.requires_grad:
                assert parameter.norm().item() == pytest.approx(math.sqrt(len(parameter)), rel=1e-4)
            else:
                assert torch.equal(parameter, before[name])
