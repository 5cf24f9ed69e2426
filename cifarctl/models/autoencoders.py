"""Autoencoders: they compress 3,072 pixel values to `latent_dim` floats, and decode them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cifarctl.hardware import algebra_device, memory_format
from cifarctl.models.base import Autoencoder
from cifarctl.models.layers import Conv3x3, Normalize, check_range
from cifarctl.models.pca import fit_pca


class ResidualAutoencoder(Autoencoder):
    """Principal components, residual convolutions that draw what those cannot, and latents fitted to both.

    latent_dim: floats per image, D, from 1 to 3072. width: channels of the convolutions. blocks: residual blocks, of
    two convolutions each. steps: the number of gradient steps by which `encode` fits an image's latents.

    An image is decoded as x̂(z) = m + C z + s d(Rᵀz, m + C z). m is the training images' mean, C their first D principal
    components and s the error that those leave, all frozen; d is a convolutional net on 4×4 patches whose last layer
    starts at zero. `encode` starts at z = Cᵀ(x - m) and descends the gradient of |x - x̂(z)|². So the model starts as
    PCA, the best linear autoencoder, where that gradient is zero, and training learns only what PCA cannot do.

    There is no encoder net: a net that predicts the latents overfits. No gradient passes through the steps: at the
    latents that are best for an image, moving them changes the error only to second order. Fitting the latents to each
    input is as old as sparse coding (Olshausen and Field, Nature, 1996); for autoencoders see Campos et al., "Content
    adaptive optimization for neural image compression", 2019 (arXiv:1906.01223).

    R makes the latents an image for the convolutions: D orthonormal rows over a grid of 8×8 cells, rotated so that the
    floats of each cell describe its own 4×4 pixels as well as they can. It is the orthogonal Procrustes solution
    between C and the patches' own principal components (Schönemann, "A generalized solution of the orthogonal
    Procrustes problem", Psychometrika, 1966).

    There is no normalisation layer: the net starts at zero and needs none.
    """

    useful_untrained = True
    _GRID, _PATCH = 8, 4
    # C is orthonormal, so a step of one would reach the best latents if the decoder were linear; d is not, and steps of
    # 0.6 overshoot.
    _STEP, _MOMENTUM = 0.4, 0.4
    # Longer and fewer steps in training make d smoother: with the values above, PSNR was 0.09 dB lower.
    _TRAINING_STEP, _TRAINING_STEPS = 0.6, 2

    def __init__(self, latent_dim: int = 256, width: int = 160, blocks: int = 4, steps: int = 5) -> None:
        super().__init__()
        check_range(
            latent_dim=(latent_dim, 1, 3072), width=(width, 1, 2048), blocks=(blocks, 0, 64), steps=(steps, 0, 16)
        )
        self.latent_dim, self.steps = latent_dim, steps
        pixels, cells = 3 * self._PATCH**2, self._GRID**2
        channels = -(-latent_dim // cells)
        # The same deviation for all channels, so that squared errors stay proportional to those of pixels.
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.mean: Tensor
        self.scale: Tensor
        self.rotation: Tensor
        self.register_buffer("mean", torch.zeros(3072))
        self.register_buffer("scale", torch.ones(()))  # s; without it, rates that suit 256 floats are too high for 512
        self.register_buffer("rotation", torch.eye(latent_dim, channels * cells))  # R
        # C is a parameter so that fine-tuning can train it; training it here gains nothing.
        self.components = nn.Parameter(torch.eye(3072, latent_dim), requires_grad=False)
        self.decoder = nn.Sequential(
            Conv3x3(channels + pixels, width, bias=True),
            *(_Block(width) for _ in range(blocks)),
            _zero(nn.Conv2d(width, pixels, 1)),
            nn.PixelShuffle(self._PATCH),
        )

    def initialize(self, images: Tensor) -> None:
        """Fit C, m, s and R to the images, in a few seconds."""
        device, images = images.device, images.to(algebra_device(images.device))
        mean, components = fit_pca(images)
        mean, components = mean.view(3, 32, 32), components[:, : self.latent_dim]
        sample = images[:5000].float() / 255 - mean
        patches = F.pixel_unshuffle(sample, self._PATCH).permute(0, 2, 3, 1).flatten(0, 2)
        channels = self.rotation.shape[1] // self._GRID**2
        local = torch.linalg.eigh(patches.T @ patches)[1].flip(1)[:, :channels]  # (48, channels)
        # Each column of `local` placed on each patch alone: (channels · 64, 48, 8, 8), then as images.
        cells = torch.eye(self._GRID**2, device=mean.device).view(-1, self._GRID, self._GRID)
        basis = torch.einsum("pc,kyx->ckpyx", local, cells).flatten(0, 1)
        basis = F.pixel_shuffle(basis, self._PATCH).flatten(1)
        left, _, right = torch.linalg.svd(components.T @ basis.T, full_matrices=False)
        pixels = sample.flatten(1)
        error = (pixels - pixels @ components @ components.T).square().mean().sqrt()
        with torch.no_grad():
            self.mean.copy_(self.normalize(mean[None].to(device)).flatten())
            self.components.copy_(components)
            self.rotation.copy_(left @ right)
            self.scale.copy_((error.to(device) / self.normalize.std.mean()).clamp_min(1e-3))

    def encode(self, x: Tensor) -> Tensor:
        """The best latents of each image that `steps` gradient steps find.

        In training, 0 to 2 steps are taken, drawn at random: that is faster, and the decoder also learns to decode the
        latents where the steps start, without which training diverged.
        """
        trained = torch.is_grad_enabled()
        pixels = self.normalize(x)
        start = F.linear(pixels.flatten(1) - self.mean, self.components.T)
        steps, length, momentum = self.steps, self._STEP, self._MOMENTUM
        if self.training:
            steps = self.draw_variant() if self.variant is None else self.variant
            length, momentum = self._TRAINING_STEP, 0.0
        # If nothing is learnt yet, PCA's latents are the best. This check makes a GPU wait, so training skips it.
        elif not trained and not any(weight.any() for weight in self.decoder[-2].parameters()):
            steps = 0
        # The latents need a gradient here even if the caller has disabled gradients; the weights never do. Detached
        # weights avoid computing unused gradients in training; elsewhere, swapping weights is not safe for threads.
        with torch.inference_mode(False), torch.enable_grad():
            named = self.decoder.named_parameters() if trained else ()
            weights = {name: weight.detach() for name, weight in named}
            components = self.components.detach()
            target, z = pixels.detach().clone().float(), start.detach().clone().float()
            velocity = torch.zeros_like(z)
            for _ in range(steps):
                z.requires_grad_()
                errors = (self._draw(z, components, weights).float() - target).square().flatten(1).sum(1)
                (gradient,) = torch.autograd.grad(errors.sum() / 2, z)
                # Never longer than Polyak's step, which would reach an error of zero on a linear slope.
                longest = errors.detach() / gradient.square().sum(1).clamp_min(1e-12)
                velocity = momentum * velocity - gradient * longest.clamp_max(length)[:, None]
                z = z.detach() + velocity
        return start + (z.detach() - start.detach())  # the gradient of fine-tuning skips the steps

    def draw_variant(self) -> int:
        """The number of steps that `encode` takes in a training step."""
        return int(torch.randint(min(self.steps, self._TRAINING_STEPS) + 1, ()))

    def decode(self, z: Tensor) -> Tensor:
        y = self._draw(z, self.components) * self.normalize.std + self.normalize.mean
        return y if self.training else y.clamp(0, 1)

    def _draw(self, z: Tensor, components: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Latents -> normalised images. weights: used instead of the decoder's own, if given."""
        linear = (F.linear(z, components) + self.mean).view(-1, 3, 32, 32)
        grid = F.linear(z, self.rotation.T).unflatten(1, (-1, self._GRID, self._GRID))
        features = torch.cat((grid, F.pixel_unshuffle(linear, self._PATCH)), dim=1)
        features = features.contiguous(memory_format=memory_format(features.device))
        residual = functional_call(self.decoder, weights, features) if weights else self.decoder(features)
        return linear + self.scale * residual


class _Block(nn.Module):
    """x + W₁ gelu(W₃ x): a 3×3 and a 1×1 convolution, the second one zero at first."""

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
    """The usual beginner's autoencoder, as a baseline: two strided convolutions down to 8×8, two transposed ones up.

    latent_dim: a multiple of 64, up to 2048. width: channels between the two convolutions.
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
        y = self.decoder(z.unflatten(1, (-1, 8, 8))) * self.normalize.std + self.normalize.mean
        return y if self.training else y.clamp(0, 1)
