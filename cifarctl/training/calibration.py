"""Make a classifier's confidence mean what it says."""

import torch
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.hardware import Precision
from cifarctl.inference import predict_logits
from cifarctl.models.base import Classifier, calibrated


def calibrate(model: Classifier, val: Dataset, precision: Precision) -> None:
    """Set the model's temperature and smoothing to those that fit `val` best.

    They are fitted without test-time augmentation, and serve with it as well: for the pretrained classifier, fits with
    and without were the same.
    """
    logits = predict_logits(model, val.images, precision=precision, calibrate=False)
    temperature, smoothing = fit_calibration(logits, val.labels)
    model.temperature.fill_(temperature)
    model.smoothing.fill_(smoothing)


def fit_calibration(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The temperature and the smoothing with which `calibrated` logits give `labels` the greatest likelihood.

    logits: uncalibrated, float (N, classes). labels: int64 (N,). Label smoothing and mixed images make a model
    underconfident, overfitting makes it overconfident. A temperature alone (Guo et al., "On Calibration of Modern
    Neural Networks", 2017) cannot undo label smoothing: when it is right for confident predictions, it makes the others
    overconfident.

    Each image counts as seen (N + 1) / (N + 2) right and the rest wrong, as Platt's targets do ("Probabilistic Outputs
    for Support Vector Machines", 1999): nine images that all are right are no reason to be certain of every answer.
    """
    logits, labels = logits.cpu().double(), labels.cpu()  # mps has no float64

    def losses(exponents: list[float], smoothing: float) -> list[float]:
        temperatures = torch.tensor(exponents, dtype=torch.float64).exp2()[:, None, None]
        logs = calibrated(logits, temperatures, torch.tensor(smoothing)).log_softmax(-1)  # (exponents, N, classes)
        right = logs[:, torch.arange(len(labels)), labels]
        wrong = (1 - right.exp()).clamp_min(1e-12).log()
        return torch.lerp(right, wrong, 1 / (len(labels) + 2)).mean(1).neg().tolist()

    # A grid search, then finer ones, each around the best point so far.
    exponent, smoothing, step = 0.0, 0.15, 0.5
    for count in (6, 3, 3, 3):
        exponents = [exponent + step * i for i in range(-count, count + 1)]
        smoothings = sorted({min(max(smoothing + step / 5 * i, 0.0), 0.3) for i in range(-2, 3)})
        fits = [(loss, e, s) for s in smoothings for loss, e in zip(losses(exponents, s), exponents, strict=True)]
        _, exponent, smoothing = min(fits)
        step /= 3
    return 2.0**exponent, smoothing
