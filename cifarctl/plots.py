"""Every figure. Functions return a Matplotlib figure; `save` writes it as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from cifarctl import figure_data
from cifarctl.figure_data import ChartData, Colour
from cifarctl.figure_text import drawable
from cifarctl.files import atomic_path
from cifarctl.model_outputs import confident_mistakes, psnr
from cifarctl.rate_distortion import RateDistortionPoint

_COLOURS: dict[Colour, str] = {"blue": "#1f6fb2", "orange": "#d9711c", "grey": "#6b7280"}
_DPI = 150
_NAME_WIDTH, _GRID_NAME_WIDTH = 18, 15
_LABEL_WIDTH = 60
_MOST_LABELS = 160  # of an axis: more would lie on each other, so every second class is named, or every third


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG, atomically. Raises OSError."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI)


def curves(history: Sequence[Mapping[str, float]], metric: str) -> Figure:
    """Training and validation loss, and the validation `metric` ("accuracy" or "psnr"), by epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, data in zip(figure.subplots(1, 2), figure_data.learning_curves(history, metric), strict=True):
        _draw(axes, data)
        axes.set_title(": ".join(filter(None, (data.title, data.note.lower()))), fontsize=11)
    return figure


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """A confusion matrix: counts, coloured by their fraction of the row. Rows are the truth."""
    counts = np.asarray(matrix)
    n = len(classes)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = min(max(5.0, 0.62 * n + 2.0), 24.0)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    step = -(-n // _MOST_LABELS)
    labels, font = drawable(classes[::step], _LABEL_WIDTH)
    axes.set_xticks(range(0, n, step), labels, rotation=45, ha="right", rotation_mode="anchor", **font)
    axes.set_yticks(range(0, n, step), labels, **font)
    accuracy = counts.trace() / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{counts.sum():,} images, accuracy {accuracy:.2%}")
    if n <= 25:  # beyond that the numbers would not fit their cells
        for row in range(n):
            for column in range(n):
                colour = "white" if shares[row, column] > 0.5 else "black" if counts[row, column] else "#c3c8d0"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true class")
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

    titles, font = drawable(names or (), _GRID_NAME_WIDTH)
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


def reliability(probabilities: Tensor, labels: Tensor) -> Figure:
    """Accuracy against confidence in equal bins of confidence, and how many images each bin holds.

    probabilities: float (N, classes). labels: int64 (N,).
    """
    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy, images = figure_data.reliability(probabilities, labels)
    _draw(upper, accuracy)
    _draw(lower, images)
    upper.set(title=accuracy.title, xlabel="")
    return figure


def mistakes(images: Tensor, labels: Tensor, probabilities: Tensor, classes: Sequence[str], count: int = 40) -> Figure:
    """The most confident mistakes: the true class above each image, the predicted one and its confidence below.

    images: uint8 (N, 3, 32, 32). labels: int64 (N,). probabilities: float (N, classes).
    """
    confidence, predicted = probabilities.max(1)
    wrong = confident_mistakes(probabilities, labels)
    worst = wrong[:count].tolist()
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
        axes.set_xlabel(below, fontsize=8, color=_COLOURS["orange"], **font)
    return figure


def rate_distortion(points: Sequence[RateDistortionPoint], images: int) -> Figure:
    """PSNR against bytes per image, a line for each codec, measured on N images (`images`)."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    data = figure_data.rate_distortion(points, images)
    _draw(axes := figure.subplots(), data)
    axes.set_title(f"{data.title}: {data.note}", fontsize=9)
    return figure


def psnr_histogram(image_psnr: Tensor, psnr: float, pca_psnr: float) -> Figure:
    """The distribution of the images' PSNR, float (N,) in dB, with that of the mean squared error, and PCA's."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    _draw(figure.subplots(), figure_data.psnr_histogram(image_psnr, psnr, pca_psnr))
    return figure


def _draw(axes: Axes, data: ChartData) -> None:
    """Draw any chart, without its title and note."""
    if bars := data.bars:
        edges, heights = np.asarray(bars.edges), np.asarray(bars.heights)
        shown = np.asarray([bool(description) for description in bars.descriptions])
        axes.bar(
            (edges[:-1] + edges[1:])[shown] / 2,
            heights[shown],
            width=0.9 * np.diff(edges)[shown],
            color=_COLOURS[bars.colour],
            label=bars.label or None,
        )
    for line in data.lines:
        axes.plot(
            *zip(*line.points, strict=True) if line.points else ((), ()),
            color=_COLOURS[line.colour],
            linestyle="--" if line.dashed else "-",
            marker="o" if line.describe else "",  # one point makes no line
            markersize=4 if len(line.points) < 30 else 0,
            label=line.label or None,
        )
    for axis, scale, place in (
        (axes.xaxis, data.x, axes.set_xlim),
        (axes.yaxis, data.y, axes.set_ylim),
    ):
        axis.set_label_text(scale.label)
        if scale.log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_formatter(_PlainLogFormatter(minor_thresholds=(2, 0.6)))
            axis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(2, 0.6)))
        if scale.whole:
            axis.set_major_locator(MaxNLocator(integer=True))
        if scale.is_fraction:
            axis.set_major_formatter(PercentFormatter(1.0))
        if scale.limits:
            place(*scale.limits)
    if any(line.label for line in data.lines):
        axes.legend(framealpha=0.85, edgecolor="none")
    if not data.bars:
        axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)


class _PlainLogFormatter(LogFormatter):
    """Labels as 0.9 where LogFormatter writes 9e-01; it still chooses which ticks get one."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""
