"""The layers between two convolutions, for training on a GPU, in Triton: [2×2 max-pool ->] batch norm [-> + residual]
-> SiLU.

Each of PyTorch's operations reads its input from memory and writes its output back. These kernels go through memory
once for the statistics and once for the values, forward and backward, and move 60 to 70 % of the bytes.

A row is the values of one pixel of one image in all channels, which are neighbours in memory. Sums over rows are
computed in two steps, per program and then over all programs, always in the same order: no atomic additions.
"""

from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cifarctl.models.triton_norm_kernels import (
    activate,
    combine_gradients,
    combine_values,
    input_gradient,
    sum_gradients,
    sum_values,
)

# The channels and rows that one program handles at a time. 64 channels in bf16 are one line of an H100's cache.
_CHANNELS = 64
_SUM_ROWS, _MAP_ROWS = 32, 64
# Programs that share a sum, the same number on every GPU, so that all compute the same sums.
_PROGRAMS = 1024


class TritonNormSiLU(torch.autograd.Function):
    """`F.silu(norm(F.max_pool2d(x, 2) if pool else x) + residual)`; it updates the norm's running statistics.

    x: float (N, C, H, W), fastest with channels last in memory. weight, bias: the norm's, (C,); `weight` gets no
    gradient. norm: in training mode, with running statistics and a momentum. residual: None, or of the result's shape
    and the type of x. Returns the type of x, (N, C, H', W'), channels last; arithmetic is in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, residual: Tensor | None, pool: bool
    ) -> Tensor:
        x = _channels_last(x)
        n, h, w, c = ctx.shape = x.shape
        values, chosen = x, None
        if pool:
            values = x.new_empty(n, h // 2, w // 2, c)
            chosen = torch.empty_like(values, dtype=torch.uint8)
        rows, splits, split_rows = _shares(values)
        partial, statistics = _float_pair(x, c, splits), _float_pair(x, c)
        grid = triton.cdiv(c, _CHANNELS), splits
        sum_values[grid](x, values, chosen, partial, rows, split_rows, splits, h, w, c, _SUM_ROWS, _CHANNELS)
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked
        sizes = rows, split_rows, splits, c
        combine_values[(c,)](partial, statistics, *running, *sizes, norm.eps, norm.momentum, _PROGRAMS)
        residual = None if residual is None else _channels_last(residual)
        y = torch.empty_like(values)
        activate[_grid(rows, _MAP_ROWS, c)](
            values, statistics, weight, bias, residual, y, rows, c, _MAP_ROWS, _CHANNELS
        )
        ctx.save_for_backward(values, chosen, statistics, weight, bias, residual)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, chosen, statistics, weight, bias, residual = ctx.saved_tensors
        known = values, statistics, weight, bias
        grad, grad_bias = _channels_last(grads[0]), torch.empty_like(bias)
        n, h, w, c = ctx.shape
        rows, splits, split_rows = _shares(values)
        partial, means = _float_pair(grad, c, splits), _float_pair(grad, c)
        # The gradient of SiLU's input, and so of the residual too.
        grad_sum = None if residual is None else torch.empty_like(grad)
        grid, sizes = (triton.cdiv(c, _CHANNELS), splits), (rows, split_rows, splits, c)
        sum_gradients[grid](grad, *known, residual, grad_sum, partial, *sizes, _SUM_ROWS, _CHANNELS)
        combine_gradients[(c,)](partial, means, grad_bias, rows, splits, c, _PROGRAMS)
        grad_x = grad.new_empty(n, h, w, c)
        tasks, tile = rows, _MAP_ROWS
        if chosen is not None:
            tasks, tile = n * triton.cdiv(h, 2) * triton.cdiv(w, 2), _SUM_ROWS
        rest = chosen, means, grad_x, tasks, h, w, c, residual is None, tile, _CHANNELS
        input_gradient[_grid(tasks, tile, c)](grad if grad_sum is None else grad_sum, *known, *rest)
        grad_residual = None if grad_sum is None else grad_sum.permute(0, 3, 1, 2)
        return grad_x.permute(0, 3, 1, 2), None, grad_bias, None, grad_residual, None


def _channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _float_pair(x: Tensor, *size: int) -> Tensor:
    return torch.empty(2, *size, dtype=torch.float32, device=x.device)


def _shares(x: Tensor) -> tuple[int, int, int]:
    """How the rows of x, (N, H, W, C), are divided for a sum: their number, the number of splits, rows per split. No
    split is empty.
    """
    rows = x[..., 0].numel()
    splits = max(1, min(triton.cdiv(rows, _SUM_ROWS), _PROGRAMS // triton.cdiv(x.shape[-1], _CHANNELS)))
    split_rows = triton.cdiv(triton.cdiv(rows, splits), _SUM_ROWS) * _SUM_ROWS
    return rows, triton.cdiv(rows, split_rows), split_rows


def _grid(rows: int, tile: int, channels: int) -> tuple[int]:
    return (triton.cdiv(rows, tile) * triton.cdiv(channels, _CHANNELS),)  # other dimensions end at 65,535
