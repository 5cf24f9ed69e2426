"""The table of metrics: what it says is what is measured, shown, and demanded."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rich.console import Console

from cifarctl import metrics, models
from cifarctl.cli.evaluate import SplitName
from cifarctl.cli.tables import comparison_table, metrics_table
from cifarctl.data import Dataset, Split
from cifarctl.evaluation import ClassifierReport, evaluate_classifier
from cifarctl.metrics import METRICS, AutoencoderMetrics, ClassifierMetrics, Metric
from cifarctl.model_outputs import Predictions, psnr

from support import Cifarctl


@pytest.fixture(scope="module")
def hundred_classes() -> tuple[Dataset, ClassifierReport]:
    """An untrained classifier of 100 classes, measured on noise."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8)
    data = Dataset(images, torch.arange(200) % 100, tuple(f"class {i}" for i in range(100)))
    model = models.build("mlp", classes=100, hidden=[8]).eval()
    return data, evaluate_classifier(model, data)  # type: ignore[arg-type]


def shown(renderable: object, width: int = 100) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize(("kind", "keys"), [("classifier", ClassifierMetrics), ("autoencoder", AutoencoderMetrics)])
def test_the_types_name_the_metrics_of_the_table(kind: str, keys: Any) -> None:
    assert keys.__required_keys__ | keys.__optional_keys__ == {m.name for m in METRICS.values() if m.kind == kind}
    assert keys.__optional_keys__ == {m.name for m in METRICS.values() if m.kind == kind and m.min_classes}


@pytest.mark.parametrize(
    ("name", "value", "text", "cell"),
    [
        ("accuracy", 0.8986, "89.86%", "89.86%"),
        ("accuracy_ci95", (0.8925, 0.9044), "89.25% to 90.44%", "89.25–90.44"),
        ("accuracy_ci95", [0.8925, 0.9044], "89.25% to 90.44%", "89.25–90.44"),
        ("nll", 0.30741, "0.3074 nats", "0.3074"),
        ("psnr", 28.258, "28.26 dB", "28.26"),
        ("mse", 0.00149, "0.001490", "0.001490"),
        ("latent_floats", 256, "256", "256"),
        ("compression_ratio", 12.0, "12 : 1", "12"),
    ],
)
def test_a_value_is_written_with_its_unit(name: str, value: metrics.Value, text: str, cell: str) -> None:
    assert (METRICS[name].text(value), METRICS[name].cell(value)) == (text, cell)


def test_a_difference_has_its_sign_and_unit() -> None:
    assert METRICS["accuracy"].difference(0.0351) == "+3.51 points"
    assert METRICS["psnr_image_mean"].difference(-0.5) == "-0.50 dB"


def test_psnr_is_that_of_its_definition() -> None:
    assert psnr(0.01).item() == pytest.approx(20)
    assert psnr(torch.tensor([1.0, 1e-4, 0.0])).tolist() == pytest.approx([0, 40, 120])


class TestTop5:
    def test_more_than_ten_classes_have_it(self, hundred_classes: tuple[Dataset, ClassifierReport]) -> None:
        data, report = hundred_classes
        order = report.probabilities.argsort(1, descending=True)
        by_hand = sum(label in row[:5] for label, row in zip(data.labels.tolist(), order.tolist(), strict=True)) / 200
        assert report.metrics["top5_accuracy"] == by_hand
        assert 0 < report.metrics["accuracy"] < by_hand

    def test_ten_classes_have_not(self, cifarctl: Cifarctl, classifier_run: Path) -> None:
        assert "top5_accuracy" not in cifarctl("evaluate", "-m", classifier_run, "--json").json["metrics"]

    def test_the_tables_show_it(self, hundred_classes: tuple[Dataset, ClassifierReport]) -> None:
        measured = hundred_classes[1].metrics
        text = METRICS["top5_accuracy"].text(measured["top5_accuracy"])
        assert any(
            line.split() == ["top-5", "accuracy", text] for line in shown(metrics_table("", measured, {})).splitlines()
        )
        rows = [{"model": name, "kind": "classifier", "split": "test", "metrics": measured} for name in "ab"]
        assert "top 5" in shown(comparison_table(rows))
        narrow = shown(comparison_table(rows), width=36)
        assert "accuracy" in narrow
        assert "ECE" not in narrow


def test_a_new_metric_needs_nothing_but_its_entry(
    cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def top2_errors(predictions: Predictions) -> float:
        hits = (predictions.logits.topk(2).indices == predictions.labels[:, None]).any(1)
        return int((~hits).sum())

    toy = Metric(
        name="top2_errors",
        kind="classifier",
        title="images outside the top two",
        meaning="How many images have another label than the two most likely ones.",
        measure=top2_errors,
        better="lower",
        column="beyond 2",
        spec="d",
    )
    monkeypatch.setitem(METRICS, toy.name, toy)
    page = tmp_path / "page.html"
    result = cifarctl("evaluate", "-m", classifier_run, "--json", "--report", page).json
    value = result["metrics"]["top2_errors"]
    assert 0 < value < (1 - result["metrics"]["accuracy"]) * 1000
    assert [*result["metrics"]][-1] == "top2_errors"
    assert toy.title in page.read_text("utf-8")
    assert toy.meaning in page.read_text("utf-8")
    missed = cifarctl("evaluate", "-m", classifier_run, "--fail-under", f"top2_errors={value - 1}")
    assert missed.code == 3
    assert missed.error == f"error: top2_errors is {value}, above {value - 1}"
    assert f"images outside the top two  {value}\n" in missed.out
    assert "beyond 2" in shown(comparison_table([result, result]), width=200)


class TestThresholds:
    @pytest.mark.parametrize(
        ("threshold", "says", "hints"),
        [
            ("banana=1", "banana: no such metric", "accuracy, top5_accuracy, balanced_accuracy"),
            ("accuracy_ci95=0.5", "accuracy_ci95: no such metric", "accuracy, top5_accuracy, balanced_accuracy"),
            ("psnr=20", "psnr: no metric of", "accuracy, balanced_accuracy, macro_f1, nll, ece"),
            ("top5_accuracy=0.9", "a classifier of 10 classes", "accuracy, balanced_accuracy, macro_f1, nll, ece"),
            ("accuracy=many", "expected METRIC=VALUE", "for example accuracy=0.9"),
        ],
    )
    def test_what_cannot_be_demanded_is_said_before_the_data_is_looked_for(
        self, cifarctl: Cifarctl, classifier_run: Path, threshold: str, says: str, hints: str
    ) -> None:
        missing = ("-m", classifier_run, "--data", "cifar10", "--offline")
        assert cifarctl("evaluate", *missing, "--fail-under", "accuracy=0.5").code == 1
        done = cifarctl("evaluate", *missing, "--fail-under", threshold)
        assert (done.code, done.out) == (2, "")
        assert says in done.error
        assert hints in done.err.splitlines()[-1]

    def test_lower_is_better_if_the_table_says_so(self) -> None:
        assert METRICS["nll"].misses(0.3, bound=0.2)
        assert not METRICS["nll"].misses(0.2, bound=0.2)
        assert METRICS["accuracy"].misses(0.8, bound=0.9)
        assert not METRICS["accuracy"].misses(0.9, bound=0.9)


def test_metrics_are_finite_numbers_in_json(hundred_classes: tuple[Dataset, ClassifierReport]) -> None:
    measured = json.loads(json.dumps(hundred_classes[1].metrics))
    assert [*measured] == [metric.name for metric in METRICS.values() if metric.kind == "classifier"]
    assert all(
        map(
            math.isfinite,
            (end for value in measured.values() for end in (value if isinstance(value, list) else [value])),
        )
    )


def test_the_commands_know_the_librarys_splits() -> None:
    assert [name.value for name in SplitName] == [*get_args(Split)]
