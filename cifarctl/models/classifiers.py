"""Classifiers: images to logits."""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from cifarctl.hardware import algebra_device
from cifarctl.models.base import STAGE_WIDTH, Autoencoder, Classifier
from cifarctl.models.fused import cast_for_autocast, norm_silu, whiten_silu
from cifarctl.models.layers import Conv3x3, MaxPool2x2, Normalize, check_range

Pool = Literal["max", "max+mean"]


class Airbench(Classifier):
    """A frozen whitening layer, three groups of 3×3 convolutions, one linear layer, for images of 16×16 pixels or more.

    classes: the number of logits. widths: channels of the three groups. depth: convolutions per group, one number for
    all groups or one for each. whiten_bias: whether the whitening layer has a bias; training it makes a step 5 %
    longer. pool: over all positions, before the linear layer: the maximum, or the sum of maximum and mean.
    encoder: see Classifier; the images are then those that the autoencoder decodes from its latents.

    The architecture is that of airbench94 (depth 2) and airbench96 (depth 3), with SiLU instead of GELU, which is
    faster: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (arXiv:2404.00498).
    """

    def __init__(
        self,
        classes: int = 10,
        widths: tuple[int, int, int] = (64, 256, 256),
        depth: int | tuple[int, int, int] = 2,
        whiten_bias: bool = False,
        pool: Pool = "max",
        encoder: Autoencoder | None = None,
    ) -> None:
        super().__init__(classes, encoder)
        depths = (depth,) * 3 if isinstance(depth, int) else depth
        for name, values in (("widths", widths), ("depth", depths)):
            if len(values) != 3:
                raise ValueError(f"{name} has {len(values)} values, not one for each of the three groups")
        first, second, third = widths
        check_range(**{f"widths[{i}]": (width, 24, 4096) for i, width in enumerate(widths)})
        check_range(**{f"depth[{i}]": (number, 1, 16) for i, number in enumerate(depths)})
        if pool not in get_args(Pool):
            raise ValueError(f"pool is {pool!r}, not one of {get_args(Pool)}")
        self.pool, self.depths, self.widths = pool, depths, widths
        self.normalize = Normalize()
        self.whiten = nn.Conv2d(3, 24, kernel_size=2, bias=whiten_bias)  # (N, 24, 31, 31)
        self.whiten.weight.requires_grad = False
        if self.whiten.bias is not None:
            nn.init.zeros_(self.whiten.bias)
        self.groups = nn.Sequential(*(_Group(*args) for args in zip((24, first, second), widths, depths, strict=True)))
        self.head = nn.Linear(third, classes, bias=False)
        # A standard deviation of one. To compute it on the meta device, as airbench does, would import the compiler
        # whenever a weights file is loaded: 1.3 s.
        nn.init.uniform_(self.head.weight, -math.sqrt(3), math.sqrt(3))

    def initialize(self, images: Tensor) -> None:
        """Make the first layer whiten 2×2 patches: its filters are the eigenvectors of their covariance over the square
        roots of the eigenvalues, and the same negated, so that the SiLU after it loses no information.
        """
        with torch.no_grad():
            sample = torch.cat([self.normalize(self.features(chunk)) for chunk in images[:5000].split(500)])
        sample = sample.to(algebra_device(sample.device))
        patches = sample.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        covariance = (patches.T @ patches / len(patches)).cpu()  # no need to load a GPU's solver for 12 × 12 values
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        filters = (eigenvectors / (eigenvalues + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
        with torch.no_grad():
            self.whiten.weight.copy_(torch.cat((filters, -filters)))

    def classify(self, features: Tensor) -> Tensor:
        for stage in self.stages(features):
            logits = stage  # no list: it would keep all activations in memory
        return logits

    @property
    def summary_size(self) -> int:
        """Two numbers per channel of the groups, and what any classifier has."""
        return 2 * sum(min(width, STAGE_WIDTH) for width in self.widths) + super().summary_size

    def stages(self, features: Tensor) -> Iterator[Tensor]:
        """Features -> the output of each group, and the logits."""
        x = whiten_silu(self.normalize, self.whiten, features)
        filters = cast_for_autocast([parameter for parameter in self.groups.parameters() if parameter.ndim == 4])
        for group, depth in zip(self.groups, self.depths, strict=True):
            x = group(x, filters[:depth])
            filters = filters[depth:]
            yield x
        y = x.amax((2, 3))
        if self.pool == "max+mean":
            y = y + x.mean((2, 3))
        yield self.head(y) / y.shape[1]


class _Group(nn.Module):
    """Convolution, pool, norm, SiLU, then `depth - 1` times convolution, norm, SiLU: (N, C, H, W) ->
    (N, D, H // 2, W // 2).

    If there are three convolutions or more, the first SiLU's output is added before the last SiLU.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int) -> None:
        super().__init__()
        self.pool = MaxPool2x2()
        convs = [Conv3x3(in_channels if i == 0 else out_channels, out_channels) for i in range(depth)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(_shift_norm(out_channels) for _ in range(depth))
        for conv in convs:
            # The first filters copy their input, so that the net starts as a shallow one.
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor, filters: Sequence[Tensor | None] = ()) -> Tensor:
        """filters: each convolution's weight, already cast, or None for its own."""
        weights = filters or [None] * len(self.convs)
        first = x = norm_silu(self._norm(0), self.convs[0](x, weights[0]), pool=self.pool)
        last = len(self.convs) - 1
        for i in range(1, last + 1):
            residual = first if i == last > 1 else None
            x = norm_silu(self._norm(i), self.convs[i](x, weights[i]), residual)
        return x

    def _norm(self, i: int) -> nn.BatchNorm2d:
        norm = self.norms[i]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm


def _shift_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation that learns an offset but no scale."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.2)
    norm.weight.requires_grad = False
    return norm


class MLP(Classifier):
    """Fully connected layers on an autoencoder's latents, or on the pixels if there is no encoder.

    classes: the number of logits. hidden: widths of the hidden layers. dropout: its probability, after each of them.
    encoder: see Classifier.
    """

    feature_kind: ClassVar[Literal["images", "vectors"]] = "vectors"

    def __init__(
        self,
        classes: int = 10,
        hidden: tuple[int, ...] = (1024, 512),
        dropout: float = 0.3,
        encoder: Autoencoder | None = None,
    ) -> None:
        super().__init__(classes, encoder)
        check_range(layers=(len(hidden), 0, 32))
        check_range(**{f"hidden[{i}]": (width, 1, 65_536) for i, width in enumerate(hidden)})
        self.hidden = tuple(hidden)
        self.normalize = Normalize() if self.encoder is None else None
        dim = 3 * 32 * 32 if self.encoder is None else self.encoder.latent_dim
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(dim))
        self.register_buffer("latent_std", torch.ones(dim))
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(dropout)]
            dim = width
        self.head = nn.Sequential(*layers, nn.Linear(dim, classes))

    def features(self, x: Tensor) -> Tensor:
        """Images -> latents or normalised pixels, float (N, D)."""
        return self.encoder.encode(x) if self.normalize is None else self.normalize(x).flatten(1)  # type: ignore[union-attr]

    def classify(self, features: Tensor) -> Tensor:
        return self.head((features - self.latent_mean) / self.latent_std)

    @property
    def summary_size(self) -> int:
        """One number per hidden unit, two per hidden layer, and what any classifier has."""
        return sum(min(width, STAGE_WIDTH) + 2 for width in self.hidden) + super().summary_size

    def stages(self, features: Tensor) -> Iterator[Tensor]:
        """Features -> the output of each hidden layer, and the logits."""
        x = (features - self.latent_mean) / self.latent_std
        for layer in self.head:
            x = layer(x)
            if isinstance(layer, nn.GELU):
                yield x
        yield x

    def initialize(self, images: Tensor) -> None:
        """Set the mean and deviation by which `classify` standardises each feature, from 5,000 training images."""
        with torch.no_grad():
            latents = torch.cat([self.features(chunk).float() for chunk in images[:5000].split(500)])
            self.latent_mean.copy_(latents.mean(0))
            self.latent_std.copy_(latents.std(0).clamp_min(1e-6))
