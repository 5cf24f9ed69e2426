"""Measurements and models in words, the same in the terminal and in a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarctl.files import PRETRAINED
from cifarctl.names import printable


def counted(count: int, noun: str) -> str:
    """How many, as "1 file" or "1,000 files"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_score(value: float | None) -> str:
    """A class's precision, recall or F1; a dash if it has none."""
    return "–" if value is None else f"{value:.3f}"


def format_p_value(value: float) -> str:
    """A p-value with its relation sign."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}"


def model_name(path: str) -> str:
    """A run's folder rather than the file in it, and no path of the installation."""
    file = Path(path)
    if file.parent == PRETRAINED:
        return f"the pretrained {file.stem}"
    return printable(str(file.parent) if file.name == "model.safetensors" and file.parent.name else path)


def with_article(noun: str) -> str:
    """As "an autoencoder" or "a classifier"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def measured_on(n: int, split: str, data: str) -> str:
    """On what was measured, as "10,000 test images of cifar10"."""
    note = " (drawn shapes: a smoke test, no benchmark)" if data == "synthetic" else ""
    return f"{n:,} {split} images of {data}{note}"


def unfamiliar_rows(result: Mapping[str, Any]) -> dict[str, str]:
    """What `evaluate --unfamiliar` measured, by title; nothing if it was not asked for. result: as JSON shows it."""
    if (measured := result.get("unfamiliar")) is None:
        return {}
    return {
        "unfamiliar images": f"{measured['n']:,}",
        "AUROC (1: told apart, 0.5: not at all)": f"{measured['auroc']:.4f}",
        "accepted, with 95 % of the split": f"{measured['false_positives_at_95']:.1%}",
    }
