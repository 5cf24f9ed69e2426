"""Augmentation of a batch for a GPU, in Triton: a few kernels for dozens of PyTorch's, whose starts take longer than
their work. Random numbers are drawn by `augment`; what is made of them is what it makes of them elsewhere.
"""

import functools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

_VALUES = 1024  # of one image, in one program


def shifted_flipped(images: Tensor, shifts: Tensor | None, mirrored: Tensor | None, padding: int) -> Tensor:
    """As `augment.to_float` of `augment.flip` of `augment.shifted`: uint8 or float32 (N, C, H, W) -> float32 in [0, 1].

    shifts: int64 (2, N, 1), or None. mirrored: bool (N,), or None.
    """
    n, c, h, w = images.shape
    y = torch.empty(n, h, w, c, dtype=torch.float32, device=images.device)
    grid = n, triton.cdiv(c * h * w, _VALUES)
    _shift_flip[grid](images, *images.stride(), shifts, mirrored, y, n, c, h, w, padding, _VALUES)
    return y.permute(0, 3, 1, 2)


def alternating(indices: Tensor, epoch: int | Tensor, seed: int) -> Tensor:
    """As `augment.alternates`: int64 (N,) -> bool (N,)."""
    mirrored = torch.empty_like(indices, dtype=torch.bool)
    salt = seed * 40503 & 0xFFFFFFFF
    grid = (triton.cdiv(len(indices), _VALUES),)
    _alternating[grid](indices, epoch, mirrored, salt, len(indices), isinstance(epoch, Tensor), _VALUES)
    return mirrored


def resized(images: Tensor, side: int) -> Tensor:
    """As `F.interpolate` in bilinear mode with antialiasing: float32 (N, C, H, H) -> (N, C, side, side), channels last
    in memory.

    PyTorch's kernel has a thread for each pixel of the result, which goes over all images and channels.
    """
    images = images.permute(0, 2, 3, 1).contiguous()
    n, size, _, c = images.shape
    first, taps = _taps(size, side, images.device)
    y = images.new_empty(n, side, side, c)
    grid = n, triton.cdiv(c * side * side, _VALUES)
    _resize[grid](images, first, taps, y, c, size, side, taps.shape[1], _VALUES)
    return y.permute(0, 3, 1, 2)


@functools.cache
def _taps(size: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each pixel of a resized row, the first that it is made of, int32 (side,), and what that one and those after
    it count, float32 (side, taps).
    """
    unit = torch.eye(size)[None, None]
    weights = F.interpolate(unit, size=(size, side), mode="bilinear", antialias=True)[0, 0].T
    width = int((weights != 0).sum(1).max())
    first = (weights != 0).int().argmax(1).clamp_max(size - width)
    taps = weights.gather(1, first[:, None] + torch.arange(width))
    return first.int().to(device), taps.contiguous().to(device)


@triton.jit
def _reflected(at, size):  # type: ignore[no-untyped-def]
    at = tl.abs(at)
    return tl.where(at < size, at, 2 * (size - 1) - at)


@triton.jit  # type: ignore[untyped-decorator]
def _shift_flip(  # type: ignore[no-untyped-def]
    images,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    shifts,
    mirrored,
    y,
    count,
    channels: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    padding: tl.constexpr,
    tile: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = at < channels * height * width
    channel, column, row = at % channels, at // channels % width, at // (channels * width)
    if mirrored is not None:
        column = tl.where(tl.load(mirrored + image) != 0, width - 1 - column, column)
    if shifts is not None:
        row = _reflected(row + tl.load(shifts + image).to(tl.int32) - padding, height)
        column = _reflected(column + tl.load(shifts + count + image).to(tl.int32) - padding, width)
    source = images + image * stride_n + (channel * stride_c + row * stride_h + column * stride_w)
    value = tl.load(source, inside, other=0)
    if images.dtype.element_ty == tl.uint8:
        value = tl.div_rn(value.to(tl.float32), 255.0)
    tl.store(y + image * (channels * height * width) + at, value, inside)


@triton.jit(do_not_specialize=["epoch", "salt", "count"])  # type: ignore[untyped-decorator]
def _alternating(  # type: ignore[no-untyped-def]
    indices, epoch, mirrored, salt, count, on_device: tl.constexpr, tile: tl.constexpr
):
    at = tl.program_id(0) * tile + tl.arange(0, tile)
    index = tl.load(indices + at, at < count, other=0).to(tl.int64)
    hashed = (index * 2654435761 + salt) & 0xFFFFFFFF
    hashed = ((hashed ^ (hashed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    turn = tl.load(epoch) if on_device else epoch
    tl.store(mirrored + at, ((hashed >> 12) + turn) % 2 == 0, at < count)


@triton.jit  # type: ignore[untyped-decorator]
def _resize(  # type: ignore[no-untyped-def]
    images,
    first,
    taps,
    y,
    channels: tl.constexpr,
    size: tl.constexpr,
    side: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = at < channels * side * side
    channel, column, row = at % channels, at // channels % side, at // (channels * side)
    top = tl.load(first + row, inside, other=0)
    left = tl.load(first + column, inside, other=0)
    total = tl.zeros([tile], tl.float32)
    for i in tl.static_range(width):
        line = tl.zeros([tile], tl.float32)
        corner = images + image * (size * size * channels) + ((top + i) * size + left) * channels + channel
        for j in tl.static_range(width):
            weight = tl.load(taps + column * width + j, inside, other=0.0)
            line += weight * tl.load(corner + j * channels, inside, other=0.0)
        total += tl.load(taps + row * width + i, inside, other=0.0) * line
    tl.store(y + image * (channels * side * side) + at, total, inside)
