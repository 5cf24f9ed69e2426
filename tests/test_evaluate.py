"""`evaluate`: every number checked against another way to get it."""

import json
import math
import re
import shutil
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from cifarctl import models
from cifarctl.comparison import compare_accuracy, compare_psnr, mcnemar_p_value, wilson_interval
from cifarctl.data import Source
from cifarctl.evaluation import evaluate_autoencoder
from cifarctl.weights import load_autoencoder

from support import Cifarctl


def probabilities_by_hand(run: Path, images: torch.Tensor) -> torch.Tensor:
    """Softmax of the stored model, with nothing of cifarctl but the model's class."""
    with safe_open(run / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    model = models.build(metadata["model"], **json.loads(metadata["config"]))
    model.load_state_dict(load_file(run / "model.safetensors"))
    model.eval()
    with torch.no_grad():
        return model(images).softmax(1)


def test_a_classifiers_metrics_are_those_of_a_recomputation(cifarctl: Cifarctl, classifier_run: Path) -> None:
    done = cifarctl("evaluate", "-m", classifier_run, "--json")
    assert done.code == 0
    result = done.json
    test = Source("synthetic").load("test")
    probabilities = probabilities_by_hand(classifier_run, test.images)
    confidence, predicted = probabilities.max(1)
    correct = predicted == test.labels

    assert (result["kind"], result["data"], result["split"], result["n"]) == ("classifier", "synthetic", "test", 1000)
    metrics = result["metrics"]
    assert metrics["accuracy"] == correct.sum().item() / 1000  # to the last image
    assert metrics["nll"] == pytest.approx(F.nll_loss(probabilities.log(), test.labels).item(), rel=1e-4)
    low, high = metrics["accuracy_ci95"]
    assert low < metrics["accuracy"] < high

    ece = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap = (correct[inside].float().mean() - confidence[inside].mean()).abs().item()
            ece += inside.float().mean().item() * gap
    assert metrics["ece"] == pytest.approx(ece, abs=1e-4)

    f1 = []
    for label, row in enumerate(result["per_class"]):
        hits = (correct & (test.labels == label)).sum().item()
        called, support = (predicted == label).sum().item(), (test.labels == label).sum().item()
        assert row["support"] == support == 100
        assert row["recall"] == hits / support
        assert row["precision"] == (hits / called if called else 0)
        f1.append(2 * hits / (called + support))
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / 10)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (test.labels.numpy(), predicted.numpy()), 1)
    assert result["confusion_matrix"] == matrix.tolist()
    assert result["images_per_second"] > 0


def test_an_autoencoders_metrics_are_those_of_a_recomputation(cifarctl: Cifarctl, autoencoder_run: Path) -> None:
    result = cifarctl("evaluate", "-m", autoencoder_run, "--json").json
    with safe_open(autoencoder_run / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    model = models.build(metadata["model"], **json.loads(metadata["config"]))
    model.load_state_dict(load_file(autoencoder_run / "model.safetensors"))
    test = Source("synthetic").load("test").images
    with torch.no_grad():
        difference = model.eval()(test) - test.float() / 255
    error = difference.square().flatten(1).mean(1)
    red, green, blue = difference.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = (((blue - luma) / 1.772).square().mean() + ((red - luma) / 1.402).square().mean()).item() / 2
    metrics = result["metrics"]
    assert set(metrics) == {
        "mse",
        "psnr",
        "psnr_image_mean",
        "psnr_chroma",
        "ssim",
        "latent_floats",
        "compression_ratio",
        "pca_psnr",
        "pca_psnr_chroma",
        "pca_ssim",
    }
    assert metrics["mse"] == pytest.approx(error.mean().item(), rel=1e-4)
    assert metrics["psnr"] == pytest.approx(-10 * math.log10(error.mean().item()), abs=1e-3)
    assert metrics["psnr_image_mean"] == pytest.approx((-10 * error.log10()).mean().item(), abs=1e-3)
    assert metrics["psnr_chroma"] == pytest.approx(-10 * math.log10(chroma), abs=1e-3)
    assert (metrics["latent_floats"], metrics["compression_ratio"]) == (64, 48)
    assert 0 < metrics["ssim"] < 1
    assert 10 < metrics["pca_psnr"] < metrics["pca_psnr_chroma"] < 50
    assert 0 < metrics["pca_ssim"] < 1


def test_torchmetrics_agrees_on_a_classifier(cifarctl: Cifarctl, classifier_run: Path) -> None:
    from torchmetrics.functional import classification as torchmetrics

    result = cifarctl("evaluate", "-m", classifier_run, "--json").json
    test = Source("synthetic").load("test")
    measured = (probabilities_by_hand(classifier_run, test.images), test.labels, 10)
    metrics = result["metrics"]
    assert metrics["accuracy"] == pytest.approx(torchmetrics.multiclass_accuracy(*measured, average="micro").item())
    assert metrics["balanced_accuracy"] == pytest.approx(torchmetrics.multiclass_accuracy(*measured).item())
    assert metrics["macro_f1"] == pytest.approx(torchmetrics.multiclass_f1_score(*measured).item(), abs=1e-6)
    assert metrics["ece"] == pytest.approx(torchmetrics.multiclass_calibration_error(*measured).item(), abs=1e-5)
    assert result["confusion_matrix"] == torchmetrics.multiclass_confusion_matrix(*measured).tolist()


def test_torchmetrics_agrees_on_an_autoencoder(autoencoder_run: Path) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    source = Source("synthetic", limit=100)
    autoencoder, _ = load_autoencoder(autoencoder_run / "model.safetensors", torch.device("cpu"))
    report = evaluate_autoencoder(autoencoder, source.load("test"), source.load("train").images)
    pair = (report.reconstructions, source.load("test").images.float() / 255)
    assert report.metrics["psnr"] == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1.0).item(), abs=1e-4)
    ssim = structural_similarity_index_measure(*pair, data_range=1.0)
    assert isinstance(ssim, torch.Tensor)
    assert report.metrics["ssim"] == pytest.approx(float(ssim), abs=1e-5)


def test_the_validation_split_is_the_one_that_training_drew(cifarctl: Cifarctl, tmp_path: Path) -> None:
    arguments = ("train-clf", "--data", "synthetic", "--arch", "mlp", "--limit", 500, "--epochs", 1, "--seed", 3)
    trained = cifarctl(*arguments, "--val-size", 150, "--out", tmp_path / "run", "--json", "--precision", "fp32")
    measured = cifarctl("evaluate", "-m", tmp_path / "run", "--split", "val", "--json").json
    assert measured["n"] == 150
    assert measured["metrics"]["accuracy"] == trained.json["val"]["accuracy"]


def test_a_missed_threshold_is_exit_3_after_the_result(cifarctl: Cifarctl, classifier_run: Path) -> None:
    missed = cifarctl("evaluate", "-m", classifier_run, "--json", "--fail-under", "accuracy=0.9999")
    assert missed.code == 3
    assert missed.error.startswith("error: accuracy is 0.")
    assert missed.json["n"] == 1000
    met = cifarctl("evaluate", "-m", classifier_run, "--fail-under", "accuracy=0.1", "--fail-under", "nll=100")
    assert met.code == 0
    too_high = cifarctl("evaluate", "-m", classifier_run, "--fail-under", "nll=0.00001")
    assert too_high.code == 3
    assert "above 1e-05" in too_high.error


@pytest.mark.parametrize(
    ("threshold", "says"),
    [("banana=1", "no such metric"), ("accuracy", "METRIC=VALUE"), ("accuracy=nan", "METRIC=VALUE")],
)
def test_a_threshold_that_means_nothing(cifarctl: Cifarctl, classifier_run: Path, threshold: str, says: str) -> None:
    done = cifarctl("evaluate", "-m", classifier_run, "--fail-under", threshold)
    assert done.code == 2
    assert says in done.error


def test_figures_are_written_where_asked(
    cifarctl: Cifarctl, classifier_run: Path, autoencoder_run: Path, tmp_path: Path
) -> None:
    assert cifarctl("evaluate", "-m", classifier_run, "--plots", tmp_path / "clf").code == 0
    assert cifarctl("evaluate", "-m", autoencoder_run, "--plots", tmp_path / "ae").code == 0
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert found == {
        "clf/confusion.png",
        "clf/reliability.png",
        "clf/mistakes.png",
        "ae/reconstructions.png",
        "ae/psnr.png",
        "ae/rate.png",
    }
    for path in found:
        with Image.open(tmp_path / path) as picture:
            assert min(picture.size) > 400


def test_test_time_augmentation_is_measured_when_asked(cifarctl: Cifarctl, classifier_run: Path) -> None:
    plain, augmented = (
        cifarctl("evaluate", "-m", classifier_run, "--json", flag).json for flag in ("--no-tta", "--tta")
    )
    assert (plain["tta"], augmented["tta"]) == (False, True)
    assert plain["metrics"]["nll"] != augmented["metrics"]["nll"]


def test_other_classes_than_the_models_are_refused(
    cifarctl: Cifarctl, classifier_run: Path, image_folder: Path
) -> None:
    done = cifarctl("evaluate", "-m", classifier_run, "--data", image_folder)
    assert done.code == 1
    assert "blue, red" in done.error


def test_the_table_fits_80_columns_and_calls_synthetic_a_smoke_test(installed: Cifarctl, classifier_run: Path) -> None:
    done = installed("evaluate", "-m", classifier_run)
    assert max(len(line) for line in done.out.splitlines() if str(classifier_run) not in line) <= 80
    assert "smoke test" in done.out
    assert "\x1b" not in done.out


def test_wilsons_interval_has_its_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1000, 1000)[1] == 1.0
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory, installed: Cifarctl) -> Path:
    out = tmp_path_factory.mktemp("other") / "mlp"
    arguments = ("--limit", 2000, "--val-size", 200, "--epochs", 2, "--arch", "mlp", "--out", out)
    done = installed("train-clf", "--data", "synthetic", *arguments)
    assert done.code == 0, done.err
    return out


class TestComparison:
    def test_two_models_are_compared_on_the_same_images(
        self, cifarctl: Cifarctl, classifier_run: Path, other_run: Path
    ) -> None:
        done = cifarctl("evaluate", "-m", classifier_run, "-m", other_run, "--json")
        assert done.code == 0
        alone = [cifarctl("evaluate", "-m", run, "--json").json for run in (classifier_run, other_run)]
        for result, expected in zip(done.json["results"], alone, strict=True):
            assert {**result, "images_per_second": 0} == {**expected, "images_per_second": 0}

        test = Source("synthetic").load("test")
        right = [
            probabilities_by_hand(run, test.images).argmax(1) == test.labels for run in (classifier_run, other_run)
        ]
        (difference,) = done.json["differences"]
        assert difference["only_first"] == (right[0] & ~right[1]).sum()
        assert difference["only_second"] == (right[1] & ~right[0]).sum()
        gap = alone[1]["metrics"]["accuracy"] - alone[0]["metrics"]["accuracy"]
        assert difference["difference"] == pytest.approx(gap)
        low, high = difference["ci95"]
        assert low < gap < high

    def test_the_difference_is_a_sentence(self, cifarctl: Cifarctl, classifier_run: Path, other_run: Path) -> None:
        done = cifarctl("evaluate", "-m", classifier_run, "-m", other_run)
        (sentence,) = [line for line in done.out.splitlines() if " minus " in line]
        assert sentence.startswith(f"{other_run} minus {classifier_run} on test: ")
        assert re.search(r"[+-]\d+\.\d\d points \(95 %: .* to .*\), p [=<] 0\.\d+", sentence)

    @pytest.mark.thorough
    def test_splits_show_their_gap(self, cifarctl: Cifarctl, classifier_run: Path) -> None:
        done = cifarctl(
            "evaluate", "-m", classifier_run, "--split", "train", "--split", "val", "--split", "test", "--json"
        )
        results = done.json["results"]
        assert [(result["split"], result["n"]) for result in results] == [
            ("train", 1000),
            ("val", 200),
            ("test", 1000),
        ]
        assert done.json["differences"] == []
        shown = cifarctl("evaluate", "-m", classifier_run, "--split", "train", "--split", "test").out
        gap = 100 * (results[2]["metrics"]["accuracy"] - results[0]["metrics"]["accuracy"])
        assert f"{gap:+.2f}" in shown
        assert "minus train" in shown

    def test_autoencoders_are_compared_image_by_image(
        self, cifarctl: Cifarctl, autoencoder_run: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "conv2"
        arguments = ("--limit", 500, "--epochs", 1, "--arch", "conv2", "--latent-dim", 64, "--out", other)
        assert cifarctl("train-ae", "--data", "synthetic", *arguments).code == 0
        done = cifarctl("evaluate", "-m", autoencoder_run, "-m", other, "--json").json
        means = [result["metrics"]["psnr_image_mean"] for result in done["results"]]
        (difference,) = done["differences"]
        assert difference["metric"] == "psnr_image_mean"
        assert difference["difference"] == pytest.approx(means[1] - means[0], abs=1e-4)
        assert difference["only_first"] + difference["only_second"] <= 1000

    def test_what_cannot_be_compared_is_refused(
        self, cifarctl: Cifarctl, classifier_run: Path, autoencoder_run: Path, tmp_path: Path
    ) -> None:
        kinds = cifarctl("evaluate", "-m", classifier_run, "-m", autoencoder_run)
        assert (kinds.code, "classifier" in kinds.error) == (2, True)
        assert re.search(r"is a classifier and \S+ an autoencoder$", kinds.error)
        other = tmp_path / "seed1"
        arguments = ("--limit", 250, "--epochs", 1, "--arch", "mlp", "--seed", 1, "--out", other)
        assert cifarctl("train-clf", "--data", "synthetic", *arguments).code == 0
        drawn = cifarctl("evaluate", "-m", classifier_run, "-m", other, "--split", "val")
        assert (drawn.code, "other images" in drawn.error) == (2, True)

    def test_a_threshold_names_the_model_that_misses_it(
        self, cifarctl: Cifarctl, classifier_run: Path, other_run: Path
    ) -> None:
        done = cifarctl("evaluate", "-m", classifier_run, "-m", other_run, "--fail-under", "accuracy=1.01")
        assert done.code == 3
        assert str(classifier_run) in done.error
        assert str(other_run) in done.error

    @pytest.mark.parametrize(
        ("only_first", "only_second", "p_value"),
        # scipy.stats.binomtest(only_first, only_first + only_second).pvalue
        [(10, 25, 0.01667384780012071), (59, 6, 4.964650327128617e-12), (7, 7, 1.0), (0, 0, 1.0), (3, 0, 0.25)],
    )
    def test_mcnemars_p_value_is_that_of_the_binomial_test(
        self, only_first: int, only_second: int, p_value: float
    ) -> None:
        both = torch.ones(500, dtype=torch.bool)
        first, second = both.clone(), both.clone()
        second[:only_first] = False
        first[only_first : only_first + only_second] = False
        assert compare_accuracy(first, second).p_value == pytest.approx(p_value, rel=1e-12, abs=0)

    @pytest.mark.parametrize(
        ("only_first", "only_second", "p_value"),
        # Sums of integer binomial coefficients as fractions, without rounding.
        [
            (400, 700, 1.1735888055605814e-19),
            (10_001, 9_999, 0.9943581746877795),
            (9_800, 10_200, 0.004780889455902644),
            (9_000, 11_000, 1.9540827705828963e-45),
            (0, 1000, 2.0**-999),
            (0, 20_000, 0.0),
        ],
    )
    def test_mcnemars_p_value_of_many_disagreements_is_exact(
        self, only_first: int, only_second: int, p_value: float
    ) -> None:
        assert mcnemar_p_value(only_first, only_second) == pytest.approx(p_value, rel=1e-10, abs=0)

    def test_a_paired_difference_of_psnr_has_the_normal_p_value(self) -> None:
        torch.manual_seed(0)
        first = torch.randn(400) + 25
        second = first + 0.1 + torch.randn(400)
        d = (second - first).double()
        z = d.mean().item() / (d.std().item() / 20)
        found = compare_psnr(first, second)
        assert found.p_value == pytest.approx(2 * (1 - NormalDist().cdf(abs(z))), rel=1e-6)
        assert found.ci95[0] == pytest.approx(found.difference - 1.959964 * d.std().item() / 20)
        assert compare_psnr(first, first).p_value == 1.0


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, classifier_run: Path, other_run: Path, autoencoder_run: Path
) -> Path:
    """Two classifiers and an autoencoder that have finished, an unfinished run, a damaged one, and no run."""
    folder = tmp_path_factory.mktemp("folder") / "runs"
    for name, run in (("clf", classifier_run), ("mlp", other_run), ("ae", autoencoder_run)):
        shutil.copytree(run, folder / name)
    for name in ("half", "broken"):
        shutil.copytree(other_run, folder / name)
    (folder / "half" / "model.safetensors").unlink()
    (folder / "half" / "summary.json").unlink()
    (folder / "broken" / "model.safetensors").write_bytes(b"no model")
    (folder / "notes").mkdir()
    return folder


class TestRuns:
    """A folder of runs, or several models as a shell expands runs/*: one table."""

    def test_each_is_a_row_with_its_state_and_the_best_comes_first(self, cifarctl: Cifarctl, runs: Path) -> None:
        done = cifarctl("evaluate", "-m", runs, "--json")
        assert done.code == 1
        assert done.error == "error: 2 of 5 could not be measured"
        rows = {Path(row["model"].removesuffix("/model.safetensors")).name: row for row in done.json["results"]}
        assert {name: row["state"] for name, row in rows.items()} == {
            "ae": "finished",
            "clf": "finished",
            "mlp": "finished",
            "half": "unfinished",
            "broken": "damaged",
        }
        assert "not a safetensors file" in rows["broken"]["error"]
        assert (rows["mlp"]["arch"], rows["mlp"]["epochs"], rows["mlp"]["seed"]) == ("mlp", 2, 0)
        measured = [row["metrics"]["accuracy"] for row in done.json["results"] if "accuracy" in row.get("metrics", ())]
        assert measured == sorted(measured, reverse=True)
        alone = cifarctl("evaluate", "-m", runs / "mlp", "--json").json
        assert rows["mlp"]["metrics"] == alone["metrics"]

    def test_what_a_shell_makes_of_a_star_is_the_same(self, cifarctl: Cifarctl, runs: Path) -> None:
        done = cifarctl("evaluate", "--json", "-m", *sorted(runs.iterdir()))
        rows = done.json["results"]
        assert (done.code, len(rows)) == (1, 6)
        (notes,) = [row for row in rows if row["state"] == "no run"]
        assert "a folder without model.safetensors" in notes["error"]
        good = cifarctl("evaluate", "-m", runs / "clf", runs / "mlp")
        assert (good.code, good.out.count("finished")) == (0, 2)

    @pytest.mark.parametrize("columns", [40, 80])
    def test_what_is_stored_is_shown_without_measuring_and_fits(
        self, cifarctl: Cifarctl, runs: Path, columns: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.chdir(runs.parent)
        done = cifarctl("evaluate", "-m", "runs", "--stored")
        assert done.error == "error: 1 of 5 could not be read"  # that a run has not finished is no failure
        accuracy = json.loads((runs / "clf" / "summary.json").read_text())["test"]["accuracy"]
        (row,) = [line for line in done.out.splitlines() if line.startswith(" runs/clf ")]
        assert f"{accuracy:.2%}" in row
        assert max(map(len, done.out.splitlines())) <= columns

    @pytest.mark.parametrize("option", [("--report", "r.html"), ("--stored", "--tta"), ("--split", "val", "--stored")])
    def test_what_a_table_cannot_have_is_refused(self, cifarctl: Cifarctl, runs: Path, option: tuple[str, ...]) -> None:
        done = cifarctl("evaluate", "-m", runs, *option)
        assert done.code == 2
        assert "not for a table" in done.error

    def test_a_threshold_is_for_all_of_them(self, cifarctl: Cifarctl, runs: Path) -> None:
        done = cifarctl("evaluate", runs / "clf", runs / "mlp", "--fail-under", "accuracy=1.01")
        assert done.code == 3
        assert str(runs / "mlp") in done.error
