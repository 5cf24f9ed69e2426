"""Make a classifier's confidence mean what it says."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.hardware import Precision
from cifarctl.inference import predict_logits
from cifarctl.models.base import Classifier


def calibrate(model: Classifier, val: Dataset, precision: Precision) -> None:
    """Set the model's temperature to the one that fits `val` best."""
    model.temperature.fill_(1.0)
    model.temperature.fill_(fit_temperature(predict_logits(model, val.images, precision=precision), val.labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The number that logits, float (N, classes), must be divided by for the least negative log-likelihood of `labels`,
    int64 (N,). Label smoothing trains for too little confidence, overfitting for too much; this undoes both.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    # The likelihood has one maximum in the inverse temperature, so a fine grid around a coarse one's best finds it.
    logits, labels = logits.cpu().double(), labels.cpu()  # mps has no float64
    centre, width = 1.0, 3.0
    for _ in range(4):
        grid = centre * torch.logspace(-width, width, 25, base=2.0, dtype=torch.float64)
        losses = torch.stack([F.cross_entropy(logits / temperature, labels) for temperature in grid])
        centre, width = grid[losses.argmin()].item(), width / 8
    return centre
