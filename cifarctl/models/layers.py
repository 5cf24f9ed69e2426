"""Layers that several models share, shaped by where convolutions lose time on a CPU."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_range(**values: tuple[int, int, int]) -> None:
    """Raise ValueError unless every value, given as (value, low, high), is an integer in [low, high].

    Configurations come from weights files, which may be anybody's.
    """
    for name, (value, low, high) in values.items():
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}, not an integer from {low} to {high}")


class Conv3x3(nn.Conv2d):
    """A 3×3 convolution, stride 1, same size, whose weight gradient is fast on small images on a CPU.

    forward: float (N, in_channels, H, W) -> (N, out_channels, H, W), channels last in memory.

    oneDNN's bf16 weight gradient is slow where an image row is short (256 channels at 7×7: 0.65 TFLOP/s of 2.0). Laying
    several images side by side, a column of zeros between them, gives the same sums from long rows: 256→256, batch 256,
    copies included, 22.5 -> 10.1 ms at 7×7 and 13.2 -> 4.0 ms at 3×3 on two Xeon cores with AMX.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or x.shape[-1] >= 12:
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        y: Tensor = _SideBySideConv.apply(x, weight.contiguous(memory_format=torch.channels_last))
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]


class _SideBySideConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x = _conv_backward(grad, x, weight, (True, False))[0] if ctx.needs_input_grad[0] else None
        # Rows of 28 to 80 pixels measured fastest: 4 images of 7 or 8 pixels, 16 of 3 or 4.
        count = math.gcd(len(x), 4 if x.shape[-1] > 5 else 16)
        grad_weight = _conv_backward(_side_by_side(grad, count), _side_by_side(x, count), weight, (False, True))[1]
        return grad_x, grad_weight


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return grad_x, grad_weight


def _side_by_side(x: Tensor, count: int) -> Tensor:
    """(N, C, H, W) -> (N / count, C, H, count · (W + 1)), the last column of each image zero; channels last in
    memory.
    """
    n, c, h, w = x.shape
    rows = x.new_zeros(n // count, h, count, w + 1, c)
    rows[:, :, :, :w] = x.permute(0, 2, 3, 1).reshape(n // count, count, h, w, c).transpose(1, 2)
    return rows.view(n // count, h, count * (w + 1), c).permute(0, 3, 1, 2)


class Normalize(nn.Module):
    """Pixels to floats: uint8 or float in [0, 1], (N, 3, 32, 32) -> float (N, 3, 32, 32), less `mean`, over `std`, per
    channel.

    Both are buffers, so they travel with the weights and no caller can forget them.
    """

    # CIFAR-10's training images, per channel, from their pixels in [0, 1].
    def __init__(
        self,
        mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
        std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616),
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            x = x.float() / 255
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
