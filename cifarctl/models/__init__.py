"""The registry of models by name. Importing it imports no torch; building a model does."""

import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["autoencoder", "classifier"]


@dataclass(frozen=True)
class ModelSpec:
    """Where a registered model's class is, and what kind of model it is."""

    kind: Kind
    module: str
    class_name: str
    summary: str


REGISTRY: dict[str, ModelSpec] = {
    "resconv": ModelSpec(
        "autoencoder",
        "autoencoders",
        "ResidualAutoencoder",
        "principal components, residual convolutions that decode, latents fitted to each image",
    ),
    "conv2": ModelSpec(
        "autoencoder", "autoencoders", "TwoConvAutoencoder", "baseline: two convolutions down, two transposed up"
    ),
    "airbench": ModelSpec(
        "classifier", "classifiers", "Airbench", "whitening, then three groups of two convolutions (airbench94)"
    ),
    "mlp": ModelSpec(
        "classifier", "classifiers", "MLP", "fully connected layers on an autoencoder's latents, or on pixels"
    ),
}


def names(kind: Kind) -> list[str]:
    """The registered models of one kind, the default first."""
    return [name for name, spec in REGISTRY.items() if spec.kind == kind]


def build(name: str, **config: Any) -> "nn.Module":
    """Make a model of the registered `name` with fresh weights.

    `config` is plain JSON, the arguments of the model's class. Raises KeyError on an unknown name, TypeError or
    ValueError on arguments that the model does not take.
    """
    model: nn.Module = _class_of(name)(**config)
    return model


def arguments(name: str) -> list[str]:
    """What `build` takes for the registered `name`."""
    return list(inspect.signature(_class_of(name)).parameters)


def _class_of(name: str) -> "type[nn.Module]":
    spec = REGISTRY[name]
    found: type[nn.Module] = getattr(importlib.import_module(f"cifarctl.models.{spec.module}"), spec.class_name)
    return found
