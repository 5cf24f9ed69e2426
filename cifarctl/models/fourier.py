"""3×3 convolutions as products of Fourier transforms: what makes a CPU without AMX fast."""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cifarctl import hardware

# Up to this size, one product with a large matrix transforms an image faster than two with small ones, one per axis.
_ONE_PRODUCT_UP_TO = 8
# Images that are transformed at a time, so that intermediate values stay in the cache.
_CHUNK_MEBIBYTES = 2


class FourierConv(torch.autograd.Function):
    """`F.conv2d(x, weight, padding=1)` for square images and 3×3 filters: (N, I, S, S), (O, I, 3, 3) -> (N, O, S, S),
    channels last in memory.

    On a torus at least one pixel longer than the image, opposite edges do not touch, and a convolution is a product at
    each frequency: 256->256 at 7×7 takes 94 products of matrices (N, I) and (I, O), and computed directly 441. Such
    short transforms are products with small matrices, so all of it is BLAS, without copies. Rounding errors are half
    of the direct convolution's in fp32 and twice as large in bf16, 0.4 to 0.6 % of the result.

    Mathieu et al., "Fast training of convolutional networks through FFTs", 2013 (arXiv:1312.5851); Zlateski et al.,
    "FFT convolutions are faster than Winograd on modern CPUs", 2018 (arXiv:1809.07851).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rows, image, _, inverse = ctx.transforms = _transforms(x.shape[-1], x.dtype)
        spectra, filters = _spectra(rows, image, x), transform_filters(weight, x.shape[-1])
        ctx.save_for_backward(spectra, filters)
        return _images(rows, inverse, _multiply(spectra, filters.mT))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, image, taps, inverse = ctx.transforms
        spectra, filters = ctx.saved_tensors
        grad = _spectra(rows, inverse.T, grads[0])
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _images(rows, image.T, _multiply(grad, filters))
        if ctx.needs_input_grad[1]:
            products = torch.bmm(grad.mT, spectra)  # (R, O, I)
            grad_weight = (taps.T @ products.flatten(1)).view(3, 3, *filters.shape[1:]).permute(2, 3, 0, 1)
        return grad_x, grad_weight


def fourier_conv(x: Tensor, filters: Tensor) -> Tensor:
    """`FourierConv` without a gradient: (N, I, S, S), filters (R, O, I) of `transform_filters` -> (N, O, S, S)."""
    rows, image, _, inverse = _transforms(x.shape[-1], x.dtype)
    return _images(rows, inverse, _multiply(_spectra(rows, image, x), filters.mT))


def transform_filters(weight: Tensor, side: int) -> Tensor:
    """The transforms of filters for images of `side` × `side` pixels: (O, I, 3, 3) -> (R, O, I)."""
    taps = _transforms(side, weight.dtype).taps
    return (taps @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, *weight.shape[:2])


def fourier_conv_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `FourierConv`, with its gradients if they are enabled, is faster than a direct convolution on a CPU.

    It needs a library with batched matrix products. It does not pay for few images, since the filters' transforms
    cost the same for one image as for a thousand, nor for large images with few channels, since their transforms cost
    more than the products save. In bf16 with AMX it is not used; nobody has measured it there.
    """
    if x.dtype == torch.bfloat16:
        has_products = torch.backends.mkldnn.is_available() and hardware.cpu_bf16() == "avx512"
    else:
        has_products = torch.backends.mkl.is_available() and x.dtype == torch.float32
    n, _, height, width = x.shape
    outputs, inputs, _, _ = weight.shape
    return (
        has_products
        and n >= (64 if torch.is_grad_enabled() else 128)
        and height == width <= 16
        and (height <= _ONE_PRODUCT_UP_TO or inputs * outputs >= 64 * 64)
    )


class _Transforms(NamedTuple):
    """A convolution of S × S pixels is inverse @ ((image @ x) * (taps @ w)), with R products: image (R, S · S), taps
    (R, 9), inverse (S · S, R).

    If there are `rows` (2 · U, S), the transform has two steps: `rows` turns each column of an image into the cosines
    and sines of U frequencies, and image (R / U, 2 · S) turns each such pair into inputs of the products. The inverse
    goes the other way: inverse (2 · S, R / U), then the transpose of `rows`.
    """

    rows: Tensor | None
    image: Tensor
    taps: Tensor
    inverse: Tensor


@functools.lru_cache
def _transforms(side: int, dtype: torch.dtype) -> _Transforms:
    if side <= _ONE_PRODUCT_UP_TO:
        image, taps, inverse = (matrix.to(dtype) for matrix in _fourier(side, (side + 1, side + 1), shift=0.0))
        return _Transforms(None, image, taps, inverse)
    # An even period, and frequencies halfway between the integers: none is its own conjugate, so all are computed from
    # their pairs in the same way. Values that wrap around change their sign, but those are all zeros.
    period = side + 1 + (side + 1) % 2
    image, taps, inverse = _fourier(side, (period, side + 1), shift=0.5)
    angles = (torch.arange(period // 2, dtype=torch.float64) + 0.5)[:, None] * torch.arange(side) * 2 * math.pi / period
    pairs = torch.stack((angles.cos(), angles.sin()), dim=1)  # (U, 2, S)
    first = slice(len(image) // len(pairs))
    image, inverse = (
        torch.einsum("rhw,hp->rpw", matrix[first].unflatten(1, (side, side)), pairs[0].pinverse()).flatten(1)
        for matrix in (image, inverse.T)
    )
    rows, image, taps, inverse = (matrix.to(dtype) for matrix in (pairs.flatten(0, 1), image, taps, inverse.T))
    return _Transforms(rows, image, taps, inverse)


def _fourier(side: int, periods: tuple[int, int], shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """image (R, S · S), taps (R, 9) and inverse (S · S, R), in fp64.

    periods: of the row and the column index. shift: added to the frequencies of the row index.
    """
    pixels = torch.tensor([*itertools.product(range(side), repeat=2)], dtype=torch.float64)
    offsets = torch.tensor([*itertools.product((-1, 0, 1), repeat=2)], dtype=torch.float64)
    image, taps, inverse = [], [], []
    for k, m in itertools.product(*map(range, periods)):
        frequency = (k + shift, m)
        conjugate = (-frequency[0] % periods[0], -m % periods[1])
        if conjugate < frequency:  # a real image has the conjugate value there
            continue
        angles = 2 * math.pi * torch.tensor(frequency, dtype=torch.float64) / torch.tensor(periods)
        cos, sin = (pixels @ angles).cos(), (pixels @ angles).sin()
        taps_cos, taps_sin = (offsets @ angles).cos(), (offsets @ angles).sin()
        if conjugate == frequency:
            image += [cos]
            taps += [taps_cos]
            inverse += [cos / math.prod(periods)]
            continue
        # Gauss: a product of complex numbers takes three products of real ones, a·c, b·d and (a + b)·(c + d).
        image += [cos, -sin, cos - sin]
        taps += [taps_cos, taps_sin, taps_cos + taps_sin]
        inverse += [2 / math.prod(periods) * column for column in (cos + sin, sin - cos, -sin)]
    return torch.stack(image), torch.stack(taps), torch.stack(inverse, dim=1)


def _spectra(rows: Tensor | None, image: Tensor, x: Tensor) -> Tensor:
    """(N, C, S, S) -> (R, N, C)."""
    n, channels, side, _ = x.shape
    spectra = x.new_empty(n, len(image) * (1 if rows is None else len(rows) // 2), channels)
    for y, out in chunks(x.permute(0, 2, 3, 1), spectra, mebibytes=_CHUNK_MEBIBYTES):
        if rows is not None:
            y = torch.bmm(rows.expand(len(y), -1, -1), y.reshape(len(y), side, -1))
        y = y.reshape(-1, image.shape[1], channels)
        torch.bmm(image.expand(len(y), -1, -1), y, out=out.view(len(y), -1, channels))
    spectra = spectra.transpose(0, 1)
    # PyTorch copies a strided matrix for each of oneDNN's products, and there are two. MKL takes strides.
    return spectra.contiguous() if x.dtype == torch.bfloat16 else spectra


def _multiply(spectra: Tensor, filters: Tensor) -> Tensor:
    """(R, N, I), (R, I, O) -> (N, R, O)."""
    products = spectra.new_empty(spectra.shape[1], len(spectra), filters.shape[2])
    torch.bmm(spectra, filters, out=products.transpose(0, 1))
    return products


def _images(rows: Tensor | None, inverse: Tensor, products: Tensor) -> Tensor:
    """(N, R, C) -> (N, C, S, S), channels last in memory."""
    n, _, channels = products.shape
    side = math.isqrt(len(inverse)) if rows is None else rows.shape[1]
    images = products.new_empty(n, side * side, channels)
    for out, y in chunks(images, products, mebibytes=_CHUNK_MEBIBYTES):
        y = y.view(-1, inverse.shape[1], channels)
        if rows is None:
            torch.bmm(inverse.expand(len(y), -1, -1), y, out=out)
            continue
        y = torch.bmm(inverse.expand(len(y), -1, -1), y).view(len(out), len(rows), -1)
        torch.bmm(rows.T.expand(len(out), -1, -1), y, out=out.view(len(out), side, -1))
    return images.unflatten(1, (side, side)).permute(0, 3, 1, 2)


def chunks(*tensors: Tensor, mebibytes: int) -> Iterator[tuple[Tensor, ...]]:
    """Chunks of the batch, the same images of each tensor. A chunk of the first tensor has about `mebibytes` MiB."""
    count = max(1, tensors[0].numel() * tensors[0].element_size() // (mebibytes << 20))
    return zip(*(tensor.chunk(count) for tensor in tensors), strict=True)
