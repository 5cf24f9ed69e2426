"""A model's weights by name: to copy, to average, to replace for a while, and which of them training may change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cifarctl.models.base import Model
from cifarctl.training.recipes import Recipe


def copy_weights(model: Model) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: Model, decay: float) -> None:
    """Make `average`, an exponential moving average of weights, decay · average + (1 - decay) · the model's. Integers
    become the model's.
    """
    tensors = model.state_dict()
    averaged = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in averaged], [tensors[name] for name in averaged], 1 - decay)
    for name in tensors.keys() - set(averaged):
        average[name].copy_(tensors[name])


@contextmanager
def weights_replaced(model: Model, replacement: dict[str, Tensor]) -> Iterator[None]:
    """Inside, `model` has the weights `replacement`, unless that is empty."""
    if not replacement:
        yield
        return
    own = copy_weights(model)
    model.load_state_dict(replacement)
    try:
        yield
    finally:
        model.load_state_dict(own)


def set_training_mode(model: Model, recipe: Recipe) -> None:
    """Set the model to training mode, but its batch norms only if the recipe lets them use the batch's statistics."""
    model.train()
    if recipe.norms == "stored":
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
