"""Augmentation of whole batches, as a few tensor operations on the device that holds them.

Unless they say otherwise, functions take uint8 or float (N, C, 32, 32), return a new tensor of the same shape, and draw
from torch's default generator, which the training loop seeds again for every step.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarctl.data.dataset import to_float
from cifarctl.hardware import runs_kernels
from cifarctl.training.recipes import Recipe


def augment_images(images: Tensor, indices: Tensor, epoch: int | Tensor, recipe: Recipe, seed: int) -> Tensor:
    """The recipe's augmentation of a batch, uint8 (B, 3, 32, 32) -> float in [0, 1]."""
    by = shifts(images, recipe.crop) if recipe.crop else None
    mirrored = None
    if recipe.flip == "random":
        mirrored = halves(images)
    elif recipe.flip == "alternating":
        mirrored = alternates(indices, epoch, seed)
    images = shifted_flipped(images, by, mirrored, recipe.crop)
    if recipe.affine:
        images = random_affine(images, scale=1.25, degrees=15, shear=0.15, fraction=recipe.affine)
    if recipe.jitter:
        images = color_jitter(images, recipe.jitter)
    if recipe.cutout:
        images = cutout(images, recipe.cutout)
    return to_float(images)


def mix_examples(images: Tensor, labels: Tensor, classes: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Mix augmented images, float (B, 3, 32, 32), and their labels, int64 (B,), as the recipe says. If it has mixup or
    CutMix, labels become probabilities, float (B, classes); else both stay as they are.
    """
    if recipe.mixup or recipe.cutmix:
        one_hot = F.one_hot(labels, classes).float()
        return mix(images, one_hot, mixup=recipe.mixup, cutmix=recipe.cutmix)
    return images, labels


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror left to right the images where `chosen`, bool (N,), is true."""
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def random_flip(images: Tensor) -> Tensor:
    """Mirror each image with probability one half."""
    return flip(images, halves(images))


def halves(images: Tensor) -> Tensor:
    """Choose each image with probability one half, bool (N,)."""
    return torch.rand(len(images), device=images.device) < 0.5


def alternating_flip(images: Tensor, indices: Tensor, epoch: int | Tensor, seed: int) -> Tensor:
    """Mirror a random half of the data set in even epochs and the other half in odd ones."""
    return flip(images, alternates(indices, epoch, seed))


def alternates(indices: Tensor, epoch: int | Tensor, seed: int) -> Tensor:
    """Choose a random half of the data set in even epochs and the other half in odd ones, bool (N,).

    indices: int64 (N,), the images' indices in the data set. So every two epochs show each image both ways; with
    independent draws, only half of the images: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024,
    section 3.6.
    """
    if runs_kernels(indices.device):
        from cifarctl.training import triton_augment

        return triton_augment.alternating(indices, epoch, seed)
    # A hash of the index, not a table: it needs no state and is the same after a resume. Constants: Knuth, SplitMix.
    hashed = (indices * 2654435761 + seed * 40503) & 0xFFFFFFFF
    hashed = ((hashed ^ (hashed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return ((hashed >> 12) + epoch) % 2 == 0


def random_crop(images: Tensor, padding: int) -> Tensor:
    """Shift each image by at most `padding` pixels in each direction; reflection fills the border."""
    return shifted(images, shifts(images, padding), padding)


def shifts(images: Tensor, padding: int) -> Tensor:
    """Draw shifts down and to the right, int64 (2, N, 1) in [0, 2 · padding], where `padding` stands for no shift."""
    return torch.randint(0, 2 * padding + 1, (2, len(images), 1), device=images.device)


def shifted(images: Tensor, by: Tensor, padding: int) -> Tensor:
    """Shift images by what `shifts` drew; reflection fills the border."""
    n, _, height, width = images.shape
    # Not every device has a uint8 kernel for reflection_pad; indices work for any type.
    rows = _reflected(height, padding, images.device)
    columns = _reflected(width, padding, images.device)
    dy, dx = by
    rows = rows[dy + torch.arange(height, device=images.device)]  # (N, H)
    columns = columns[dx + torch.arange(width, device=images.device)]
    batch = torch.arange(n, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def shifted_flipped(images: Tensor, by: Tensor | None, mirrored: Tensor | None, padding: int) -> Tensor:
    """Shift, mirror and convert images to float, as `to_float` does.

    by: what `shifts` drew, or None. mirrored: which images to mirror, bool (N,), or None.
    """
    if images.dtype in (torch.uint8, torch.float32) and not images.requires_grad and runs_kernels(images.device):
        from cifarctl.training import triton_augment

        return triton_augment.shifted_flipped(images, by, mirrored, padding)
    images = images if by is None else shifted(images, by, padding)
    return to_float(images if mirrored is None else flip(images, mirrored))


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    """Source index of each of the size + 2 · padding pixels of a padded row."""
    index = torch.arange(-padding, size + padding, device=device).abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)


def random_affine(images: Tensor, scale: float, degrees: float, shear: float, fraction: float) -> Tensor:
    """Zoom, rotate and shear the first `fraction` of float images; reflection fills the border. The order of images in
    a batch is random anyway.

    scale: the mean zoom is from 1 / scale to scale, and so is the ratio of both axes' zooms. degrees: the largest
    rotation, in both directions. shear: the largest sideways shift of a row, in pixels per pixel from the centre.
    """
    n = round(fraction * len(images))
    if n == 0:
        return images

    def draw(bound: float) -> Tensor:
        return (2 * torch.rand(n, device=images.device) - 1) * bound

    angle, slant, zoom, aspect = (
        draw(bound) for bound in (math.radians(degrees), shear, math.log(scale), math.log(scale) / 2)
    )
    wide, high = (zoom + aspect).exp(), (zoom - aspect).exp()
    matrix = torch.stack(
        (
            torch.stack((angle.cos() * wide, (slant - angle.sin()) * high, torch.zeros_like(angle)), 1),
            torch.stack((angle.sin() * wide, angle.cos() * high, torch.zeros_like(angle)), 1),
        ),
        1,
    )  # (N, 2, 3), from output to input coordinates
    grid = F.affine_grid(matrix, list(images[:n].shape), align_corners=False)
    moved = F.grid_sample(images[:n], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return torch.cat((moved, images[n:]))


def color_jitter(images: Tensor, strength: float) -> Tensor:
    """Multiply brightness, contrast and saturation of each float image by factors from 1 - strength to 1 + strength."""
    brightness, contrast, saturation = (
        1 + (2 * torch.rand(3, len(images), 1, 1, 1, device=images.device) - 1) * strength
    )
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean
    grey = images.mean(1, keepdim=True)
    return ((images - grey) * saturation + grey).clamp(0, 1)


def cutout(images: Tensor, side: int) -> Tensor:
    """Fill a square of `side` × `side` pixels at a random place with grey (DeVries & Taylor, 2017). It may reach over
    the edge.
    """
    n, _, height, width = images.shape
    centre_y, centre_x = (torch.randint(0, size, (n, 1), device=images.device) for size in (height, width))

    def inside(size: int, centre: Tensor) -> Tensor:
        offset = torch.arange(size, device=images.device) - centre
        return (offset >= -(side // 2)) & (offset < side - side // 2)

    hole = inside(height, centre_y)[:, None, :, None] & inside(width, centre_x)[:, None, None, :]
    return images.masked_fill(hole, 0.5 if images.is_floating_point() else 128)


def mix(images: Tensor, targets: Tensor, *, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix float images with their neighbours in the batch, whose order is random, and their targets in proportion.

    targets: probabilities of the classes, float (N, classes). mixup: the fraction of the images that are blended with
    another, with a weight that is uniform in [0, 1] (Zhang et al., "mixup: Beyond empirical risk minimization", 2018,
    with alpha 1). cutmix: the fraction that get a rectangle of another (Yun et al., "CutMix", 2019).
    """
    n, _, height, width = images.shape
    kind, weight = torch.rand(2, n, 1, 1, 1, device=images.device)
    centre_y, centre_x = torch.rand(2, n, 1, device=images.device)
    half = weight.sqrt().view(n, 1) / 2

    def inside(size: int, centre: Tensor) -> Tensor:
        return (torch.arange(size, device=images.device) + 0.5 - centre * size).abs() < half * size

    rectangle = inside(height, centre_y)[:, None, :, None] & inside(width, centre_x)[:, None, None, :]
    # The fraction of each pixel that comes from the neighbour.
    taken = torch.where(kind < cutmix, rectangle.float(), weight * (kind < cutmix + mixup))
    fraction = taken.mean((1, 2, 3))[:, None]
    return torch.lerp(images, images.roll(1, 0), taken), torch.lerp(targets, targets.roll(1, 0), fraction)


def scale(images: Tensor, side: int) -> Tensor:
    """Resize float (N, C, H, H) -> (N, C, side, side), with antialiasing; in the memory format of `to_float`."""
    if side == images.shape[-1]:
        return images
    if images.dtype == torch.float32 and not images.requires_grad and runs_kernels(images.device):
        from cifarctl.training import triton_augment

        return triton_augment.resized(images, side)
    return to_float(F.interpolate(images, size=(side, side), mode="bilinear", antialias=True))
