"""Principal component analysis of images: the best linear autoencoder, and what any other must beat."""

import torch
from torch import Tensor

from cifarctl.hardware import algebra_device


def fit_pca(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) -> mean (3072,) and components (3072, 3072), float32, of pixels scaled to [0, 1], on
    the images' device. Components are columns, that of the largest variance first.
    """
    device, images = images.device, images.to(algebra_device(images.device))
    if len(images) <= 1024:  # the same components, in a tenth to a third of the time
        pixels = images.flatten(1).float() / 255 - 0.5
        mean = pixels.mean(0)
        components = torch.linalg.svd(pixels - mean, full_matrices=True)[2].T
        return (mean + 0.5).to(device), components.contiguous().to(device)
    covariance = torch.zeros(3072, 3072, device=images.device)
    total = torch.zeros(3072, device=images.device)
    for chunk in images.split(5000):
        # Centred at mid-grey, so that float32 sums keep their precision.
        pixels = chunk.flatten(1).float() / 255 - 0.5
        covariance += pixels.T @ pixels
        total += pixels.sum(0)
    mean = total / len(images)
    _, vectors = torch.linalg.eigh(covariance / len(images) - mean[:, None] * mean)
    return (mean + 0.5).to(device), vectors.flip(1).to(device)


def pca_reconstruct(train_images: Tensor, images: Tensor, dim: int) -> Tensor:
    """Reconstruct `images` from their first `dim` principal components, fitted on `train_images`: both uint8
    (N, 3, 32, 32) -> float32 (N, 3, 32, 32), clamped to [0, 1] as a model's reconstructions are.
    """
    mean, components = fit_pca(train_images)
    components = components[:, :dim]
    reconstructions = []
    for chunk in images.split(2000):
        pixels = chunk.flatten(1).float() / 255
        linear = (pixels - mean) @ components @ components.T + mean
        reconstructions.append(linear.clamp(0, 1).view_as(chunk))
    return torch.cat(reconstructions)
