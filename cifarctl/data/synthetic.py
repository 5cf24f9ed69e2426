"""Ten classes of drawn shapes that need no download: a smoke test of the whole pipeline, not a benchmark."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cifarctl.data.dataset import Dataset
from cifarctl.data.kind import DataKind, Stored

CLASSES = ("disc", "ring", "square", "frame", "triangle", "cross", "bars", "columns", "checks", "dots")
TRAIN_SIZE, TEST_SIZE = 10_000, 1_000


class Synthetic(DataKind):
    """The drawn shapes. The seed says all of them."""

    @classmethod
    def recognises(cls, name: str) -> bool:
        """Whether `name` is "synthetic"."""
        return name == "synthetic"

    def read(self, split: Stored) -> Dataset:
        """Draw the split."""
        if split == "train":
            return draw_synthetic(TRAIN_SIZE, self.seed)
        return draw_synthetic(TEST_SIZE, self.seed + 1_000_003)  # another stream than the training images'

    def describe(self) -> dict[str, Any]:
        """Nothing beside the name and the seed."""
        return {}


@lru_cache(maxsize=2)  # train and val come from the same call, which takes a second
def draw_synthetic(n: int, seed: int) -> Dataset:
    """Draw `n` images, about the same number of each class, from `seed`.

    Each shows a figure of random size, place, orientation and colour, on a background with a gradient and noise, so
    that neither colour nor any single pixel reveals the class.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape).uniform_(low, high, generator=generator)

    labels = torch.arange(n) % len(CLASSES)
    labels = labels[torch.randperm(n, generator=generator)]

    axis = torch.linspace(-1, 1, 32)
    x = axis - uniform(-0.35, 0.35, 1, 1)  # (N, 1, 32)
    y = axis[:, None] - uniform(-0.35, 0.35, 1, 1)  # (N, 32, 1)
    angle = uniform(-0.35, 0.35, 1, 1)
    u = x * angle.cos() + y * angle.sin()  # the figure's own coordinates, (N, 32, 32)
    v = y * angle.cos() - x * angle.sin()
    size = uniform(0.45, 0.8, 1, 1)
    period = uniform(4.5, 8.0, 1, 1) * torch.pi
    mask = torch.empty(n, 1, 32, 32)
    for label, name in enumerate(CLASSES):
        drawn = labels == label
        mask[drawn, 0] = _figure(name, u[drawn], v[drawn], size[drawn], period[drawn]).float()

    background = uniform(0, 1, 3, 1, 1)
    contrast = uniform(0.25, 0.6, 3, 1, 1)
    # Brighter or darker than the background in every channel, whichever fits into [0, 1].
    colour = torch.where(background > 0.5, background - contrast, background + contrast)
    gradient = uniform(-0.2, 0.2, 1, 1, 1) * axis + uniform(-0.2, 0.2, 1, 1, 1) * axis[:, None]
    noise = torch.randn(n, 3, 32, 32, generator=generator) * uniform(0.02, 0.12, 1, 1, 1)
    images = background + mask * (colour - background) + gradient + noise
    return Dataset((images.clamp(0, 1) * 255).round().to(torch.uint8), labels, CLASSES)


def _figure(name: str, u: Tensor, v: Tensor, size: Tensor, period: Tensor) -> Tensor:
    """The pixels of the figure, bool (M, 32, 32). u, v: its own coordinates, (M, 32, 32). size, period: (M, 1, 1)."""
    radius, side = (u**2 + v**2).sqrt(), torch.maximum(u.abs(), v.abs())
    match name:
        case "disc":
            return radius < size
        case "ring":
            return (radius < size) & (radius > 0.6 * size)
        case "square":
            return side < size
        case "frame":
            return (side < size) & (side > 0.65 * size)
        case "triangle":
            return (v < size * 0.8) & (u.abs() < (v + size) * 0.6)
        case "cross":
            return (torch.minimum(u.abs(), v.abs()) < 0.22 * size) & (side < size)
        case "bars":
            return (v * period).sin() > 0
        case "columns":
            return (u * period).sin() > 0
        case "checks":
            return (u * period).sin() * (v * period).sin() > 0
    return ((u * period).sin() > 0.2) & ((v * period).sin() > 0.2)  # dots
