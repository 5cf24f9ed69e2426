"""Results as rich tables that fit 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

_NAMES = {
    "accuracy": "accuracy",
    "accuracy_ci95": "accuracy, 95 % interval",
    "macro_f1": "macro F1",
    "nll": "negative log-likelihood",
    "ece": "expected calibration error",
    "mse": "mean squared error",
    "psnr": "PSNR of the mean squared error",
    "psnr_image_mean": "PSNR, mean of the images'",
    "ssim": "SSIM, mean of the images'",
    "latent_floats": "latent floats",
    "compression_ratio": "compression ratio",
    "pca_psnr": "PSNR of PCA at that size",
}


def metrics_table(title: str, metrics: Mapping[str, Any], more: Mapping[str, str]) -> Group:
    """Metrics by their full names, then `more` rows as they are."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in metrics.items():
        table.add_row(
            _NAMES.get(name, name), format_metric(name, value), style="bold" if name in ("accuracy", "psnr") else ""
        )
    for name, value in more.items():
        table.add_row(name, value)
    return Group(Text(title, style="bold"), "", table)


def format_metric(name: str, value: Any) -> str:
    """A metric's value with its unit."""
    if name == "accuracy_ci95":
        return f"{value[0]:.2%} to {value[1]:.2%}"
    if name == "accuracy":
        return f"{value:.2%}"
    if "psnr" in name:
        return f"{value:.2f} dB"
    if name == "latent_floats":
        return str(value)
    if name == "compression_ratio":
        return f"{value:g} : 1"
    if name == "mse":
        return f"{value:.6f}"
    return f"{value:.4f}"


def per_class_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Precision, recall and F1 of each class."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="ellipsis")
    for name in ("precision", "recall", "f1", "support"):
        table.add_column(name, justify="right")
    for row in rows:
        scores = (f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))
        table.add_row(row["label"], *scores, f"{row['support']:,}")
    return table


def confusion_table(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    """Counts, coloured by their part of the row; rows are the truth. Column names are cut to five letters."""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title="rows: truth, columns: prediction",
        title_justify="left",
    )
    table.add_column("", overflow="ellipsis", max_width=14)
    for name in classes:
        table.add_column(name[:5], justify="right")
    for label, row in zip(classes, matrix, strict=True):
        total = max(sum(row), 1)
        cells = [
            Text(str(count), style=_shade(count / total, hit=classes[i] == label) if count else "dim")
            for i, count in enumerate(row)
        ]
        table.add_row(label, *cells)
    return table


def _shade(share: float, *, hit: bool) -> Style:
    strength = int(60 + 150 * min(share if hit else 5 * share, 1.0))
    return Style(color=f"rgb({60 if hit else strength},{strength if hit else 60},60)", bold=hit)
