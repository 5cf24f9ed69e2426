"""2×2 max-pooling for training on a GPU, in Triton, which comes with PyTorch for NVIDIA's GPUs on Linux.

PyTorch's pooling stores the position of each maximum in eight bytes and searches for overlapping windows; without
both, a training step is a fifth shorter.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# What one program writes. Constants that kernels read must be tl.constexpr.
_PIXELS, _CHANNELS = tl.constexpr(32), tl.constexpr(64)


class TritonMaxPool2x2(torch.autograd.Function):
    """As `F.max_pool2d(x, 2)`: float (N, C, H, W) -> (N, C, H // 2, W // 2), channels last in memory. Among equal
    values, the first gets the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).contiguous()
        n, h, w, c = x.shape
        y = x.new_empty(n, h // 2, w // 2, c)
        chosen = torch.empty_like(y, dtype=torch.uint8)
        _forward[_grid(y)](x, y, chosen, n * (h // 2) * (w // 2), h, w, c)
        ctx.save_for_backward(chosen)
        ctx.size = h, w
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (chosen,) = ctx.saved_tensors
        h, w = ctx.size
        grad = grads[0].permute(0, 2, 3, 1).contiguous()
        n, _, _, c = grad.shape
        grad_x = grad.new_empty(n, h, w, c)
        _backward[_grid(grad_x)](grad, chosen, grad_x, n * h * w, h, w, c)
        return grad_x.permute(0, 3, 1, 2)


def _grid(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x[..., 0].numel(), _PIXELS.value), triton.cdiv(x.shape[-1], _CHANNELS.value)


@triton.jit
def _forward(x, y, chosen, pixels, height, width, channels):  # type: ignore[no-untyped-def]
    pixel = tl.program_id(0) * _PIXELS + tl.arange(0, _PIXELS)
    channel = tl.program_id(1) * _CHANNELS + tl.arange(0, _CHANNELS)[None, :]
    inside = (pixel < pixels)[:, None] & (channel < channels)
    row, column = pixel // (width // 2), pixel % (width // 2)  # rows of all images
    image, row = row // (height // 2), row % (height // 2)
    corner = x + (((image * height + 2 * row) * width + 2 * column).to(tl.int64) * channels)[:, None] + channel
    best = tl.load(corner, inside)
    place = tl.zeros([_PIXELS, _CHANNELS], tl.uint8)
    for at in tl.static_range(1, 4):
        value = tl.load(corner + (at // 2 * width + at % 2) * channels, inside)
        # As float32, since Triton's interpreter compares bf16 by its bits. NaN is passed on, as in PyTorch.
        better = (value.to(tl.float32) > best.to(tl.float32)) | (value.to(tl.float32) != value.to(tl.float32))
        best = tl.where(better, value, best)
        place = tl.where(better, at, place).to(tl.uint8)
    out = (pixel.to(tl.int64) * channels)[:, None] + channel
    tl.store(y + out, best, inside)
    tl.store(chosen + out, place, inside)


@triton.jit
def _backward(grad, chosen, grad_x, pixels, height, width, channels):  # type: ignore[no-untyped-def]
    pixel = tl.program_id(0) * _PIXELS + tl.arange(0, _PIXELS)
    channel = tl.program_id(1) * _CHANNELS + tl.arange(0, _CHANNELS)[None, :]
    inside = (pixel < pixels)[:, None] & (channel < channels)
    row, column = pixel // width, pixel % width
    image, row = row // height, row % height
    pooled = ((image * (height // 2) + row // 2) * (width // 2) + column // 2).to(tl.int64)
    # An odd last row or column is in no window.
    in_window = inside & ((row // 2 < height // 2) & (column // 2 < width // 2))[:, None]
    source = (pooled * channels)[:, None] + channel
    place = tl.load(chosen + source, in_window, other=4)
    value = tl.load(grad + source, in_window, other=0.0)
    value = tl.where(place == (row % 2 * 2 + column % 2)[:, None], value, 0.0)
    tl.store(grad_x + (pixel.to(tl.int64) * channels)[:, None] + channel, value, inside)
