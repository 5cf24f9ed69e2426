"""Layers that several models share, with faster methods for training and predicting on a CPU."""

import functools
import math
import subprocess
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarctl.hardware import can_build_kernels, memory_format
from cifarctl.models.fourier import FourierConv, chunks, fourier_conv, fourier_conv_pays, transform_filters


def check_range(**values: tuple[int, int, int]) -> None:
    """Raise ValueError unless every value, given as (value, low, high), is an integer in [low, high].

    Configurations come from weights files, which may be anybody's.
    """
    for name, (value, low, high) in values.items():
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}, not an integer from {low} to {high}")


class Conv3x3(nn.Conv2d):
    """A 3×3 convolution, stride 1, same size, with faster methods for CPUs: for all of it or, with AMX, its gradients.

    forward: float (N, in_channels, H, W) -> (N, out_channels, H, W), channels last in memory.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)
        self._cached_filters: tuple[object, Tensor] | None = None

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """weight: the layer's own, if it has been cast already."""
        if weight is not None:
            return self._conv_forward(x, weight, self.bias)
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        if fourier_conv_pays(x, self.weight):
            if torch.is_grad_enabled():
                self._cached_filters = None  # the weight is about to change
                y: Tensor = FourierConv.apply(x, self.weight.to(x.dtype))
            else:
                y = fourier_conv(x, self._filters(x.shape[-1], x.dtype))
        elif x.dtype == torch.bfloat16 and self.training and torch.is_grad_enabled() and x.shape[-1] < 12:
            weight = self.weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
            y = _SideBySideConv.apply(x, weight)
        else:
            return super().forward(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]

    def _filters(self, side: int, dtype: torch.dtype) -> Tensor:
        """The weight's transforms, (R, O, I), cached until the weight changes: computing them for every batch took a
        tenth of `predict`'s time.
        """
        if self.weight.is_inference():  # such tensors do not count their changes
            return transform_filters(self.weight.to(dtype), side)
        key = (side, dtype, self.weight.data_ptr(), self.weight._version)
        cached = self._cached_filters  # read once, since threads that predict share the model
        if cached is None or cached[0] != key:
            cached = self._cached_filters = (key, transform_filters(self.weight.to(dtype), side))
        return cached[1]


class _SideBySideConv(torch.autograd.Function):
    """A 3×3 convolution whose bf16 weight gradient is computed on images laid side by side.

    oneDNN's is slow if an image row is short. Several images in one row, with a column of zeros between them, give the
    same sums from long rows, in less than half the time at 7×7 with AMX. In fp32 it would be slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x = _conv_backward(grad, x, weight, (True, False))[0] if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        # Rows of 28 to 80 pixels measured fastest: 4 images of 7 or 8 pixels, 16 of 3 or 4.
        count = math.gcd(len(x), 4 if x.shape[-1] > 5 else 16)
        grad_weight = _conv_backward(_side_by_side(grad, count), _side_by_side(x, count), weight, (False, True))[1]
        return grad_x, grad_weight


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*needed, False]
    )
    return grad_x, grad_weight


def _side_by_side(x: Tensor, count: int) -> Tensor:
    """(N, C, H, W) -> (N / count, C, H, count · (W + 1)), with a column of zeros after each image, channels last."""
    n, c, h, w = x.shape
    rows = x.new_empty(n // count, h, count, w + 1, c)
    rows[:, :, :, w] = 0
    rows[:, :, :, :w] = x.permute(0, 2, 3, 1).reshape(n // count, count, h, w, c).transpose(1, 2)
    return rows.view(n // count, h, count * (w + 1), c).permute(0, 3, 1, 2)


class MaxPool2x2(nn.Module):
    """Max-pooling by two, as `F.max_pool2d(x, 2)`: float (N, C, H, W) -> (N, C, H // 2, W // 2), channels last in
    memory. Among equal values, one gets the gradient.

    Training on a CPU uses vectorised comparisons and writes the gradient into a buffer that every step reuses; PyTorch
    fills a new tensor with zeros and scatters into it, and a training step takes 7 % longer. Training on a GPU uses
    `triton_pool`, if it can be built.
    """

    def __init__(self) -> None:
        super().__init__()
        self._grad: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return F.max_pool2d(x, 2)
        if x.device.type != "cpu":
            fused = _gpu_pool(x.device)
            return fused(x) if fused else F.max_pool2d(x, 2)
        if self._grad is None or self._grad.shape != x.permute(0, 2, 3, 1).shape or self._grad.dtype != x.dtype:
            # Zeros, since no step writes to an odd last row or column: they are in no window.
            self._grad = torch.zeros_like(x.permute(0, 2, 3, 1), memory_format=torch.contiguous_format)
        y: Tensor = _MaxPool2x2.apply(x, self._grad)
        return y


@functools.cache
def _gpu_pool(device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """`triton_pool`'s function, or None if it does not run on the device."""
    if device.type != "cuda" or not can_build_kernels():
        return None
    try:
        from cifarctl.models.triton_pool import TritonMaxPool2x2

        TritonMaxPool2x2.apply(torch.zeros(1, 1, 2, 2, device=device))
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError):  # for example on a GPU that is too old
        return None
    return TritonMaxPool2x2.apply


class _MaxPool2x2(torch.autograd.Function):
    """The maximum of each pair of rows, then of each pair of columns; a mask of ones and zeros keeps each choice.

    Masks act on the floats' bit patterns, as integers: multiplying by one or zero and subtracting from itself or from
    the whole are exact, and bf16 needs no conversion. Chunks of the batch keep the intermediate values in the cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad_x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = x.new_empty(n, h // 2, w // 2, c)
        is_left, is_top = _bits(torch.empty_like(y)), _bits(x.new_empty(n, h // 2, w // 2 * 2, c))
        for x_chunk, y_chunk, left_mask, top_mask in chunks(x, y, is_left, is_top, mebibytes=8):
            top, bottom = _row_pairs(x_chunk)
            rows = torch.maximum(top, bottom)
            torch.eq(_bits(rows), _bits(top), out=top_mask)
            left, right = rows[:, :, 0::2], rows[:, :, 1::2]
            torch.maximum(left, right, out=y_chunk)
            torch.eq(_bits(y_chunk), _bits(left), out=left_mask)
        ctx.save_for_backward(is_top, is_left)
        ctx.grad_x = grad_x
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        is_top, is_left = ctx.saved_tensors
        grad_x, grad = _bits(ctx.grad_x), _bits(grads[0].permute(0, 2, 3, 1))
        for x_chunk, y_chunk, left_mask, top_mask in chunks(grad_x, grad, is_left, is_top, mebibytes=8):
            rows = torch.empty_like(top_mask)
            left = torch.mul(y_chunk, left_mask, out=rows[:, :, 0::2])
            torch.sub(y_chunk, left, out=rows[:, :, 1::2])
            top, bottom = _row_pairs(x_chunk)
            torch.mul(rows, top_mask, out=top)
            torch.sub(rows, top, out=bottom)
        return ctx.grad_x.permute(0, 3, 1, 2), None


def _bits(x: Tensor) -> Tensor:
    """Floats as integers of the same size, in the same memory."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def _row_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H, W, C) -> its rows of even and of odd index, as views, without an odd last row or column."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return x[:, 0:height:2, :width], x[:, 1:height:2, :width]


class Normalize(nn.Module):
    """Per channel, pixels minus `mean`, over `std`: uint8 or float in [0, 1], (N, 3, H, W) -> float (N, 3, H, W).

    Both are buffers, so that weights files hold them and no caller can forget them.
    """

    # The defaults are those of CIFAR-10's training images, with pixels in [0, 1].
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
        return ((x - self.mean) / self.std).contiguous(memory_format=memory_format(x.device))
