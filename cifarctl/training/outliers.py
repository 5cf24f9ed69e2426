"""Fit a classifier's typicality: training images against outliers that are made from them, or drawn.

Outlier exposure (Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", 2019) without other data, and
without changing the classifier: a linear discriminant on what its layers see.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.hardware import Precision, algebra_device
from cifarctl.inference import summaries
from cifarctl.models.base import Classifier
from cifarctl.typicality import Typicality, standardized

MIN_VAL = 50  # fewer validation images say nothing of the lower quantiles
_IMAGES = 4000  # of training, and as many outliers
_QUANTILES = 501
_RIDGE = 0.1
_VARIED = 0.25  # the fraction of training images that are varied
_GREY = 0.3  # the fraction of outliers without colour
_GREY_WEIGHTS = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R BT.601


def fit_typicality(model: Classifier, train: Dataset, val: Dataset, precision: Precision) -> None:
    """Set the model's typicality; None if `val` has fewer images than `MIN_VAL`. The draw does not depend on a seed."""
    model.typicality = None
    if len(val) < MIN_VAL:
        return
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(train), generator=generator)[:_IMAGES]
    images = train.images[drawn.to(train.images.device)]
    outliers = make_outliers(images.cpu(), generator).to(images.device)
    familiar = vary(images.cpu(), generator).to(images.device)

    device = algebra_device(images.device)
    seen, odd = (summaries(model, each, precision=precision).to(device) for each in (familiar, outliers))
    mean, scale = seen.mean(0), seen.std(0) + 1e-3
    weight = _discriminant(standardized(seen, mean, scale), standardized(odd, mean, scale))
    fitted = Typicality(mean.cpu(), scale.cpu(), weight.cpu(), torch.empty(0))
    scores = fitted.scores(summaries(model, val.images, precision=precision).cpu())
    count = min(_QUANTILES, len(scores))
    quantiles = scores.double().quantile(torch.linspace(0, 1, count, dtype=torch.float64)).float()
    model.typicality = Typicality(fitted.mean, fitted.scale, fitted.weight, quantiles)


def make_outliers(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures that show none of the classes, about as many as `images`; both uint8 (N, 3, 32, 32), on the CPU.

    From the images: strong zooms, mixes, pieces in another order, four in one, random phases, patterns of small pieces.
    Drawn: noise with and without structure, and figures.
    """
    kinds = (_zooms, _mixes, _jigsaws, _collages, _random_phases, _patterns, _smooth_noise, _noise, _figures)
    count = -(-len(images) // len(kinds))

    def pick() -> Tensor:
        return images[torch.randint(len(images), (count,), generator=generator)].float() / 255

    made = torch.cat([kind(pick(), pick(), generator) for kind in kinds])
    grey = (made * _GREY_WEIGHTS).sum(1, keepdim=True)
    made = torch.where(_uniform(made, generator) < _GREY, grey, made)
    return (made.clamp(0, 1) * 255).round().byte()


def vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, uint8 (N, 3, 32, 32), a quarter of them as other cameras and programs might give them: with another
    contrast, brightness and sharpness, a little noise, or grey. Without them the score is one of noise and of how a
    picture was scaled: noise of 2 % then made 95 of 100 validation images unusual.
    """
    x = images.float() / 255
    x = torch.where(_uniform(x, generator) < 0.5, x, x.flip(3))
    mean = x.mean((1, 2, 3), keepdim=True)
    varied = mean + (x - mean) * _uniform(x, generator, 0.6, 1.2) + _uniform(x, generator, -0.1, 0.1)
    smooth = F.avg_pool2d(F.pad(varied, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    varied = varied + (varied - smooth) * _uniform(x, generator, -0.3, 1)
    varied = varied + torch.randn(x.shape, generator=generator) * _uniform(x, generator, 0, 0.03)
    grey = (varied * _GREY_WEIGHTS).sum(1, keepdim=True)
    varied = torch.where(_uniform(x, generator) < 0.1, grey, varied)
    return (torch.where(_uniform(x, generator) < _VARIED, varied, x).clamp(0, 1) * 255).round().byte()


def _discriminant(familiar: Tensor, outliers: Tensor) -> Tensor:
    """The direction, float32 (D,), that separates the two best: Fisher's, with a ridge. Both float (N, D)."""
    covariance = (torch.cov(familiar.T, correction=0) + torch.cov(outliers.T, correction=0)).double() / 2
    difference = (familiar.mean(0) - outliers.mean(0)).double()
    covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean() + 1e-6)
    return torch.linalg.solve(covariance.cpu(), difference.cpu()).float()


def _uniform(x: Tensor, generator: torch.Generator, low: float = 0, high: float = 1, channels: int = 1) -> Tensor:
    """One number per image, (N, channels, 1, 1)."""
    return torch.empty(len(x), channels, 1, 1).uniform_(low, high, generator=generator)


def _sample(x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """The images at columns (N, 32) and rows (N, 32), in pixels from the upper left corner."""
    side = x.shape[-1]
    columns = across[:, None, :].expand(-1, side, -1)
    rows = down[:, :, None].expand(-1, -1, side)
    grid = torch.stack((columns, rows), 3) * 2 / side - 1
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)


def _zooms(x: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    side = x.shape[-1]
    size = _uniform(x, generator, 6, 16).view(-1, 1)
    places = (torch.arange(side) + 0.5) / side * size
    across, down = (_uniform(x, generator).view(-1, 1) * (side - size) + places for _ in range(2))
    return _sample(x, across, down)


def _patterns(x: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """Small pieces side by side, each the mirror image of its neighbours in half of the pictures."""
    side = x.shape[-1]
    size = _uniform(x, generator, 4, 12).view(-1, 1)
    place = (torch.arange(side) + 0.5).expand(len(x), -1)
    mirrored = size - (place % (2 * size) - size).abs()
    places = torch.where(_uniform(x, generator).view(-1, 1) < 0.5, mirrored, place % size)
    across, down = (_uniform(x, generator).view(-1, 1) * (side - size) + places for _ in range(2))
    return _sample(x, across, down)


def _mixes(x: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    share = _uniform(x, generator, 0.35, 0.65)
    return share * x + (1 - share) * other


def _jigsaws(x: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """Square pieces of 4, 8 or 16 pixels, in a random order."""
    mixed = []
    for part, size in zip(x.tensor_split(3), (4, 8, 16), strict=True):
        pieces = F.unfold(part, size, stride=size)
        order = torch.rand(len(part), pieces.shape[2], generator=generator).argsort(1)
        mixed.append(F.fold(pieces.gather(2, order[:, None].expand_as(pieces)), x.shape[-1], size, stride=size))
    return torch.cat(mixed)


def _collages(x: Tensor, other: Tensor, _: torch.Generator) -> Tensor:
    quarters = [F.avg_pool2d(each, 2) for each in (x, other, x.roll(1, 0), other.roll(1, 0))]
    return torch.cat((torch.cat(quarters[:2], 3), torch.cat(quarters[2:], 3)), 2)


def _random_phases(x: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """The image's spectrum and colours, without its structure."""
    noise = torch.fft.fft2(torch.rand(len(x), 1, *x.shape[2:], generator=generator) - 0.5)
    turned = torch.fft.fft2(x - x.mean((2, 3), keepdim=True)) * noise / noise.abs().clamp_min(1e-6)
    return x.mean((2, 3), keepdim=True) + torch.fft.ifft2(turned).real


def _smooth_noise(x: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with a power of the frequency, from 0.3 to 2.3; coloured or not."""
    frequency = torch.fft.fftfreq(x.shape[-1])
    radius = (frequency[:, None].square() + frequency.square()).sqrt().clamp_min(1 / x.shape[-1])
    spectrum = torch.fft.fft2(torch.randn(x.shape, generator=generator))
    same = _uniform(x, generator)
    spectrum = spectrum * (1 - same) + spectrum[:, :1] * same
    noise = torch.fft.ifft2(spectrum * radius ** -_uniform(x, generator, 0.3, 2.3)).real
    noise = (noise - noise.mean((1, 2, 3), keepdim=True)) / noise.std((1, 2, 3), keepdim=True)
    return _uniform(x, generator, 0.2, 0.8, channels=3) + noise * _uniform(x, generator, 0.05, 0.3)


def _noise(x: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """Independent pixels: uniform, normal on one colour, and blocks of several pixels."""
    first, second, third = x.tensor_split(3)
    uniform = torch.rand(first.shape, generator=generator)
    normal = torch.randn(second.shape, generator=generator) * _uniform(second, generator, 0.1, 0.5)
    blocks = torch.rand(len(third), 3, 8, 8, generator=generator)
    return torch.cat(
        (uniform, normal + _uniform(second, generator, channels=3), F.interpolate(blocks, size=x.shape[2:]))
    )


def _figures(x: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """One to six discs, rings, boxes, lines and wedges of one colour each, on one colour."""
    place = torch.arange(x.shape[-1]) + 0.5
    drawn = _uniform(x, generator, channels=3).expand_as(x)
    count = _uniform(x, generator, 1, 7)
    for i in range(6):
        angle, size, kind = (_uniform(x, generator, 0, high) for high in (math.pi, 1, 5))
        size = 2 + 10 * size
        across, down = (place - _uniform(x, generator, 0, x.shape[-1]) for _ in range(2))
        down = down.transpose(2, 3)
        u, v = across * angle.cos() + down * angle.sin(), down * angle.cos() - across * angle.sin()
        radius = (u.square() + v.square()).sqrt()
        figures = (
            radius < size,
            (radius < size) & (radius > 0.7 * size),
            (u.abs() < size) & (v.abs() < 0.6 * size),
            (u.abs() < 1.2) & (v.abs() < 2 * size),
            (v > -size / 2) & (v < size - 2 * u.abs()),
        )
        inside = torch.stack(figures).gather(0, kind.long()[None].expand(1, *radius.shape))[0]
        drawn = torch.where(inside & (count > i), _uniform(x, generator, channels=3), drawn)
    return drawn
