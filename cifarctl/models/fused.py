"""Layers of a classifier that training on a GPU fuses into Triton kernels, and that run one by one elsewhere."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarctl.hardware import runs_kernels
from cifarctl.models.layers import MaxPool2x2, Normalize


def norm_silu(
    norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None, pool: MaxPool2x2 | None = None
) -> Tensor:
    """`F.silu(norm(pool(x)) + residual)`, without the pool or the residual if they are None: float (N, C, H, W) ->
    (N, C, H', W').
    """
    # The kernels support a learned offset, but no learned scale. PyTorch raises its own error on a single image.
    supported = norm.affine and not norm.weight.requires_grad and norm.track_running_stats and norm.momentum is not None
    if supported and _trains_with_kernels(norm, x) and len(x) > 1:
        from cifarctl.models.triton_norm import TritonNormSiLU

        fused: Tensor = TritonNormSiLU.apply(x, norm.weight, norm.bias, norm, residual, pool is not None)
        return fused
    x = norm(x if pool is None else pool(x))
    return F.silu(x if residual is None else x + residual)


def whiten_silu(normalize: Normalize, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`F.silu(conv(normalize(x)))` of a 2×2 convolution: pixels (N, I, H, W) -> float (N, O, H - 1, W - 1)."""
    frozen = not conv.weight.requires_grad and not x.requires_grad
    if frozen and x.dtype == torch.float32 and _trains_with_kernels(conv, x):
        from cifarctl.models.triton_whiten import TritonWhitenSiLU

        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        fused: Tensor = TritonWhitenSiLU.apply(x, normalize.mean, normalize.std, conv.weight, conv.bias, dtype)
        return fused
    return F.silu(conv(normalize(x)))


def cast_for_autocast(weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Cast all weights to autocast's type in one kernel, and their gradients back in another, when training on a GPU
    under autocast. Elsewhere None for each weight: the layers then cast their own, if that is needed.
    """
    device = weights[0].device
    if device.type == "cuda" and torch.is_autocast_enabled("cuda") and torch.is_grad_enabled():
        dtype = torch.get_autocast_dtype("cuda")
        if all(weight.dtype == torch.float32 for weight in weights):
            return list(_CastTogether.apply(dtype, *weights))
    return [None] * len(weights)


class _CastTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*weights)
        casts = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(casts, weights)
        return tuple(casts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        casts = [torch.empty_like(weight) for weight in ctx.saved_tensors]
        torch._foreach_copy_(casts, list(grads))
        return None, *casts


def _trains_with_kernels(layer: nn.Module, x: Tensor) -> bool:
    """Whether `layer` is being trained on a GPU that runs Triton kernels, with values of a type that they support."""
    return (
        x.device.type == "cuda"
        and layer.training
        and torch.is_grad_enabled()
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and runs_kernels(x.device)
    )
