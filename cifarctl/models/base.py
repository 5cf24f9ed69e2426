"""The interfaces of models. Inputs are uint8 or float in [0, 1], (N, 3, 32, 32); models normalise them themselves."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from cifarctl.models.layers import check_range

if TYPE_CHECKING:
    from cifarctl.typicality import Typicality

STAGE_WIDTH = 1024  # the most channels of a stage that `typicality` looks at

# The fraction that is kept of a probability that label smoothing alone explains.
_FLOOR = 0.01


class Model(nn.Module, ABC):
    """Any model of the registry.

    useful_untrained: whether a model that has not been trained yet is worth keeping: `initialize` alone makes it so, or
        weights that it starts from.
    variant: which of several paths through the model a training step takes; None draws one with `draw_variant`.
    """

    useful_untrained: bool = False
    variant: int | None = None

    def draw_variant(self) -> int:
        """Draw a path through the model for one training step, on the CPU: each path gets a CUDA graph of its own."""
        return 0

    def initialize(self, images: Tensor) -> None:
        """Compute the weights that have a closed form, from training images uint8 (N, 3, 32, 32), before training."""


class Autoencoder(Model):
    """`forward` is `decode` after `encode`."""

    latent_dim: int

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Images -> latents, float (N, latent_dim)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, latent_dim) -> images, float (N, 3, 32, 32) in [0, 1].

        In training mode values may be outside [0, 1], since a clamp has no gradient there.
        """

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Classifier(Model):
    """`forward`: images -> logits, float (N, classes).

    Outside training mode they are `calibrated`: predictions stay the same, but their confidence matches the accuracy.
    temperature, smoothing: the buffers for that, set after training (`training.calibration`).

    typicality: the score of how like the training images an image is, fitted after training; None without one.

    encoder: the autoencoder through whose latents the model sees an image; None if it sees the pixels.
    feature_kind: what `features` returns: images, (N, 3, H, W), whose size may vary, or vectors, (N, D).
    """

    feature_kind: ClassVar[Literal["images", "vectors"]] = "images"
    temperature: Tensor
    smoothing: Tensor
    typicality: "Typicality | None" = None

    def __init__(self, classes: int, encoder: Autoencoder | None = None) -> None:
        super().__init__()
        check_range(classes=(classes, 2, 100_000))
        self.classes = classes
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("smoothing", torch.zeros(()))
        self.encoder = encoder

    def features(self, x: Tensor) -> Tensor:
        """Images -> the input of `classify`: the images themselves or their reconstructions, (N, 3, H, W)."""
        return x if self.encoder is None else self.encoder(x)

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Features -> logits before calibration, float (N, classes)."""

    def stages(self, features: Tensor) -> Iterator[Tensor]:
        """Features -> what `typicality` judges an image by: activations, each (N, C, H, W) or (N, D), and last the
        logits before calibration. Without a method of its own, a model gives the logits alone.
        """
        yield self.classify(features)

    @property
    def summary_size(self) -> int:
        """How many numbers `typicality.summarize` makes of the stages of one image."""
        return self.classes + 1

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the autoencoder stays in evaluation mode, even while it is fine-tuned."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits before calibration -> after it, float (N, classes)."""
        return calibrated(logits, self.temperature, self.smoothing)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classify(self.features(x))
        return logits if self.training else self.calibrated(logits)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Weights files of version 0.2 and before have no smoothing.
        state_dict.setdefault(f"{prefix}smoothing", torch.zeros_like(state_dict[f"{prefix}temperature"]))
        # Their score of typicality is read by `weights`: it is no layer of the model.
        for name in [name for name in state_dict if name.startswith(f"{prefix}typicality.")]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)


def calibrated(logits: Tensor, temperature: Tensor, smoothing: Tensor) -> Tensor:
    """Calibrate logits, float (N, C) -> (N, C): their softmax then estimates probabilities; the order stays the same.

    The softmax of logits / temperature is assumed to be (1 - smoothing) p + smoothing / C, as label smoothing trains
    it, and is solved for p. Values of p that would be negative stay a little above zero.
    """
    scaled = logits / temperature
    logs = scaled.to(torch.promote_types(scaled.dtype, torch.float32)).log_softmax(-1)
    smoothed = logs.exp()
    likely = smoothed - smoothing / logits.shape[-1]
    logs = torch.where(likely > 0, (likely + _FLOOR * smoothed).log(), logs + math.log(_FLOOR))
    return torch.where(smoothing > 0, logs, scaled)  # an `if` would make a GPU wait
