"""Metrics and models in words, the same in the terminal and in a report: what they are called, how a value is written
and what it says.
"""

from pathlib import Path
from typing import Any

from cifarctl.files import PRETRAINED
from cifarctl.names import printable

METRIC_NAMES = {
    "accuracy": "accuracy",
    "accuracy_ci95": "accuracy, 95 % interval",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "nll": "negative log-likelihood",
    "ece": "expected calibration error",
    "mse": "mean squared error",
    "psnr": "PSNR of the mean squared error",
    "psnr_image_mean": "PSNR, mean of the images'",
    "psnr_chroma": "PSNR of the colours, Cb and Cr",
    "ssim": "SSIM, mean of the images'",
    "latent_floats": "latent floats",
    "compression_ratio": "compression ratio",
    "pca_psnr": "PSNR of PCA at that size",
    "pca_psnr_chroma": "PSNR of PCA's colours",
    "pca_ssim": "SSIM of PCA at that size",
}
COMPARED = {  # the columns of a table of several models, by their kind; the first metric is what counts most
    "classifier": {"accuracy": "accuracy", "accuracy_ci95": "95 %", "macro_f1": "F1", "nll": "NLL", "ece": "ECE"},
    "autoencoder": {
        "psnr": "PSNR",
        "psnr_image_mean": "mean",
        "ssim": "SSIM",
        "pca_psnr": "PCA",
        "latent_floats": "floats",
    },
}
METRIC_MEANINGS = {
    "accuracy": "The fraction of images whose most likely label is the right one.",
    "balanced_accuracy": "The mean of the classes' recall: every class that has images counts the same.",
    "macro_f1": "The mean of the classes' F1, the harmonic mean of precision and recall, over classes with images.",
    "nll": "What the true labels' probabilities cost on average, in nats. Lower is better; certain and right is 0.",
    "ece": "How far confidence is from accuracy, on average over 15 bins of confidence. Lower is better.",
    "psnr": "Peak signal-to-noise ratio over all pixels. Higher is better; 3 dB more is half the squared error.",
    "pca_psnr": "What the best linear autoencoder with as many floats reaches: PCA, fitted on the training images.",
    "psnr_image_mean": "Each image's own PSNR, averaged: easy images count as much as hard ones.",
    "ssim": "Structural similarity: contrast and structure in a window around each pixel. A perfect copy has 1.",
}


def format_metric(name: str, value: Any) -> str:
    """A metric's value with its unit."""
    if name == "accuracy_ci95":
        return f"{value[0]:.2%} to {value[1]:.2%}"
    if name in ("accuracy", "balanced_accuracy"):
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


def format_score(value: float | None) -> str:
    """A class's precision, recall or F1; a dash where it has none."""
    return "–" if value is None else f"{value:.3f}"


def format_difference(metric: str, value: float) -> str:
    """A difference of accuracies in percentage points, or of PSNR in dB, always with its sign."""
    return f"{100 * value:+.2f} points" if metric == "accuracy" else f"{value:+.2f} dB"


def format_p_value(value: float) -> str:
    """A p-value with its relation sign."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}"


def model_name(path: str) -> str:
    """A run's folder rather than the file in it, and no path of the installation."""
    file = Path(path)
    if file.parent == PRETRAINED:
        return f"the pretrained {file.stem}"
    return printable(str(file.parent) if file.name == "model.safetensors" and file.parent.name else path)
