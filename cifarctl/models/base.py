"""What every model of a kind can do. Inputs are uint8 or float in [0, 1], (N, 3, 32, 32); normalisation is inside."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from cifarctl.models.layers import check_range

# Of a probability that smoothing alone explains, what is left of it.
_FLOOR = 0.01


class Model(nn.Module, ABC):
    """Any model of the registry.

    useful_untrained: True if `initialize` alone makes a model worth keeping, which training then starts from.
    variant: which of several ways through the model a training step takes; None draws one with `draw_variant`.
    """

    useful_untrained: ClassVar[bool] = False
    variant: int | None = None

    def draw_variant(self) -> int:
        """A way through the model for one training step, drawn on the CPU; a CUDA graph holds the operations of one."""
        return 0

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

    Outside training they are `calibrated`: that changes no prediction, but makes their softmax as confident as the
    model is right. temperature, smoothing: buffers for it, set after training (`training.calibration`).

    encoder: the autoencoder whose latents are all that the model knows of an image; None for the pixels.
    feature_kind: what `features` returns: images, (N, 3, H, W), whose size may vary, or vectors, (N, D).
    """

    feature_kind: ClassVar[Literal["images", "vectors"]] = "images"
    temperature: Tensor
    smoothing: Tensor

    def __init__(self, classes: int, encoder: Autoencoder | None = None) -> None:
        super().__init__()
        check_range(classes=(classes, 2, 100_000))
        self.classes = classes
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("smoothing", torch.zeros(()))
        self.encoder = encoder

    def features(self, x: Tensor) -> Tensor:
        """Images -> what `classify` sees of them: the images themselves, or their reconstructions, (N, 3, H, W)."""
        return x if self.encoder is None else self.encoder(x)

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Features -> logits as they are trained."""

    def train(self, mode: bool = True) -> Self:
        """The autoencoder stays as it is in use, also where it is fine-tuned: there is no other way to be right."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits as they are trained -> as they are in use, float (N, classes)."""
        return calibrated(logits, self.temperature, self.smoothing)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classify(self.features(x))
        return logits if self.training else self.calibrated(logits)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Files of version 0.2 and before have none.
        state_dict.setdefault(f"{prefix}smoothing", torch.zeros_like(state_dict[f"{prefix}temperature"]))
        super()._load_from_state_dict(state_dict, prefix, *args)


def calibrated(logits: Tensor, temperature: Tensor, smoothing: Tensor) -> Tensor:
    """Logits as they are trained, float (N, C) -> logits whose softmax is the probability of each class, in the same
    order.

    The softmax of the logits over the temperature is taken for probabilities p that training has smoothed, to
    (1 - smoothing) p + smoothing / C. Those that would be negative without the smoothing stay a little above zero.
    """
    scaled = logits / temperature
    logs = scaled.to(torch.promote_types(scaled.dtype, torch.float32)).log_softmax(-1)
    smoothed = logs.exp()
    likely = smoothed - smoothing / logits.shape[-1]
    logs = torch.where(likely > 0, (likely + _FLOOR * smoothed).log(), logs + math.log(_FLOOR))
    return torch.where(smoothing > 0, logs, scaled)  # a GPU would wait for an `if`
