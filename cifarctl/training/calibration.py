"""Make a classifier's confidence mean what it says."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.hardware import Precision
from cifarctl.inference import predict_logits
from cifarctl.models.base import Classifier, calibrated


def calibrate(model: Classifier, val: Dataset, precision: Precision) -> None:
    """Set the model's temperature and smoothing to those that fit `val` best, without and with test-time
    augmentation.
    """
    logits = [predict_logits(model, val.images, tta=tta, precision=precision, calibrate=False) for tta in (False, True)]
    temperature, smoothing = fit_calibration(torch.cat(logits), val.labels.repeat(2))
    model.temperature.fill_(temperature)
    model.smoothing.fill_(smoothing)


def fit_calibration(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The temperature and the smoothing with which `calibrated` logits give `labels` the greatest likelihood.

    logits: as they are trained, float (N, classes). labels: int64 (N,). Label smoothing and mixed images train for too
    little confidence, overfitting for too much. A temperature alone (Guo et al., "On Calibration of Modern Neural
    Networks", 2017) cannot undo smoothing: it makes unsure answers too sure by the time that sure ones are right.
    """
    logits, labels = logits.cpu().double(), labels.cpu()  # mps has no float64

    def loss(exponent: float, smoothing: float) -> float:
        temperature = torch.tensor(2.0**exponent)
        return F.cross_entropy(calibrated(logits, temperature, torch.tensor(smoothing)), labels).item()

    # A grid, then finer ones around the best of the one before.
    exponent, smoothing, step = 0.0, 0.15, 0.5
    for count in (6, 3, 3, 3):
        exponents = [exponent + step * i for i in range(-count, count + 1)]
        smoothings = sorted({min(max(smoothing + step / 5 * i, 0.0), 0.3) for i in range(-2, 3)})
        _, exponent, smoothing = min((loss(e, s), e, s) for e in exponents for s in smoothings)
        step /= 3
    return 2.0**exponent, smoothing
