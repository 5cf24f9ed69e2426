"""What charts show, before anything is drawn: their series, bins, labels and notes. `plots` draws them with Matplotlib,
and `report.charts` as SVG.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from cifarctl.metrics import METRICS
from cifarctl.model_outputs import calibration_bins
from cifarctl.rate_distortion import RateDistortionPoint

Colour = Literal["blue", "orange", "grey"]
_PSNR_BINS = 40


@dataclass(frozen=True)
class AxisData:
    """label: with its unit. log: a logarithmic scale. whole: only integers are marked. is_fraction: values are written
    as percentages. limits: the ends; without them, what holds all values.
    """

    label: str
    log: bool = False
    whole: bool = False
    is_fraction: bool = False
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """Points (x, y) that a line joins. label: in the legend. describe: a point in words; without it, the points are not
    marked. dashed: for what is not measured on the model.
    """

    points: Sequence[tuple[float, float]]
    colour: Colour
    label: str = ""
    describe: Callable[[float, float], str] | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars side by side, B of them. edges: B + 1, ascending. heights: B. descriptions: each bar in words; a bar without
    one is not drawn. label: in the legend.
    """

    edges: Sequence[float]
    heights: Sequence[float]
    colour: Colour
    descriptions: Sequence[str]
    label: str = ""


@dataclass(frozen=True)
class ChartData:
    """description: for those who cannot see the chart. note: how to read it."""

    title: str
    description: str
    x: AxisData
    y: AxisData
    lines: Sequence[Line] = ()
    bars: Bars | None = None
    note: str = ""


def learning_curves(history: Sequence[Mapping[str, float]], metric: str) -> tuple[ChartData, ChartData]:
    """Training and validation loss by epoch, and the validation `metric`. history: a record per epoch, as in
    `metrics.jsonl`. Values that are missing or not finite are left out.
    """

    def points(key: str) -> list[tuple[float, float]]:
        return [(record["epoch"], record[key]) for record in history if math.isfinite(record.get(key, math.nan))]

    def loss_line(name: str, key: str, colour: Colour) -> Line:
        return Line(points(key), colour, name, lambda x, y: f"epoch {x:.0f}: {name} loss {y:.4g}")

    lines = loss_line("training", "train_loss", "grey"), loss_line("validation", "val_loss", "blue")
    is_log = all(y > 0 for line in lines for _, y in line.points)
    epochs = AxisData("epoch", whole=True)
    loss = ChartData("Loss", "Loss by epoch", epochs, AxisData("loss", log=is_log), lines)

    shown = METRICS[metric]
    name, unit = shown.column or shown.title, f" ({shown.unit})" if shown.unit not in ("", "%") else ""
    scores = points(f"val_{metric}")
    best = max(scores, key=lambda point: (point[1], point[0]), default=None)
    return loss, ChartData(
        f"Validation {name}",
        f"Validation {name} by epoch",
        epochs,
        AxisData(f"{name}{unit}", is_fraction=shown.unit == "%"),
        [Line(scores, "orange", describe=lambda x, y: f"epoch {x:.0f}: {shown.text(y)}")],
        note=f"Best {shown.text(best[1])}, epoch {best[0]:.0f}" if best else "",
    )


def reliability(probabilities: Tensor, labels: Tensor) -> tuple[ChartData, ChartData]:
    """Accuracy against confidence, and how many images have that confidence.

    probabilities: float (N, classes). labels: int64 (N,).
    """
    bins = calibration_bins(probabilities, labels)
    edges, counts, fractions = bins.edges.tolist(), bins.count.tolist(), bins.accuracy.tolist()
    spans = [f"confidence {low:.0%} to {high:.0%}" for low, high in pairwise(edges)]
    rows = list(zip(spans, counts, fractions, strict=True))
    right = [f"{span}: {part:.1%} of {count:,} images are right" if count else "" for span, count, part in rows]
    held = [f"{span}: {count:,} images" if count else "" for span, count, _ in rows]
    confidence = AxisData("confidence", is_fraction=True, limits=(0, 1))
    accuracy = ChartData(
        "Reliability",
        "Accuracy by confidence",
        confidence,
        AxisData("accuracy", is_fraction=True, limits=(0, 1)),
        [Line([(0, 0), (1, 1)], "orange", "calibrated", dashed=True)],
        Bars(edges, fractions, "blue", right, "accuracy of the bin"),
        "Below the diagonal the model is overconfident, above it underconfident. Bins with few images say little.",
    )
    images = ChartData(
        "Confidence",
        "Images by confidence",
        confidence,
        AxisData("images", limits=(0, max(counts) * 1.05)),
        bars=Bars(edges, counts, "grey", held),
        note="How confident the model is in its answers.",
    )
    return accuracy, images


def psnr_histogram(image_psnr: Tensor, psnr: float, pca_psnr: float) -> ChartData:
    """The distribution of the images' PSNR, float (N,) in dB, with that of the mean squared error, and PCA's."""
    values = [*image_psnr.tolist(), psnr, pca_psnr]
    room = (max(values) - min(values)) * 0.05 or 1
    low, high = min(values) - room, max(values) + room
    counts = image_psnr.histc(_PSNR_BINS, low, high).int().tolist()
    edges = torch.linspace(low, high, _PSNR_BINS + 1).tolist()
    top = max(counts) * 1.05
    return ChartData(
        "PSNR of the images",
        "Images by their PSNR",
        AxisData("PSNR of an image (dB)", limits=(low, high)),
        AxisData("images", limits=(0, top)),
        [
            Line([(psnr, 0), (psnr, top)], "orange", f"of the mean squared error, {psnr:.2f} dB"),
            Line([(pca_psnr, 0), (pca_psnr, top)], "grey", f"of PCA's, {pca_psnr:.2f} dB", dashed=True),
        ],
        Bars(
            edges,
            counts,
            "blue",
            [
                f"{left:.1f} to {right:.1f} dB: {count:,} images" if count else ""
                for (left, right), count in zip(pairwise(edges), counts, strict=True)
            ],
        ),
    )


def rate_distortion(points: Sequence[RateDistortionPoint], images: int) -> ChartData:
    """PSNR against bytes per image, a line for each codec, measured on N images (`images`)."""
    bits = [point.setting for point in points if point.codec == "latents"]
    codecs: dict[str, tuple[str, Colour]] = {
        "latents": (f"latents, {min(bits)} to {max(bits)} bits each", "orange"),
        "jpeg": ("JPEG", "grey"),
        "webp": ("WebP", "blue"),
    }
    return ChartData(
        "Rate and distortion",
        "PSNR by bytes",
        AxisData("bytes per image", log=True),
        AxisData("PSNR of the mean squared error (dB)"),
        [
            Line(
                [(point.size, point.psnr) for point in points if point.codec == codec],
                colour,
                label,
                lambda x, y: f"{x:.0f} bytes, {y:.2f} dB",
            )
            for codec, (label, colour) in codecs.items()
        ],
        note=f"{images:,} images; JPEG and WebP without headers and containers.",
    )
