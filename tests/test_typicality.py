"""How familiar a picture looks: fitted at the end of training, in the weights file, in every prediction."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import cifarctl as cifarctl_api
from cifarctl import models, weights
from cifarctl.cli.unfamiliar import remarks_on_unfamiliar
from cifarctl.data import Dataset, Source
from cifarctl.errors import WeightsError
from cifarctl.files import PRETRAINED
from cifarctl.inference import answer, predict_logits
from cifarctl.models.base import Classifier
from cifarctl.training.outliers import MIN_VAL, fit_typicality, make_outliers
from cifarctl.typicality import auroc, false_positives, summarize
from cifarctl.weights import ModelInfo

from py2_pickle import CLASSES
from support import Cifarctl

CPU = torch.device("cpu")
ARCHITECTURES = [("airbench", {"widths": [24, 24, 24]}), ("mlp", {"hidden": [64, 32]}), ("mlp", {"hidden": []})]


def build(name: str, **config: Any) -> Classifier:
    torch.manual_seed(0)
    model = models.build(name, classes=10, **config).eval()
    assert isinstance(model, Classifier)
    return model


def waves(n: int, seed: int) -> Dataset:
    """Smooth pictures, far from any outlier."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (n, 3, 2, 2), generator=generator).float()
    images = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear").round().byte()
    return Dataset(images, torch.randint(0, 10, (n,), generator=generator), CLASSES)


@pytest.fixture(scope="module")
def fitted() -> Classifier:
    model = build("airbench", widths=[24, 24, 24])
    fit_typicality(model, waves(400, 0), waves(100, 1), "fp32")
    return model


@pytest.fixture
def fitted_file(fitted: Classifier, tmp_path: Path) -> Path:
    path = tmp_path / "clf.safetensors"
    info = ModelInfo("classifier", "airbench", {"classes": 10, "widths": [24, 24, 24]}, CLASSES)
    weights.save(path, weights.of_model(fitted), info)
    return path


@pytest.fixture
def early_file(fitted: Classifier, tmp_path: Path) -> Path:
    path = tmp_path / "early.safetensors"
    info = ModelInfo("classifier", "airbench", {"classes": 10, "widths": [24, 24, 24]}, CLASSES)
    weights.save(path, fitted.state_dict(), info)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """One image that the fitted model knows, and one of noise."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(waves(400, 0).images[0].permute(1, 2, 0).numpy()).save(folder / "known.png")
    Image.fromarray(noise).save(folder / "noise.png")
    return folder


class TestScore:
    @pytest.mark.parametrize(("name", "config"), ARCHITECTURES)
    def test_a_summary_has_the_size_that_its_model_says(self, name: str, config: dict[str, Any]) -> None:
        model = build(name, **config)
        _, summary = summarize(model.stages(model.features(waves(3, 0).images.float() / 255)))
        assert summary.shape == (3, model.summary_size)

    @pytest.mark.parametrize(("name", "config"), ARCHITECTURES)
    def test_every_architecture_gets_one(self, name: str, config: dict[str, Any]) -> None:
        model = build(name, **config)
        fit_typicality(model, waves(400, 0), waves(100, 1), "fp32")
        values = answer(model, waves(100, 3).images).typicality
        assert values is not None
        assert 0 <= values.min() < values.max() <= 1
        assert 0.3 < values.mean() < 0.7

    def test_noise_is_told_from_what_the_model_was_trained_on(self, fitted: Classifier) -> None:
        noise = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
        known, odd = (answer(fitted, images).typicality for images in (waves(100, 3).images, noise))
        assert known is not None
        assert odd is not None
        assert auroc(known, odd) > 0.9

    def test_the_logits_are_those_without_the_score(self, fitted: Classifier) -> None:
        images = waves(20, 5).images
        for tta in (False, True):
            assert torch.equal(answer(fitted, images, tta=tta).logits, predict_logits(fitted, images, tta=tta))

    def test_it_is_the_fraction_of_validation_images_that_are_less_typical(self, fitted: Classifier) -> None:
        values = answer(fitted, waves(100, 1).images).typicality
        assert values is not None
        assert torch.allclose(values.sort().values, torch.linspace(0, 1, 100), atol=1e-3)

    def test_a_fit_gives_the_same_bits_again(self, fitted: Classifier) -> None:
        again = build("airbench", widths=[24, 24, 24])
        torch.manual_seed(7)
        fit_typicality(again, waves(400, 0), waves(100, 1), "fp32")
        assert fitted.typicality is not None
        assert again.typicality is not None
        for name, tensor in fitted.typicality.tensors().items():
            assert torch.equal(tensor, again.typicality.tensors()[name]), name

    def test_few_validation_images_give_no_score(self) -> None:
        model = build("airbench", widths=[24, 24, 24])
        fit_typicality(model, waves(100, 0), waves(MIN_VAL - 1, 1), "fp32")
        assert model.typicality is None
        assert answer(model, waves(3, 0).images).typicality is None

    @pytest.mark.parametrize("n", [1, 2, 10, 100])
    def test_outliers_are_made_of_however_few_images(self, n: int) -> None:
        made = make_outliers(waves(n, 0).images, torch.Generator().manual_seed(0))
        assert made.shape[1:] == (3, 32, 32)
        assert made.dtype == torch.uint8
        assert n <= len(made) < n + 9

    def test_auroc_counts_pairs_and_halves_of_ties(self) -> None:
        assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])) == 0.875

    def test_false_positives_are_those_above_the_bound_of_the_familiar(self) -> None:
        familiar = torch.arange(100) / 100
        assert false_positives(familiar, torch.tensor([0.0, 0.04, 0.05, 0.5])) == 0.5


class TestFile:
    def test_it_comes_back_with_every_bit(self, fitted: Classifier, fitted_file: Path) -> None:
        loaded, _ = weights.load_classifier(fitted_file, CPU)
        assert loaded.typicality is not None
        assert fitted.typicality is not None
        for name, tensor in fitted.typicality.tensors().items():
            assert torch.equal(tensor, loaded.typicality.tensors()[name]), name
        assert loaded.state_dict().keys() == fitted.state_dict().keys()

    def test_files_without_it_load(self, early_file: Path) -> None:
        assert weights.load_classifier(early_file, CPU)[0].typicality is None

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("mean", torch.zeros(3), "tensor typicality.mean has 3 values, expected 155"),
            ("weight", torch.zeros(155, dtype=torch.int64), "tensor typicality.weight is torch.int64"),
            ("weight", torch.full((155,), float("nan")), "tensor typicality.weight holds values that are not finite"),
            ("scale", torch.zeros(155), "tensor typicality.scale holds values that are not above 0"),
            ("quantiles", torch.tensor([1.0, 0.0]), "tensor typicality.quantiles does not ascend"),
            ("quantiles", torch.tensor([1.0]), "tensor typicality.quantiles does not ascend"),
            ("scale", None, "tensor typicality.scale is missing"),
        ],
    )
    def test_a_damaged_one_is_named(self, fitted_file: Path, name: str, value: torch.Tensor | None, says: str) -> None:
        tensors = load_file(fitted_file)
        with safe_open(fitted_file, framework="pt") as file:
            metadata = file.metadata()
        del metadata["sha256"]
        if value is None:
            del tensors[f"typicality.{name}"]
        else:
            tensors[f"typicality.{name}"] = value
        save_file(tensors, fitted_file, metadata)
        with pytest.raises(WeightsError) as caught:
            weights.load_classifier(fitted_file, CPU)
        assert says in str(caught.value)

    def test_the_pretrained_classifier_has_one(self) -> None:
        assert weights.has_typicality(PRETRAINED / "classifier.safetensors")


class TestPredict:
    def test_every_record_has_it(self, cifarctl: Cifarctl, fitted_file: Path, pictures: Path) -> None:
        result = cifarctl("predict", pictures, "-m", fitted_file)
        known, noise = (json.loads(line) for line in result.out.splitlines())
        assert noise["typicality"] == 0 < known["typicality"] <= 1
        header, *rows = cifarctl("predict", pictures, "-m", fitted_file, "--format", "csv").out.splitlines()
        assert header == "path,label,confidence,error,typicality"
        assert [float(row.split(",")[-1]) for row in rows] == [known["typicality"], 0]

    def test_what_is_below_reject_has_no_label(self, cifarctl: Cifarctl, fitted_file: Path, pictures: Path) -> None:
        options = ("predict", pictures, "-m", fitted_file, "--reject", "0.001")
        known, noise = (json.loads(line) for line in cifarctl(*options).out.splitlines())
        assert known["label"] == known["top"][0]["label"]
        assert noise["label"] is None
        assert noise["top"][0]["label"] in CLASSES
        assert cifarctl(*options, "--format", "csv").out.splitlines()[2].split(",")[1:3] == ["unknown", ""]
        done = cifarctl(*options, "--format", "table")
        table = done.out.splitlines()
        assert table[1].startswith("unknown ")
        assert " * " in table[1]
        assert " * " not in table[0]
        assert len(table) == 2
        assert "* typicality below 0.05: less like the training images than 95% of the" in done.err

    @pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
    def test_reject_is_a_fraction(self, cifarctl: Cifarctl, fitted_file: Path, pictures: Path, value: str) -> None:
        result = cifarctl("predict", pictures, "-m", fitted_file, "--reject", value)
        assert result.code == 2
        assert result.err.startswith("error: --reject")
        assert not result.out

    def test_weights_without_a_score_refuse_reject_and_answer_as_before(
        self, cifarctl: Cifarctl, early_file: Path, pictures: Path
    ) -> None:
        result = cifarctl("predict", pictures, "-m", early_file, "--reject", "0.1")
        assert result.code == 2
        assert "has no typicality score" in result.err
        assert not result.out
        for line in cifarctl("predict", pictures, "-m", early_file).out.splitlines():
            assert json.loads(line)["typicality"] is None

    def test_programs_get_it_too(self, fitted_file: Path, early_file: Path, pictures: Path) -> None:
        model, paths = cifarctl_api.load_classifier(fitted_file), sorted(pictures.iterdir())
        known, noise = model.predict(paths, reject=0.001)
        assert (noise.label, noise.typicality) == (None, 0)
        assert known.label == known.top[0][0]
        with pytest.raises(ValueError, match="not from 0 to 1"):
            model.predict(paths, reject=2)
        with pytest.raises(ValueError, match="no typicality score"):
            cifarctl_api.load_classifier(early_file).predict(paths, reject=0.1)


class TestUnfamiliar:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        """A classifier of the drawn shapes that has seen none of them."""
        model = build("airbench", widths=[24, 24, 24])
        source = Source("synthetic", val_size=100, limit=300)
        fit_typicality(model, source.load("train"), source.load("val"), "fp32")
        path = tmp_path / "shapes.safetensors"
        config = {"classes": 10, "widths": [24, 24, 24]}
        info = ModelInfo("classifier", "airbench", config, source.load("train").classes, source.describe())
        weights.save(path, weights.of_model(model), info)
        return path

    def test_it_says_how_well_the_score_tells(self, cifarctl: Cifarctl, run: Path, pictures: Path) -> None:
        (pictures / "known.png").unlink()
        result = cifarctl("evaluate", "-m", run, "--unfamiliar", pictures, "--json")
        measured = json.loads(result.out)["unfamiliar"]
        assert measured["n"] == 1
        model = cifarctl_api.load_classifier(run)
        noise = model.predict(sorted(pictures.iterdir()))[0].typicality
        images = Source("synthetic").load("test").images
        values = [prediction.typicality for prediction in model.predict(images)]
        assert noise is not None
        above = [value is not None and value > noise for value in values]
        assert measured["auroc"] == pytest.approx(sum(above) / len(above), abs=0.002)
        assert measured["false_positives_at_95"] == (sum(above) < 0.95 * len(above))

    def test_images_that_are_in_the_split_are_said(self, cifarctl: Cifarctl, run: Path, image_folder: Path) -> None:
        shapes = ("disc", "ring")  # two of the model's classes, of pictures that are of none
        folder = run.parent / "strange"
        for name, colour in zip(shapes, ("blue", "red"), strict=True):
            shutil.copytree(image_folder / "test" / colour, folder / "test" / name)
        done = cifarctl("evaluate", "-m", run, "--data", folder, "--unfamiliar", folder / "test" / "disc")
        assert done.code == 0
        assert "--unfamiliar: 10 of 10 images are also in the split" in done.err

    def test_a_split_that_is_as_unfamiliar_is_said(self) -> None:
        split = Source("synthetic", limit=100).load("test").take(torch.arange(4))
        others = replace(split, images=255 - split.images)
        (remark,) = remarks_on_unfamiliar(others, split, torch.tensor([0.0, 0.0, 0.0, 0.3]))
        assert remark.startswith("75% of the split's images have a typicality of 0, as unfamiliar ones have")
        assert not remarks_on_unfamiliar(others, split, torch.tensor([0.1, 0.2, 0.6, 0.3]))

    def test_the_table_of_two_models_and_the_report_show_it(
        self, cifarctl: Cifarctl, run: Path, pictures: Path, tmp_path: Path
    ) -> None:
        page = tmp_path / "report.html"
        arguments = ("evaluate", "-m", run, "-m", run, "--unfamiliar", pictures)
        measured = cifarctl(*arguments, "--report", page, "--json").json["results"][1]["unfamiliar"]
        table = cifarctl(*arguments).out.splitlines()
        assert table[1].endswith("AUROC of unfamiliar")
        assert table[3].endswith(f" {measured['auroc']:.4f}")
        assert f'<dd class="value">{measured["auroc"]:.4f}</dd>' in page.read_text(encoding="utf-8")

    def test_bad_folders_and_models_are_refused_before_anything_is_measured(
        self, cifarctl: Cifarctl, run: Path, early_file: Path, pictures: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        for model, folder, says in [
            (run, tmp_path / "none", "no folder of that name"),
            (run, tmp_path / "empty", "no images in it"),
            (early_file, pictures, "has no typicality score"),
        ]:
            result = cifarctl("evaluate", "-m", model, "--data", "synthetic", "--unfamiliar", folder)
            assert result.code == 2
            assert says in result.err
            assert not result.out
