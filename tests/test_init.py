"""Training starts from trained weights: what is taken, what is said, what is refused, and that it pays."""

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import cifarctl
from cifarctl import models, weights
from cifarctl.data import Arrays
from cifarctl.data.synthetic import CLASSES, draw_synthetic
from cifarctl.errors import Interrupted, RunDirError, UsageError
from cifarctl.files import PRETRAINED
from cifarctl.training.loop import EpochDone
from cifarctl.training.recipes import TRAINED_WEIGHTS, recipe_for
from cifarctl.training.session import Event, Started

from support import Cifarctl, model_bytes

FIRST, OTHERS = CLASSES[:7], CLASSES[7:]
TINY: dict[str, Any] = {"model": {"widths": [24, 24, 24], "depth": 1}}
QUICK: dict[str, Any] = {"tensorboard": False, "device": "cpu", "precision": "fp32"}
ONE_STEP: dict[str, Any] = {**QUICK, "epochs": 1, "epoch_steps": 1}


def drawn(classes: Sequence[str], count: int, seed: int = 0, names: Sequence[str] | None = None) -> Arrays:
    """`count` drawn images of each of the synthetic `classes`, and 20 of each for the test; labels in this order."""
    train, test = (part(classes, n, seed + more) for n, more in ((count, 0), (20, 1000)))
    return Arrays(train, test=test, classes=names or classes)


def part(classes: Sequence[str], count: int, seed: int) -> tuple[Tensor, Tensor]:
    every = draw_synthetic(10 * count, seed)  # as many of each class
    images = [every.images[every.labels == CLASSES.index(name)] for name in classes]
    return torch.cat(images), torch.arange(len(classes)).repeat_interleave(count)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier of the first seven classes. No test may change it."""
    out = tmp_path_factory.mktemp("init") / "seven"
    cifarctl.train_classifier(out, data=drawn(FIRST, 200), val_size=140, epochs=8, batch_size=64, **TINY, **QUICK)
    return out


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small autoencoder. No test may change it."""
    out = tmp_path_factory.mktemp("init") / "ae"
    cifarctl.train_autoencoder(out, data=drawn(FIRST, 20), arch="conv2", latent_dim=64, epochs=1, **QUICK)
    return out


def started(out: Path, data: Arrays, init: Path, **arguments: Any) -> tuple[dict[str, Tensor], str]:
    """Train by one step that changes no weight: the weights, and what was said at the start."""
    said: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Started):
            said.extend(event.remarks)

    arguments = {**ONE_STEP, "lr": 0.0, "weight_decay": 0.0, **arguments}
    run = cifarctl.train_classifier(out, data=data, init=init, on_event=note, **arguments)
    return load_file(run.path / "model.safetensors"), "\n".join(said)


class TestTheHead:
    def test_is_taken_for_the_same_classes(self, trained: Path, tmp_path: Path) -> None:
        found, said = started(tmp_path / "run", drawn(FIRST, 10, seed=1), trained)
        before = load_file(trained / "model.safetensors")
        for name in ("head.weight", "whiten.weight", "groups.0.convs.0.weight", "groups.2.norms.0.bias"):
            assert found[name].equal(before[name]), name
        assert f"weights of {trained}: 23 of 23 tensors taken" in said
        assert "head" not in said

    def test_follows_the_names_if_their_order_differs_or_some_are_left_out(self, trained: Path, tmp_path: Path) -> None:
        classes = (FIRST[3], FIRST[1], FIRST[5])
        found, said = started(tmp_path / "run", drawn(classes, 10, seed=1), trained)
        assert found["head.weight"].equal(load_file(trained / "model.safetensors")["head.weight"][[3, 1, 5]])
        assert "head: taken by the names of the classes: frame, ring, cross" in said

    @pytest.mark.parametrize(
        ("classes", "names", "says"),
        [
            (FIRST, (*FIRST[:6], "comb"), "only that model: bars; only your data: comb"),
            (OTHERS, None, "only that model: disc, ring,"),
            (FIRST[:3], ("0", "1", "2"), "only your data: 0, 1, 2"),
        ],
    )
    def test_is_new_for_other_classes_however_many(
        self, trained: Path, tmp_path: Path, classes: tuple[str, ...], names: tuple[str, ...] | None, says: str
    ) -> None:
        found, said = started(tmp_path / "run", drawn(classes, 10, seed=1, names=names), trained)
        before = load_file(trained / "model.safetensors")
        assert found["groups.0.convs.0.weight"].equal(before["groups.0.convs.0.weight"])
        assert not (found["head.weight"][:, None] == before["head.weight"]).all(2).any()
        assert "22 of 23 tensors taken" in said
        assert "head: new, fitted to the training images, since it is for other classes (" in said
        assert says in said

    def test_of_numbers_is_not_taken_for_fewer_numbers(self, trained: Path, tmp_path: Path) -> None:
        numbered = tmp_path / "numbered.safetensors"
        info = weights.read_info(trained / "model.safetensors")
        names = tuple(map(str, range(7)))
        weights.save(numbered, load_file(trained / "model.safetensors"), replaced(info, classes=names))
        _, said = started(tmp_path / "fewer", drawn(FIRST[:3], 10, names=names[:3]), numbered)
        assert "head: new" in said
        _, said = started(tmp_path / "same", drawn(FIRST, 10, names=names), numbered)
        assert "23 of 23 tensors taken" in said

    def test_that_is_new_is_fitted_before_training(self, trained: Path, tmp_path: Path) -> None:
        data = drawn(OTHERS, 100, seed=1)
        run = cifarctl.train_classifier(tmp_path / "run", data=data, init=trained, val_size=90, **ONE_STEP)
        assert run.history[0]["epoch"] == 0
        assert run.history[0]["val_accuracy"] > 0.6  # a head with random weights: 0.33


def replaced(info: weights.ModelInfo, **changes: Any) -> weights.ModelInfo:
    from dataclasses import replace

    return replace(info, **changes)


class TestTheModel:
    def test_layers_of_another_shape_are_new_and_named(self, trained: Path, tmp_path: Path) -> None:
        wider = {"model": {"widths": [24, 24, 32]}}
        found, said = started(tmp_path / "run", drawn(FIRST, 10, seed=1), trained, **wider)
        assert weights.read_info(tmp_path / "run" / "model.safetensors").config["widths"] == [24, 24, 32]
        assert found["groups.2.convs.0.weight"].shape[0] == 32
        assert "new, since their shapes do not fit: groups.2.convs.0.weight," in said
        assert "head: new, since its input has another width" in said

    def test_its_file_names_what_it_was_started_from(self, trained: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        started(out, drawn(FIRST, 10, seed=1), trained)
        digest = weights.read_info(out / "model.safetensors").training["init"]
        assert digest["file"] == str(trained)
        assert len(digest["sha256"]) == 64
        config = json.loads((out / "config.json").read_text())
        assert config["init"] == digest
        assert config["init_sha256"] == digest["sha256"]

    def test_an_autoencoder_starts_from_one(self, autoencoder: Path, tmp_path: Path) -> None:
        said: list[str] = []

        def note(event: Event) -> None:
            if isinstance(event, Started):
                said.extend(event.remarks)

        data = drawn(FIRST, 20)
        run = cifarctl.train_autoencoder(tmp_path / "run", data=data, init=autoencoder, on_event=note, **ONE_STEP)
        assert (run.summary["arch"], run.load().module.latent_dim) == ("conv2", 64)
        last = cifarctl.evaluate(cifarctl.load_autoencoder(autoencoder), data=drawn(FIRST, 20), split="val")
        assert run.history[0]["val_psnr"] == pytest.approx(last.metrics["psnr"], abs=0.01)
        assert said == [f"weights of {autoencoder}: 10 of 10 tensors taken"]


class TestTheSplit:
    def test_another_one_of_the_same_data_is_remarked(self, trained: Path, tmp_path: Path) -> None:
        data = drawn(FIRST, 200)
        _, said = started(tmp_path / "same", data, trained, val_size=140, limit=50)
        assert "validation" not in said
        _, said = started(tmp_path / "other", data, trained, val_size=140, seed=1, limit=50)
        assert "with seed 0 and 140 validation images, as then, they were not" in said


class TestBadInput:
    @pytest.fixture
    def on_latents(self, autoencoder: Path, tmp_path: Path) -> Path:
        info = weights.read_info(autoencoder / "model.safetensors")
        config: dict[str, Any] = {
            "classes": 2,
            "hidden": [8],
            "encoder": {"model": info.model, "config": info.config},
        }
        path = tmp_path / "on-latents.safetensors"
        tensors = models.build("mlp", **config).state_dict()
        weights.save(path, tensors, weights.ModelInfo("classifier", "mlp", config, ("a", "b")))
        return path

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (("train-clf", "--init", "autoencoder"), 1, "holds an autoencoder, but classifier weights are needed"),
            (("train-ae", "--init", "classifier"), 1, "holds a classifier, but autoencoder weights are needed"),
            (("train-clf", "--init", "classifier", "--arch", "mlp"), 2, "--arch mlp: "),
            (("train-clf", "--init", "missing"), 1, "missing: no such file"),
            (("train-clf", "--init", "classifier", "--encoder", "autoencoder"), 2, "--init: gives all layers"),
        ],
    )
    def test_is_refused_before_the_folder_is_made(
        self, cifarctl: Cifarctl, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
    ) -> None:
        done = cifarctl(*arguments, "--data", "synthetic", "--out", tmp_path / "run")
        assert done.code == code
        assert says in done.error
        assert not (tmp_path / "run").exists()

    def test_a_damaged_file(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes((PRETRAINED / "classifier.safetensors").read_bytes()[:100_000])
        done = cifarctl("train-clf", "--data", "synthetic", "--init", damaged, "--out", tmp_path / "run")
        assert done.code == 1
        assert "damaged.safetensors: not a safetensors file" in done.error
        assert not (tmp_path / "run").exists()

    def test_a_classifier_on_an_encoder(self, cifarctl: Cifarctl, on_latents: Path, tmp_path: Path) -> None:
        done = cifarctl("train-clf", "--data", "synthetic", "--init", on_latents, "--out", tmp_path / "run")
        assert done.code == 1
        assert "a classifier of an autoencoder's output, from which no training can start" in done.error
        assert "hint: train one anew with --encoder, which takes that autoencoder" in done.err


def terminated(event: Event) -> None:
    """Send SIGTERM after the first epoch."""
    if isinstance(event, EpochDone) and event.history[-1]["epoch"] == 1:
        signal.raise_signal(signal.SIGTERM)


def three_epochs(out: Path, **arguments: Any) -> Path:
    run = cifarctl.train_classifier(out, data=drawn(OTHERS, 20), **QUICK, epochs=3, epoch_steps=2, **arguments)
    return run.path


class TestResume:
    @pytest.fixture
    def source(self, trained: Path, tmp_path: Path) -> Path:
        """A copy of `trained`."""
        return Path(shutil.copytree(trained, tmp_path / "source"))

    @pytest.fixture
    def stopped(self, source: Path, tmp_path: Path) -> Path:
        """A run from `source`, terminated after its first epoch."""
        with pytest.raises(Interrupted):
            three_epochs(tmp_path / "stopped", init=source, on_event=terminated)
        return tmp_path / "stopped"

    def test_ends_with_the_same_bits_even_if_the_weights_have_gone(
        self, stopped: Path, source: Path, trained: Path, tmp_path: Path
    ) -> None:
        whole = three_epochs(tmp_path / "whole", init=trained)
        shutil.rmtree(source)
        assert model_bytes(three_epochs(stopped, init=source, resume=True)) == model_bytes(whole)

    def test_may_find_the_weights_elsewhere(self, stopped: Path, trained: Path) -> None:
        three_epochs(stopped, init=trained, resume=True)
        assert weights.read_info(stopped / "model.safetensors").training["init"]["file"] == str(trained)

    def test_from_other_weights_is_refused(self, stopped: Path) -> None:
        with pytest.raises(RunDirError, match="not the classifier that the run was started with"):
            three_epochs(stopped, init=PRETRAINED / "classifier.safetensors", resume=True)
        with pytest.raises(UsageError, match="`init`: the run was started with"):
            three_epochs(stopped, resume=True)

    def test_of_a_run_that_was_started_from_new_weights_is_refused(self, trained: Path, tmp_path: Path) -> None:
        with pytest.raises(Interrupted):
            three_epochs(tmp_path / "new", on_event=terminated, **TINY)
        with pytest.raises(UsageError, match="`init`: the run was started without it"):
            three_epochs(tmp_path / "new", init=trained, resume=True, **TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR/{train,test}/CLASS/*.png of two classes."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 20), ("test", 5)):
        images, labels = part(FIRST[:2], count, seed=len(split))
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            path = root / split / FIRST[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


class TestAFinishedRun:
    def test_is_trained_further_as_the_error_says(self, cifarctl: Cifarctl, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        few = ("--epochs", 2, "--set", "model.widths=24,24,24", "--val-size", 4, "--seed", 3, "--no-tensorboard")
        done = cifarctl("train-clf", "--data", folder, *few, "--out", out)
        assert done.code == 0, done.err
        done = cifarctl("train-clf", "--resume", "--epochs", 1, "--out", out)
        assert done.code == 1
        assert "this run has finished" in done.error
        hint = next(line for line in done.err.splitlines() if line.startswith("hint: "))
        line = hint.partition("to train it further: cifarctl ")[2].partition(";")[0].split()
        assert line[:1] == ["train-clf"]
        assert {"--init", "--epochs", "--seed", "--val-size"} <= set(line)
        done = cifarctl(*line, "--json", "--no-tensorboard")
        assert done.code == 0, done.err
        assert done.json["epochs"] == 1
        assert "tensors taken" in done.err
        assert "held out" not in done.err  # the split is the same

    def test_says_so_in_python_too(self, trained: Path) -> None:
        with pytest.raises(RunDirError, match="this run has finished") as raised:
            cifarctl.train_classifier(trained, data=drawn(FIRST, 200), val_size=140, resume=True, **TINY, **QUICK)
        assert "`init` takes it" in str(raised.value.hint)


class TestTheRecipe:
    def test_every_architecture_has_a_gentler_one(self) -> None:
        for kind in ("autoencoder", "classifier"):
            for name in models.names(kind):
                anew, gentle = recipe_for(name, "fast"), recipe_for(name, "fast", "trained")
                assert gentle.epoch_steps > 1
                assert gentle.lr < anew.lr or gentle.optimizer != anew.optimizer
        assert TRAINED_WEIGHTS.keys() <= models.REGISTRY.keys()

    def test_one_for_new_weights_is_remarked_on(self, trained: Path, tmp_path: Path) -> None:
        arguments = {**QUICK, "epochs": 1, "recipe": "best"}
        events: list[Event] = []
        cifarctl.train_classifier(
            tmp_path / "run", data=drawn(OTHERS, 20), init=trained, on_event=events.append, **arguments
        )
        (started,) = [event for event in events if isinstance(event, Started)]
        assert "recipe best: for new weights; fast is gentler with trained ones" in started.remarks

    def test_twenty_images_a_class_are_passed_many_times(self, trained: Path, tmp_path: Path) -> None:
        arguments = {**QUICK, "epochs": 2, "epoch_steps": 5}
        run = cifarctl.train_classifier(tmp_path / "run", data=drawn(OTHERS, 20), init=trained, **arguments)
        assert [record["step"] for record in run.history] == [0, 5, 10]
        assert run.summary["best_epoch"] == 2  # six validation images do not choose

    def test_it_beats_training_anew(self, trained: Path, tmp_path: Path) -> None:
        data = Arrays(part(OTHERS, 20, 5), test=part(OTHERS, 100, 6), classes=OTHERS)
        anew = cifarctl.train_classifier(tmp_path / "anew", data=data, **TINY, **QUICK)
        gained = cifarctl.train_classifier(tmp_path / "init", data=data, init=trained, **QUICK)
        assert gained.summary["test"]["accuracy"] > anew.summary["test"]["accuracy"] + 0.1


def test_images_that_the_weights_were_trained_on_are_no_new_test(
    cifarctl: Cifarctl, folder: Path, tmp_path: Path
) -> None:
    quick = ("--set", "model.widths=24,24,24", "--epochs", 1, "--no-tensorboard")
    done = cifarctl("train-clf", "--data", folder, *quick, "--out", tmp_path / "first")
    assert done.code == 0, done.err
    again = tmp_path / "again"
    shutil.copytree(folder / "train", again / "test")
    shutil.copytree(folder / "test", again / "train")
    done = cifarctl("train-clf", "--data", again, "--init", tmp_path / "first", *quick, "--out", tmp_path / "second")
    assert done.code == 0, done.err
    assert f"{tmp_path / 'first'} was trained on 36 of the 40 test images, so the test metrics are too good" in done.err
    assert "val metrics" not in done.err


def test_what_a_run_lacks_and_a_last_epoch_that_is_worse_are_said(
    cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path
) -> None:
    few = ("--data", "synthetic", "--limit", 100, "--val-size", 49, "--epochs", 1, "--no-tensorboard")
    done = cifarctl("train-clf", *few, "--init", classifier_run, "--lr", 10, "--out", tmp_path / "run")
    assert "No typicality score: it needs 50 validation images, and there are 49" in done.err
    assert "The last epoch was kept, which is worse on the validation images" in done.err
    assert "keep=best" in done.err
