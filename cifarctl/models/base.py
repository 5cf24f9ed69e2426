"""What every model of a kind can do. Inputs are uint8 or float in [0, 1], (N, 3, 32, 32); normalisation is inside."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from cifarctl import models
from cifarctl.models.layers import check_range


class Model(nn.Module, ABC):
    """Any model of the registry.

    useful_untrained: True where `initialize` alone makes a model worth keeping, which training then starts from.
    varies: True where a training step is not made of the same operations as the one before, since Python draws some: a
    CUDA graph would repeat those of one step.
    """

    useful_untrained: ClassVar[bool] = False
    varies: ClassVar[bool] = False

    def initialize(self, images: Tensor) -> None:
        """Set what has a closed form from training images, uint8 (N, 3, 32, 32), before the first step."""


class Autoencoder(Model):
    """`forward` is `decode` after `encode`."""

    latent_dim: int

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Images -> latents, float (N, latent_dim)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, latent_dim) -> images, float (N, 3, 32, 32) in [0, 1].

        In training mode they may leave [0, 1], since a clamp has no gradient outside.
        """

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Classifier(Model):
    """`forward`: images -> logits, float (N, classes).

    Outside training they are divided by `temperature`, a buffer: it changes no prediction, but makes the softmax of the
    logits as confident as the model is right (`training.calibration`).

    encoder: {"model": NAME, "config": {…}} of the autoencoder whose latents are all that the model knows of an image;
    None for the pixels.
    """

    temperature: Tensor

    def __init__(self, classes: int, encoder: dict[str, Any] | None = None) -> None:
        super().__init__()
        check_range(classes=(classes, 2, 100_000))
        self.classes = classes
        self.register_buffer("temperature", torch.ones(()))
        autoencoder = None if encoder is None else models.build(encoder["model"], **encoder["config"])
        if not isinstance(autoencoder, Autoencoder | None):
            raise ValueError(f"encoder is {encoder and encoder['model']!r}, which is no autoencoder")
        self.encoder = autoencoder

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Images -> what `classify` sees of them, (N, …)."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Features -> logits as they are trained."""

    def train(self, mode: bool = True) -> Self:
        """The autoencoder stays as it is in use, also where it is fine-tuned: there is no other way to be right."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classify(self.features(x))
        return logits if self.training else logits / self.temperature
