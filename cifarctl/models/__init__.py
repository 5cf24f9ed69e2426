"""The registry of models by name. Importing it imports no torch; building a model does."""

import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cifarctl.models.base import Model

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


def build(name: str, *, encoder: dict[str, Any] | None = None, **config: Any) -> "Model":
    """Make a model of the registered `name` with fresh weights.

    `config` is plain JSON, the arguments of the model's class. encoder: {"model": NAME, "config": {…}} of the
    autoencoder whose latents a classifier sees. Raises KeyError on an unknown name, TypeError or ValueError on
    arguments that the model does not take.
    """
    if encoder is None:
        return model_class(name)(**config)
    if REGISTRY[encoder["model"]].kind != "autoencoder":
        raise ValueError(f"encoder is {encoder['model']!r}, which is no autoencoder")
    return model_class(name)(encoder=build(encoder["model"], **encoder["config"]), **config)


def arguments(name: str) -> dict[str, Any]:
    """What `build` takes for the registered `name`, with the defaults."""
    return {key: argument.default for key, argument in inspect.signature(model_class(name)).parameters.items()}


def model_class(name: str) -> "type[Model]":
    """The class of the registered `name`, which is imported now. Raises KeyError on an unknown one."""
    spec = REGISTRY[name]
    found: type[Model] = getattr(importlib.import_module(f"cifarctl.models.{spec.module}"), spec.class_name)
    return found
