"""Charts as data: Matplotlib and the report draw the same numbers."""

import math
import re

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from cifarctl import figure_data, plots
from cifarctl.model_outputs import confident_mistakes
from cifarctl.rate_distortion import RateDistortionPoint
from cifarctl.report import charts

HISTORY = [
    {"epoch": epoch, "train_loss": 2.0 / (epoch + 1), "val_loss": 2.5 / (epoch + 1), "val_accuracy": accuracy}
    for epoch, accuracy in enumerate((0.1, 0.5, 0.7, 0.7, 0.6))
]


def bars(axes: Axes) -> list[float]:
    return [bar.get_height() for container in axes.containers for bar in container]


def test_learning_curves_are_the_same_points_in_both() -> None:
    loss, score = plots.curves(HISTORY, "accuracy").axes
    drawn = [line.get_xydata().tolist() for axes in (loss, score) for line in axes.lines]  # type: ignore[union-attr]
    assert drawn[2] == [[record["epoch"], record["val_accuracy"]] for record in HISTORY]
    tips = [re.findall(r"<title>(.*?)</title>", chart.svg) for chart in charts.learning_curves(HISTORY, "classifier")]
    assert tips[1] == [f"epoch {x:.0f}: {y:.2%}" for x, y in drawn[2]]
    assert tips[0] == [
        *(f"epoch {x:.0f}: training loss {y:.4g}" for x, y in drawn[0]),
        *(f"epoch {x:.0f}: validation loss {y:.4g}" for x, y in drawn[1]),
    ]
    assert score.get_title() == "Validation accuracy: best 70.00%, epoch 3"  # the later of equal ones


def test_what_is_not_finite_is_left_out_of_the_curves() -> None:
    history = [{**HISTORY[0], "train_loss": math.nan}, *HISTORY[1:]]
    loss, _ = figure_data.learning_curves(history, "accuracy")
    assert [x for x, _ in loss.lines[0].points] == [1, 2, 3, 4]
    without = [{**record, "val_accuracy": math.nan} for record in HISTORY]
    assert plots.curves(without, "accuracy").axes[1].get_title() == "Validation accuracy"


def test_reliability_has_the_same_bins_in_both() -> None:
    torch.manual_seed(0)
    probabilities, labels = (2 * torch.randn(500, 10)).softmax(1), torch.arange(500) % 10
    upper, lower = plots.reliability(probabilities, labels).axes
    assert sum(bars(lower)) == 500
    accuracy, images = charts.reliability(probabilities, labels)
    assert re.findall(r"(\d+) images</title>", images.svg) == [f"{count:.0f}" for count in bars(lower)]
    assert re.findall(r": ([\d.]+%) of", accuracy.svg) == [f"{fraction:.1%}" for fraction in bars(upper)]


def test_the_histogram_has_the_same_bins_in_both_and_every_image() -> None:
    torch.manual_seed(0)
    image_psnr = 25 + 2 * torch.randn(300)
    (axes,) = plots.psnr_histogram(image_psnr, 24.0, 40.0).axes
    assert sum(bars(axes)) == 300
    assert axes.get_xlim()[1] > 40  # PCA's line is inside
    svg = charts.psnr_histogram(image_psnr, 24.0, 40.0).svg
    assert re.findall(r"dB: (\d+) images", svg) == [f"{count:.0f}" for count in bars(axes)]


def test_rate_and_distortion_are_the_same_points_in_both() -> None:
    points = [
        RateDistortionPoint(codec, setting, 100.0 * setting, 20.0 + setting)
        for codec in ("latents", "jpeg", "webp")
        for setting in (2, 8)
    ]
    (axes,) = plots.rate_distortion(points, 500).axes
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    chart = charts.rate_distortion(points, 500)
    assert labels == [text for _, text in chart.legend] == ["latents, 2 to 8 bits each", "JPEG", "WebP"]
    drawn = [point for line in axes.lines for point in np.asarray(line.get_xydata()).tolist()]
    assert re.findall("<title>(.*?)</title>", chart.svg) == [f"{x:.0f} bytes, {y:.2f} dB" for x, y in drawn]


def test_mistakes_are_in_the_order_of_their_confidence() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    assert confident_mistakes(probabilities, torch.tensor([0, 0, 1, 0])).tolist() == [2, 3, 1]


@pytest.mark.parametrize("metric", ["accuracy", "psnr"])
def test_an_axis_is_named_with_its_unit(metric: str) -> None:
    history = [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, f"val_{metric}": 0.5}]
    label = plots.curves(history, metric).axes[1].get_ylabel()
    assert label == {"accuracy": "accuracy", "psnr": "PSNR (dB)"}[metric]
