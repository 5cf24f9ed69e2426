"""Autoencoders: 3,072 pixel values to `latent_dim` floats and back."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarctl.models.base import Autoencoder
from cifarctl.models.layers import Conv3x3, Normalize, check_range
from cifarctl.models.pca import fit_pca


class ResidualAutoencoder(Autoencoder):
    """Principal components, and residual convolutions that make more of as many floats.

    latent_dim: floats an image, D, from 1 to 3072. width: channels of the convolutions. encoder_blocks, decoder_blocks:
    residual blocks on each side; the decoder gets more, since what it must invent is harder than what the encoder must
    keep.

    z = Cᵀ(x - m) + R e(x) and x̂ = m + C z + d(Rᵀz, m + C z). m is the training images' mean and C their first D
    principal components, both frozen; e and d are convolutions on 4×4 patches whose last layers start at zero. So the
    model starts as PCA, the best linear autoencoder, and what is trained is only what PCA cannot do.

    R makes the latents a picture for the convolutions: D orthonormal rows over a grid of 8×8 cells, turned so that each
    cell's floats say as much as they can of their own 4×4 pixels. It is the orthogonal Procrustes solution between C
    and the patches' own principal components (Schönemann, "A generalized solution of the orthogonal Procrustes
    problem", Psychometrika, 1966).

    There is no normalisation layer: the nets start at zero and need none. It cost a quarter of the speed and gained no
    PSNR.
    """

    useful_untrained = True
    _GRID, _PATCH = 8, 4

    def __init__(
        self, latent_dim: int = 256, width: int = 160, encoder_blocks: int = 2, decoder_blocks: int = 4
    ) -> None:
        super().__init__()
        check_range(
            latent_dim=(latent_dim, 1, 3072),
            width=(width, 1, 2048),
            encoder_blocks=(encoder_blocks, 0, 64),
            decoder_blocks=(decoder_blocks, 0, 64),
        )
        self.latent_dim = latent_dim
        pixels, cells = 3 * self._PATCH**2, self._GRID**2
        channels = -(-latent_dim // cells)
        # One mean and deviation for all channels, so that squared errors stay in units of pixels.
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.mean: Tensor
        self.components: Tensor
        self.rotation: Tensor
        self.register_buffer("mean", torch.zeros(3072))
        self.register_buffer("components", torch.eye(3072, latent_dim))  # C
        self.register_buffer("rotation", torch.eye(latent_dim, channels * cells))  # R
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(self._PATCH),  # (N, 48, 8, 8)
            Conv3x3(pixels, width, bias=True),
            *(_Block(width) for _ in range(encoder_blocks)),
            _zero(nn.Conv2d(width, channels, 1)),
        )
        self.decoder = nn.Sequential(
            Conv3x3(channels + pixels, width, bias=True),
            *(_Block(width) for _ in range(decoder_blocks)),
            _zero(nn.Conv2d(width, pixels, 1)),
            nn.PixelShuffle(self._PATCH),
        )

    def initialize(self, images: Tensor) -> None:
        """Fit C, m and R to the images: a few seconds."""
        mean, components = fit_pca(images)
        mean, components = mean.view(3, 32, 32), components[:, : self.latent_dim]
        patches = F.pixel_unshuffle(images[:5000].float() / 255 - mean, self._PATCH).permute(0, 2, 3, 1).flatten(0, 2)
        channels = self.rotation.shape[1] // self._GRID**2
        local = torch.linalg.eigh(patches.T @ patches)[1].flip(1)[:, :channels]  # (48, channels)
        # Each column of `local` on each patch of its own: (channels · 64, 48, 8, 8), then as images.
        cells = torch.eye(self._GRID**2, device=mean.device).view(-1, self._GRID, self._GRID)
        basis = torch.einsum("pc,kyx->ckpyx", local, cells).flatten(0, 1)
        basis = F.pixel_shuffle(basis, self._PATCH).flatten(1)
        left, _, right = torch.linalg.svd(components.T @ basis.T, full_matrices=False)
        self.mean.copy_(self.normalize(mean[None]).flatten())
        self.components.copy_(components)
        self.rotation.copy_(left @ right)

    def encode(self, x: Tensor) -> Tensor:
        pixels = self.normalize(x)
        linear = F.linear(pixels.flatten(1) - self.mean, self.components.T)
        return linear + F.linear(self.encoder(pixels).flatten(1), self.rotation)

    def decode(self, z: Tensor) -> Tensor:
        linear = (F.linear(z, self.components) + self.mean).view(-1, 3, 32, 32)
        grid = F.linear(z, self.rotation.T).view(len(z), -1, self._GRID, self._GRID)
        features = torch.cat((grid, F.pixel_unshuffle(linear, self._PATCH)), dim=1)
        y = linear + self.decoder(features.contiguous(memory_format=torch.channels_last))
        y = y * self.normalize.std + self.normalize.mean
        return y if self.training else y.clamp(0, 1)


class _Block(nn.Module):
    """x + W₁ gelu(W₃ x): a 3×3 and a 1×1 convolution, the latter zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = Conv3x3(width, width, bias=True)
        self.pointwise = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(F.gelu(self.spatial(x)))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class TwoConvAutoencoder(Autoencoder):
    """The usual beginner's autoencoder, kept as a baseline: two strided convolutions down to 8×8, two transposed up.

    latent_dim: a multiple of 64. width: channels between the two convolutions.
    """

    def __init__(self, latent_dim: int = 256, width: int = 16) -> None:
        super().__init__()
        check_range(latent_dim=(latent_dim, 64, 2048), width=(width, 1, 2048))
        if latent_dim % 64:
            raise ValueError(f"latent_dim is {latent_dim}, not a multiple of 64")
        self.latent_dim = latent_dim
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, latent_dim // 64, 3, stride=2, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(latent_dim // 64, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(self.normalize(x)).flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        y = self.decoder(z.view(len(z), -1, 8, 8)) * self.normalize.std + self.normalize.mean
        return y if self.training else y.clamp(0, 1)
