"""The whitening layer of a classifier, for training on a GPU, in Triton: normalisation -> 2×2 convolution -> SiLU.

One pass reads pixels and writes the input of the first group. In PyTorch, the convolution, the bias and SiLU each go
through the memory of all 24 channels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROWS = 128  # pixels per program


class TritonWhitenSiLU(torch.autograd.Function):
    """`F.silu(F.conv2d((x - mean) / std, weight, bias))`: float32 (N, I, H, W) -> `dtype` (N, O, H - 1, W - 1),
    channels last in memory.

    mean, std: float32, I values each. weight: float32 (O, I, 2, 2). bias: (O,) or None; only it gets a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        x = x.permute(0, 2, 3, 1).contiguous()
        n, h, w, _ = x.shape
        y = x.new_empty(n, h - 1, w - 1, len(weight), dtype=dtype)
        rows = n * (h - 1) * (w - 1)
        _whiten[(triton.cdiv(rows, _ROWS),)](x, mean, std, weight, *weight.stride(), bias, y, rows, *_sizes(x, weight))
        ctx.save_for_backward(x, mean, std, weight, bias)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, std, weight, bias = ctx.saved_tensors
        grad = grads[0].permute(0, 2, 3, 1).contiguous()
        rows = grad[..., 0].numel()
        programs = triton.cdiv(rows, _ROWS)
        partial = torch.empty(programs, len(weight), dtype=torch.float32, device=x.device)
        sizes = _sizes(x, weight)
        _bias_gradient[(programs,)](x, mean, std, weight, *weight.stride(), bias, grad, partial, rows, *sizes)
        return None, None, None, None, partial.sum(0).to(bias.dtype), None


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    _, h, w, c = x.shape
    return h, w, c, len(weight), triton.next_power_of_2(len(weight)), _ROWS


@triton.jit
def _whitened(  # type: ignore[no-untyped-def]
    x, mean, std, weight, stride_o, stride_i, stride_y, stride_x, bias, row, rows, height, width, inputs, outputs, tile
):
    """The input of SiLU, (rows, outputs)."""
    output = tl.arange(0, tile)
    known = output < outputs
    z = tl.zeros([row.shape[0], tile], tl.float32)
    line, column = row // (width - 1), row % (width - 1)  # lines of all images
    image, line = line // (height - 1), line % (height - 1)
    corner = x + ((image * height + line) * width + column).to(tl.int64) * inputs
    for i in tl.static_range(inputs):
        centre, deviation = tl.load(mean + i), tl.load(std + i)
        for at in tl.static_range(4):
            value = tl.load(corner + (at // 2 * width + at % 2) * inputs + i, row < rows, other=0.0)
            tap = weight + i * stride_i + at // 2 * stride_y + at % 2 * stride_x
            filters = tl.load(tap + output * stride_o, known, other=0.0)
            z += ((value - centre) / deviation)[:, None] * filters[None, :]
    if bias is not None:
        z += tl.load(bias + output, known, other=0.0).to(tl.float32)[None, :]
    return z


@triton.jit(do_not_specialize=["rows", "height", "width"])  # type: ignore[untyped-decorator]
def _whiten(  # type: ignore[no-untyped-def]
    x,
    mean,
    std,
    weight,
    stride_o,
    stride_i,
    stride_y,
    stride_x,
    bias,
    y,
    rows,
    height,
    width,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    tile: tl.constexpr,
    row_tile: tl.constexpr,
):
    row = tl.program_id(0) * row_tile + tl.arange(0, row_tile)
    strides = stride_o, stride_i, stride_y, stride_x
    z = _whitened(x, mean, std, weight, *strides, bias, row, rows, height, width, inputs, outputs, tile)
    output = tl.arange(0, tile)[None, :]
    inside = (row < rows)[:, None] & (output < outputs)
    value = (z * tl.sigmoid(z)).to(y.dtype.element_ty)
    tl.store(y + row.to(tl.int64)[:, None] * outputs + output, value, inside)


@triton.jit(do_not_specialize=["rows", "height", "width"])  # type: ignore[untyped-decorator]
def _bias_gradient(  # type: ignore[no-untyped-def]
    x,
    mean,
    std,
    weight,
    stride_o,
    stride_i,
    stride_y,
    stride_x,
    bias,
    grad,
    partial,
    rows,
    height,
    width,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    tile: tl.constexpr,
    row_tile: tl.constexpr,
):
    """Write `partial`, (programs, outputs): each program's sum of the gradient of SiLU's input."""
    output = tl.arange(0, tile)
    row = tl.program_id(0) * row_tile + tl.arange(0, row_tile)
    strides = stride_o, stride_i, stride_y, stride_x
    z = _whitened(x, mean, std, weight, *strides, bias, row, rows, height, width, inputs, outputs, tile)
    inside = (row < rows)[:, None] & (output < outputs)[None, :]
    at = row.to(tl.int64)[:, None] * outputs + output[None, :]
    change = tl.load(grad + at, inside, other=0.0).to(tl.float32)
    gate = tl.sigmoid(z)
    sums = tl.sum(change * gate * (1 + z * (1 - gate)), 0)
    tl.store(partial + tl.program_id(0) * outputs + output, sums, output < outputs)
