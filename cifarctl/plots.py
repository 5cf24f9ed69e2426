"""Every figure. Functions return a Matplotlib figure; `save` writes it as PNG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from cifarctl.evaluation import psnr, reliability_bins
from cifarctl.figure_text import drawable
from cifarctl.files import atomic_path
from cifarctl.rate import RatePoint

_BLUE, _ORANGE, _GREY = "#1f6fb2", "#d9711c", "#6b7280"
_DPI = 150
_NAME_WIDTH = 18


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG, atomically. Raises OSError."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI)


def curves(history: Sequence[Mapping[str, float]], metric: str) -> Figure:
    """Training and validation loss on a log scale, and the validation `metric` ("accuracy" or "psnr"), by epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, metric_axes = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    # One point makes no line.
    style: dict[str, Any] = {"marker": "o", "markersize": 4 if len(epochs) < 30 else 0}
    train_loss = [record.get("train_loss", math.nan) for record in history]  # nothing is trained before epoch 1
    loss_axes.plot(epochs, train_loss, color=_GREY, label="train", **style)
    loss_axes.plot(epochs, [record["val_loss"] for record in history], color=_BLUE, label="validation", **style)
    loss_axes.set(yscale="log", xlabel="epoch", ylabel="loss", title="Loss")
    for which in (loss_axes.yaxis.set_major_formatter, loss_axes.yaxis.set_minor_formatter):
        which(_PlainLogFormatter(minor_thresholds=(1.5, 0.6)))
    loss_axes.legend(frameon=False)
    loss_axes.grid(alpha=0.25, which="both")

    values = [record[f"val_{metric}"] for record in history]
    metric_axes.plot(epochs, values, color=_ORANGE, **style)
    best = max(range(len(values)), key=lambda i: (values[i], i))
    shown = f"{values[best]:.2%}" if metric == "accuracy" else f"{values[best]:.2f} dB"
    label = "accuracy" if metric == "accuracy" else "PSNR (dB)"
    metric_axes.set(xlabel="epoch", ylabel=label, title=f"Validation: best {shown}, epoch {epochs[best]}")
    if metric == "accuracy":
        metric_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    metric_axes.grid(alpha=0.25)
    for axes in (loss_axes, metric_axes):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """A confusion matrix: counts, coloured by their part of the row. Rows are the truth."""
    counts = np.asarray(matrix)
    n = len(classes)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = min(max(5.0, 0.62 * n + 2.0), 24.0)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels, font = drawable(classes)
    axes.set_xticks(range(n), labels, rotation=45, ha="right", rotation_mode="anchor", **font)
    axes.set_yticks(range(n), labels, **font)
    accuracy = counts.trace() / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{counts.sum():,} images, accuracy {accuracy:.2%}")
    if n <= 25:  # beyond that the numbers would not fit their cells
        for row in range(n):
            for column in range(n):
                colour = "white" if shares[row, column] > 0.5 else "black" if counts[row, column] else "#c3c8d0"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="part of the true class")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def reconstructions(originals: Tensor, outputs: Tensor, names: Sequence[str] | None = None) -> Figure:
    """A labelled grid: original, reconstruction with its PSNR, and their difference.

    originals: uint8 (N, 3, 32, 32). outputs: float (N, 3, 32, 32) in [0, 1]. names: a label for each column.
    """
    count = len(originals)
    per_band = min(count, 12)
    bands = -(-count // per_band)
    truth = originals.float() / 255
    decibels = psnr((outputs - truth).square().flatten(1).mean(1))
    # Mid-grey is no difference; twice the contrast, since good ones are faint.
    difference = ((outputs - truth) + 0.5 + (outputs - truth)).clamp(0, 1)

    titles, font = drawable(names or (), _NAME_WIDTH)
    width = 1.6 + 1.0 * per_band
    margin = ConstrainedLayoutEngine(rect=(0.1 / width, 0, 1 - 0.1 / width, 1))  # else the labels touch the edge
    figure = Figure(figsize=(width, 3.75 * bands), layout=margin)
    grid = np.atleast_2d(figure.subplots(3 * bands, per_band, squeeze=False))
    for axes in grid.flat:
        axes.axis("off")
    for i in range(count):
        band, column = divmod(i, per_band)
        for row, picture in enumerate((truth[i], outputs[i], difference[i])):
            axes = grid[3 * band + row, column]
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            if row == 0 and titles:
                axes.set_title(titles[i], fontsize=7, **font)
            if row == 1:
                axes.set_title(f"{decibels[i]:.1f} dB", fontsize=8)
    for row in range(3 * bands):
        label = ("original", "reconstruction", "difference\n(×2)")[row % 3]
        axes = grid[row, 0]
        axes.text(-0.12, 0.5, label, ha="right", va="center", fontsize=9, transform=axes.transAxes)
    return figure


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Figure:
    """Accuracy against confidence in equal bins of confidence, and how many images each bin holds.

    probabilities: float (N, classes). labels: int64 (N,).
    """
    count, accuracy, _ = reliability_bins(probabilities, labels, bins)
    edges = torch.linspace(0, 1, bins + 1)
    middle = ((edges[1:] + edges[:-1]) / 2).numpy()

    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = (count > 0).numpy()
    upper.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="calibrated")
    upper.bar(middle[filled], accuracy.numpy()[filled], width=0.9 / bins, color=_BLUE, label="accuracy of the bin")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title="Reliability")
    upper.legend(frameon=False, loc="upper left")
    lower.bar(middle, count.numpy(), width=0.9 / bins, color=_GREY)
    lower.set(xlabel="confidence", ylabel="images")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def mistakes(images: Tensor, labels: Tensor, probabilities: Tensor, classes: Sequence[str], count: int = 40) -> Figure:
    """The most confident mistakes: the true class above each image, the predicted one and its confidence below.

    images: uint8 (N, 3, 32, 32). labels: int64 (N,). probabilities: float (N, classes).
    """
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:count].tolist()
    columns = 10 if len(worst) > 10 else max(len(worst), 5)  # fewer would cut the title off
    rows = max(-(-len(worst) // columns), 1)
    figure = Figure(figsize=(1.25 * columns + 0.4, 1.75 * rows + 0.5), layout="constrained")
    figure.suptitle(f"Most confident of {len(wrong):,} mistakes: true class above, prediction below", fontsize=10)
    names, font = drawable(classes, _NAME_WIDTH)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, i in zip(grid.flat, worst, strict=False):
        axes.imshow(images[i].permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(names[int(labels[i])], fontsize=8, **font)
        below = f"{names[int(predicted[i])]}\n{confidence[i]:.0%}"
        axes.set_xlabel(below, fontsize=8, color=_ORANGE, **font)
    return figure


def rate_curve(points: Sequence[RatePoint], images: int) -> Figure:
    """PSNR against bytes an image, a line for each codec."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    names = {"latents": "latents, 2 to 8 bits each", "jpeg": "JPEG", "webp": "WebP"}
    for (codec, name), color in zip(names.items(), (_ORANGE, _GREY, _BLUE), strict=True):
        line = [(point.size, point.psnr) for point in points if point.codec == codec]
        axes.plot(*zip(*line, strict=True), marker="o", markersize=4, color=color, label=name)
    last = max((point for point in points if point.codec == "latents"), key=lambda point: point.setting)
    axes.annotate("8 bits", (last.size, last.psnr), (4, -12), textcoords="offset points", fontsize=8, color=_ORANGE)
    axes.set(
        xscale="log",
        xlabel="bytes an image, without headers and containers",
        ylabel="PSNR of the mean squared error (dB)",
        title=f"Rate and quality, {images:,} images",
    )
    axes.xaxis.set_major_formatter(_PlainLogFormatter(minor_thresholds=(2, 0.5)))
    axes.xaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(2, 0.5)))
    axes.legend(frameon=False)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def psnr_histogram(image_psnr: Tensor, psnr: float, pca_psnr: float) -> Figure:
    """How the images' PSNR, float (N,) in dB, are distributed, with that of the mean error, and PCA's."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.hist(image_psnr.numpy(), bins=60, color=_BLUE)
    axes.axvline(psnr, color=_ORANGE, label=f"of the mean error, {psnr:.2f} dB")
    axes.axvline(pca_psnr, color=_GREY, linestyle="--", label=f"of PCA's, {pca_psnr:.2f} dB")
    axes.set(xlabel="PSNR of an image (dB)", ylabel="images")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


class _PlainLogFormatter(LogFormatter):
    """Labels as 0.9 where LogFormatter writes 9e-01; it still chooses which ticks get one."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""
