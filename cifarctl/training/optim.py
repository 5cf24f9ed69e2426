"""Optimizers and the learning rate schedule."""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cifarctl.hardware import has_bf16, runs_kernels
from cifarctl.models.base import Classifier
from cifarctl.training.recipes import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters of `model` that require gradients.

    Every group has `peak_lr`, which `set_learning_rate` scales. A classifier's `encoder` has a group of its own.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    pretrained = []
    if isinstance(model, Classifier):
        pretrained = [parameter for name, parameter in named if name.startswith("encoder.")]
        named = [(name, parameter) for name, parameter in named if not name.startswith("encoder.")]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "airbench":
        optimizer = AirbenchMuon(named, recipe.lr, recipe.weight_decay, recipe.batch_size)
    elif recipe.optimizer == "muon":
        optimizer = Muon([p for _, p in named], recipe.lr)
    else:
        # Biases and norms do not overfit: weight decay would only pull them away from their best values.
        groups = [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = _AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=True)
    if pretrained:
        optimizer.add_param_group({"params": pretrained, "lr": recipe.encoder_lr, "weight_decay": 0.0})
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def learning_rate_factor(recipe: Recipe, progress: float) -> float:
    """The learning rate divided by its peak. progress: the fraction of all steps that is done, in [0, 1]."""
    if progress < recipe.warmup:
        return progress / recipe.warmup
    falling = (progress - recipe.warmup) / (1 - recipe.warmup)
    return 1 - falling if recipe.schedule == "linear" else (1 + math.cos(math.pi * falling)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["peak_lr"] * factor)
        else:
            group["lr"] = group["peak_lr"] * factor


def keep_rates_on(device: torch.device, optimizer: torch.optim.Optimizer) -> None:
    """Make the learning rates tensors on `device`: a CUDA graph would keep the numbers of the step that it recorded."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = True


class _Eager(torch.optim.Optimizer):
    """torch's optimizer without its decorators, which import torch's compiler at the first call: that takes 2 s, and
    nothing here is compiled.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class _AdamW(_Eager, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(_Eager):
    """Nesterov momentum with updates of constant size: those of convolutions and matrices are made orthogonal (all
    singular values about 1), those of vectors get a root mean square of 0.1.

    parameters: as torch's optimizers take them. lr: of all parameters; the updates of matrices with more rows than
    columns are √(rows / columns) times as large. It is for nets without normalisation, in which the scale of a layer's
    weights matters. Source: Jordan et
    al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    _MOMENTUM, _VECTORS = 0.95, 0.1

    def __init__(self, parameters: Iterable[Any], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                self._move(parameters, group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        updates = self._nesterov(parameters, _gradients(parameters), self._MOMENTUM)
        matrices = [i for i, update in enumerate(updates) if update.ndim > 1]
        orthogonal = dict(zip(matrices, _orthogonalised([updates[i] for i in matrices]), strict=True))
        for i, (parameter, update) in enumerate(zip(parameters, updates, strict=True)):
            if i in orthogonal:
                scale = max(1.0, len(parameter) / parameter[0].numel()) ** 0.5
                _descend([parameter], [orthogonal[i]], group["lr"] * scale)
            else:
                root_mean_square = update.square().mean().sqrt().clamp_min(1e-12)
                _descend([parameter], [update / root_mean_square], group["lr"] * self._VECTORS)

    def _nesterov(self, parameters: list[Tensor], grads: list[Tensor], momentum: float) -> list[Tensor]:
        # torch's `_foreach` functions, as in its own optimizers: on a GPU, one kernel for all tensors of a list.
        buffers = self._momenta(parameters, grads)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        return list(torch._foreach_add(grads, buffers, alpha=momentum))

    def _momenta(self, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        for parameter, grad in zip(parameters, grads, strict=True):
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(grad)
        return [self.state[parameter]["momentum"] for parameter in parameters]


class AirbenchMuon(Muon):
    """Orthogonalised momentum for convolutions that a norm follows; SGD with Nesterov momentum for everything else.

    named_parameters: (name, parameter) pairs. lr: of the convolutions. weight_decay: of everything else: the fraction
    that a step at the peak learning rate subtracts.
    batch_size: the learning rates of everything else are proportional to it, since the loss is a mean over the batch.

    A convolution's weight (out, in, 3, 3), as a matrix (out, in · 9), is kept at Frobenius norm √out. Its update is its
    momentum, made orthogonal by a Newton–Schulz iteration with a polynomial of degree 5. Source: airbench94, also for
    the learning rates of the other parameters. Groups that are added later are updated as `Muon` does.
    """

    _FILTER_MOMENTUM, _SGD_MOMENTUM = 0.6, 0.85
    _BIAS_LR, _HEAD_LR = 0.053, 0.67  # per image of the batch

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float, batch_size: int
    ) -> None:
        named = list(named_parameters)
        filters = [p for _, p in named if p.ndim == 4]
        biases = [p for _, p in named if p.ndim == 1]
        matrices = [p for _, p in named if p.ndim == 2]
        groups = [
            {"params": filters, "lr": lr, "orthogonalise": True, "weight_decay": 0.0},
            {"params": biases, "lr": self._BIAS_LR * batch_size, "orthogonalise": False, "weight_decay": weight_decay},
            {
                "params": matrices,
                "lr": self._HEAD_LR * batch_size,
                "orthogonalise": False,
                "weight_decay": weight_decay,
            },
        ]
        super().__init__([group for group in groups if group["params"]], lr)
        self._plans: dict[tuple[torch.Size, ...], Any] = {}

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if "orthogonalise" not in group:
            super()._move(parameters, group)
            return
        grads = _gradients(parameters)
        if group["orthogonalise"]:
            if self._move_at_once(parameters, grads, group["lr"]):
                return
            for parameter, norm in zip(parameters, torch._foreach_norm(parameters), strict=True):
                parameter.mul_(len(parameter) ** 0.5 / norm)
            updates = _orthogonalised(self._nesterov(parameters, grads, self._FILTER_MOMENTUM))
        else:
            decay = group["weight_decay"] / group["peak_lr"]
            grads = list(torch._foreach_add(grads, torch._foreach_mul(parameters, decay)))
            updates = self._nesterov(parameters, grads, self._SGD_MOMENTUM)
        _descend(parameters, updates, group["lr"])

    def _move_at_once(self, parameters: list[Tensor], grads: list[Tensor], lr: float | Tensor) -> bool:
        """Update the filters in a few Triton kernels. Returns False if the device or these filters do not allow it."""
        device = parameters[0].device
        if not runs_kernels(device) or not has_bf16(device):
            return False
        from cifarctl.training import triton_muon

        grads = [_laid_out_as(parameter, grad) for parameter, grad in zip(parameters, grads, strict=True)]
        momenta = []
        for parameter, momentum in zip(parameters, self._momenta(parameters, grads), strict=True):
            momenta.append(_laid_out_as(parameter, momentum))  # a checkpoint may have another layout
            self.state[parameter]["momentum"] = momenta[-1]
        shapes = tuple(parameter.shape for parameter in parameters)
        if shapes not in self._plans:
            self._plans[shapes] = triton_muon.plan(parameters)
        plan = self._plans[shapes]
        if plan is None:
            return False
        rate = lr if isinstance(lr, Tensor) else torch.full((), lr, device=device)
        triton_muon.step(plan, parameters, grads, momenta, self._FILTER_MOMENTUM, rate, _QUINTIC, _ITERATIONS)
        return True


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _laid_out_as(parameter: Tensor, x: Tensor) -> Tensor:
    """`x` in the parameter's memory layout."""
    return x if x.stride() == parameter.stride() else torch.empty_like(parameter).copy_(x)


def _descend(parameters: list[Tensor], updates: list[Tensor], lr: float | Tensor) -> None:
    if isinstance(lr, Tensor):
        torch._foreach_sub_(parameters, list(torch._foreach_mul(updates, lr)))
    else:
        torch._foreach_add_(parameters, updates, alpha=-lr)


def _orthogonalised(updates: list[Tensor]) -> list[Tensor]:
    """Each update, (out, in, …), as a matrix with all singular values near 1. Those of equal shape are one batch."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i, update in enumerate(updates):
        by_shape.setdefault(update.shape, []).append(i)
    result = list(updates)
    for shape, indices in by_shape.items():
        matrices = torch.stack([updates[i].reshape(shape[0], -1) for i in indices])
        for i, matrix in zip(indices, newton_schulz(matrices), strict=True):
            result[i] = matrix.reshape(shape).to(updates[i].dtype)
    return result


# Coefficients of the Newton–Schulz iteration's polynomial, from Jordan et al. (2024): the steepest at zero whose
# iteration stays bounded.
_QUINTIC = 3.4445, -4.7750, 2.0315
_ITERATIONS = 3


def newton_schulz(matrices: Tensor, steps: int = _ITERATIONS) -> Tensor:
    """Move the singular values of float (K, M, N) towards 1: after three steps they are about 0.5 to 1.5.

    In bf16 if the hardware supports it; emulated, it took 56 % of a training step.
    """
    a, b, c = _QUINTIC
    x = matrices.bfloat16() if has_bf16(matrices.device) else matrices.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    if x.dtype == torch.bfloat16:
        for _ in range(steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
    else:
        # Each step multiplies x by a polynomial of its Gram matrix, and so the Gram matrix by the polynomial's square.
        # Iterating on Gram matrices takes two products with x instead of six: 44 instead of 99 ms. bf16 is too coarse
        # for it, since a Gram matrix squares the singular values.
        def polynomial(gram: Tensor) -> Tensor:
            sums = b * gram + c * gram @ gram
            sums.diagonal(dim1=1, dim2=2).add_(a)
            return sums

        gram = x @ x.mT
        product = factor = polynomial(gram)
        for _ in range(steps - 1):
            gram = factor @ gram @ factor
            factor = polynomial(gram)
            product = factor @ product
        x = product @ x
    return x.mT if tall else x
