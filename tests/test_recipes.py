"""The values that a training uses: one set per architecture and name, shown by --print-recipe, changed by --set."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarctl import models, weights
from cifarctl.models import classifiers
from cifarctl.models.base import Classifier
from cifarctl.training import recipes

from support import Cifarctl

SMALL = ("--data", "synthetic", "--limit", 120, "--val-size", 20, "--batch-size", 40, "--epochs", 2)


class Toy(Classifier):
    """What a contributor writes: a constructor and `classify`; its norm has a scale, as most nets have."""

    def __init__(self, classes: int = 10, width: int = 8, encoder: Any = None) -> None:
        super().__init__(classes, encoder)
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(width, classes)

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.net(features))
        return logits


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new architecture that has no recipes of its own."""
    monkeypatch.setattr(classifiers, "Toy", Toy, raising=False)
    monkeypatch.setitem(models.REGISTRY, "toy", models.ModelSpec("classifier", "classifiers", "Toy", "a toy"))
    return "toy"


class TestANewArchitecture:
    def test_it_trains_with_the_plain_recipe_and_is_used(self, cifarctl: Cifarctl, toy: str, tmp_path: Path) -> None:
        out = tmp_path / "run"
        done = cifarctl("train-clf", "--arch", toy, *SMALL, "--set", "model.width=16", "--out", out, "--json")
        assert done.code == 0, done.err
        assert done.json["arch"] == toy
        assert weights.read_info(out / "model.safetensors").config == {"width": 16, "classes": 10}
        assert cifarctl("evaluate", "-m", out, "--split", "val", "--json").json["n"] == 20
        recipe = json.loads((out / "config.json").read_text())["recipe"]
        assert (recipe["optimizer"], recipe["schedule"]) == ("adamw", "cosine")

    @pytest.mark.parametrize("finetune", [(), ("--finetune",)])
    def test_it_sees_reconstructions_of_an_autoencoder(
        self, cifarctl: Cifarctl, toy: str, autoencoder_run: Path, tmp_path: Path, finetune: tuple[str, ...]
    ) -> None:
        arguments = ("train-clf", "--arch", toy, *SMALL, "--epochs", 1, "--encoder", autoencoder_run, *finetune)
        assert cifarctl(*arguments, "--out", tmp_path / "run").code == 0

    def test_an_optimizer_without_a_rate_for_its_norms_is_refused(self, cifarctl: Cifarctl, toy: str) -> None:
        done = cifarctl("train-clf", "--arch", toy, "--set", "optimizer=airbench", "--out", "run")
        assert done.code == 2
        assert "airbench has no learning rate for net.1.weight" in done.error
        assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train-clf", "--recipe", "quick"), "airbench has no recipe quick, only: fast, best, max"),
        (("train-clf", "--arch", "mlp", "--recipe", "best"), "mlp has no recipe best, only: fast"),
        (("train-ae", "--recipe", "max"), "resconv has no recipe max, only: fast, best"),
        (("train-ae", "--arch", "conv2", "--recipe", "best"), "conv2 has no recipe best, only: fast"),
        (("train-clf", "--recipe", "best", "--encoder", "autoencoder", "--finetune"), "has no rate to fine-tune"),
        (("train-clf", "--arch", "mlp", "--set", "model.hidden=64"), "model.hidden=64: mlp cannot be built"),
        (("train-clf", "--set", "model.whiten_bias=no"), "model.whiten_bias is 'no', not true or false"),
        (("train-clf", "--set", "=3"), "there is no empty name"),
        (("train-clf", "--set", "crop=32"), "crop is 32, more than the 31 pixels"),
        (("train-clf", "--set", "cutout=-1"), "cutout is -1, not a whole number from 0"),
        (("train-clf", "--set", "trained_until=3"), "trained_until is 3, not a JSON object"),
        (("train-clf", "--set", 'trained_until={"whiten.bias":7}'), "not a JSON object of parameters and fractions"),
        (("train-clf", "--set", "teacher_temperature=0", "--teacher", "classifier"), "teacher_temperature is 0"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused_before_the_run(
    cifarctl: Cifarctl, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = cifarctl(*arguments, "--data", "synthetic", "--out", tmp_path / "run")
    assert done.code == 2
    assert says in done.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train-clf",),
        ("train-clf", "--recipe", "max", "--epochs", "3", "--set", "model.widths=24,32,32"),
        ("train-clf", "--encoder", "autoencoder", "--finetune"),
        ("train-ae", "--arch", "conv2", "--set", "flip=none"),
        ("train-ae", "--latent-dim", "99"),
    ],
)
def test_a_printed_recipe_is_what_set_takes(cifarctl: Cifarctl, arguments: tuple[str, ...]) -> None:
    printed = cifarctl(*arguments, "--print-recipe")
    assert printed.code == 0
    assert not Path("runs").exists()
    lines = printed.out.splitlines()
    kept = ("--encoder", "autoencoder", "--finetune", "--arch", "conv2")
    options = [option for option in arguments if option in kept]
    every_value = [word for line in lines for word in ("--set", line)]
    again = cifarctl(arguments[0], *options, *every_value, "--print-recipe")
    assert again.out == printed.out
    assert cifarctl(*arguments, "--print-recipe", "--json").json["epochs"] == json.loads(lines[0].partition("=")[2])


def test_every_recipe_fits_its_architecture() -> None:
    for architecture, by_name in recipes.RECIPES.items():
        for name, recipe in by_name.items():
            with torch.device("meta"):
                model = models.build(architecture, **recipe.model)
            parameters = dict(model.named_parameters())
            assert recipe.trained_until.keys() <= parameters.keys(), (architecture, name)


def test_the_latents_are_printed_and_no_field_that_this_training_does_not_use(cifarctl: Cifarctl) -> None:
    assert cifarctl("train-ae", "--latent-dim", 99, "--print-recipe", "--json").json["latent_dim"] == 99
    assert cifarctl("train-ae", "--print-recipe", "--json").json["latent_dim"] == 256
    assert "latent_dim" not in cifarctl("train-clf", "--print-recipe", "--json").json
    twice = cifarctl("train-ae", "--latent-dim", 99, "--set", "latent_dim=98", "--print-recipe")
    assert (twice.code, "--latent-dim is given too" in twice.error) == (2, True)
    for unused in ("label_smoothing", "teacher_temperature", "encoder_lr", "image_sizes"):
        assert unused not in cifarctl("train-ae", "--set", "banana=1", "--print-recipe").error


def test_image_sizes_in_the_wrong_order_are_refused(cifarctl: Cifarctl) -> None:
    refused = cifarctl("train-clf", "--set", "image_sizes=[[0.6,24],[0.3,16]]", "--print-recipe")
    assert refused.code == 2
    assert "its fractions of the steps must rise" in refused.error
    assert cifarctl("train-clf", "--set", "image_sizes=[[0.3,16],[0.6,24]]", "--print-recipe").code == 0
