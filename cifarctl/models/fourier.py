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

# So far, an image's transform is faster as one product with a large matrix than as two with small ones, by axis.
_AT_ONCE_UP_TO = 8
# MiB of images that are transformed at a time, so that what lies between two products stays in the caches: 128 images
# with 288 channels at 15×15, bf16, on one EPYC core, took 24.6 ms there and 23.0 ms back, and now 15.3 and 16.9 ms.
_PART = 2


class FourierConv(torch.autograd.Function):
    """`F.conv2d(x, weight, padding=1)` for square images and 3×3 filters: (N, I, S, S), (O, I, 3, 3) -> (N, O, S, S),
    channels last in memory.

    In a circle at least one pixel longer than the image its ends do not meet, and there a convolution is a product at
    each frequency: 256->256 at 7×7 takes 94 products of a matrix (N, I) and one (I, O), where the filters take 441. The
    transforms, so short, are products with small matrices. So all of it is BLAS, without copies, and rounding errors
    are half of the plain convolution's. Forward and backward, batch 512, on two EPYC cores with AVX2: 510 -> 230 ms at
    7×7, 450 -> 110 ms at 5×5, 104 -> 37 ms at 3×3; 64->256 at 15×15, 750 -> 475 ms. A step of `train-clf` at 24 pixels
    takes 1.1 s instead of 2.2, one of `train-ae` 0.47 instead of 0.7. Forward alone, batch 250, on one of those cores:
    148 -> 79 ms at 7×7, 184 -> 142 ms at 15×15.

    In bf16, rounding errors are twice the plain convolution's, 0.4 to 0.6 % of the result. On two EPYC cores with
    AVX512-BF16: 188 -> 86 ms at 7×7, 104 -> 49 ms at 5×5, 39 -> 19 ms at 3×3; 64->256 at 15×15, 268 -> 181 ms; a step
    of `train-clf` 985 -> 690 ms.

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
    """`FourierConv` without a gradient, of filters as `transform_filters` gives them: (N, I, S, S), (R, O, I) ->
    (N, O, S, S).
    """
    rows, image, _, inverse = _transforms(x.shape[-1], x.dtype)
    return _images(rows, inverse, _multiply(_spectra(rows, image, x), filters.mT))


def transform_filters(weight: Tensor, side: int) -> Tensor:
    """What images of `side` × `side` pixels are multiplied by: (O, I, 3, 3) -> (R, O, I)."""
    taps = _transforms(side, weight.dtype).taps
    return (taps @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, *weight.shape[:2])


def fourier_conv_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `FourierConv` takes less time than the plain convolution does, and its gradients where they are wanted,
    on a CPU.

    Not without the library whose batches of small products it is made of. Nor for few images, since the filters'
    transforms cost as much for one as for a thousand, nor for large ones with few channels, since their own transforms
    cost more than the products save: 24->64 at 31×31, say. Nor in bf16 with AMX, which multiplies five times as fast
    and moves data no faster; that is not measured.
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
        and (height <= _AT_ONCE_UP_TO or inputs * outputs >= 64 * 64)
    )


class _Transforms(NamedTuple):
    """A convolution of S × S pixels is inverse @ ((image @ x) * (taps @ w)), with R products: image (R, S · S), taps
    (R, 9), inverse (S · S, R).

    Where there are `rows` (2 · U, S), these come first, and turn an image into the cosines and the sines of U
    frequencies of its columns; then image (R / U, 2 · S) makes the products' inputs of each such pair of rows. Back it
    goes in reverse: inverse (2 · S, R / U), then the rows' transpose.
    """

    rows: Tensor | None
    image: Tensor
    taps: Tensor
    inverse: Tensor


@functools.lru_cache
def _transforms(side: int, dtype: torch.dtype) -> _Transforms:
    if side <= _AT_ONCE_UP_TO:
        image, taps, inverse = (matrix.to(dtype) for matrix in _fourier(side, (side + 1, side + 1), shift=0.0))
        return _Transforms(None, image, taps, inverse)
    # An even period, and frequencies halfway between the whole ones: none is its own conjugate, so that all of them are
    # made of their pairs in the same way. What goes round such a circle comes back negated, and only zeros do.
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

    periods: of rows and columns. shift: added to the frequencies of the first.
    """
    pixels = torch.tensor([*itertools.product(range(side), repeat=2)], dtype=torch.float64)
    offsets = torch.tensor([*itertools.product((-1, 0, 1), repeat=2)], dtype=torch.float64)
    image, taps, inverse = [], [], []
    for k, m in itertools.product(*map(range, periods)):
        frequency = (k + shift, m)
        conjugate = (-frequency[0] % periods[0], -m % periods[1])
        if conjugate < frequency:  # a real image has nothing new there
            continue
        angles = 2 * math.pi * torch.tensor(frequency, dtype=torch.float64) / torch.tensor(periods)
        cos, sin = (pixels @ angles).cos(), (pixels @ angles).sin()
        taps_cos, taps_sin = (offsets @ angles).cos(), (offsets @ angles).sin()
        if conjugate == frequency:
            image += [cos]
            taps += [taps_cos]
            inverse += [cos / math.prod(periods)]
            continue
        # A product of complex numbers takes three of real ones: a·c, b·d and (a + b)·(c + d), after Gauss.
        image += [cos, -sin, cos - sin]
        taps += [taps_cos, taps_sin, taps_cos + taps_sin]
        inverse += [2 / math.prod(periods) * part for part in (cos + sin, sin - cos, -sin)]
    return torch.stack(image), torch.stack(taps), torch.stack(inverse, dim=1)


def _spectra(rows: Tensor | None, image: Tensor, x: Tensor) -> Tensor:
    """(N, C, S, S) -> (R, N, C)."""
    n, channels, side, _ = x.shape
    spectra = x.new_empty(n, len(image) * (1 if rows is None else len(rows) // 2), channels)
    for y, part in parts(x.permute(0, 2, 3, 1), spectra, mebibytes=_PART):
        if rows is not None:
            y = torch.bmm(rows.expand(len(y), -1, -1), y.reshape(len(y), side, -1))
        y = y.reshape(-1, image.shape[1], channels)
        torch.bmm(image.expand(len(y), -1, -1), y, out=part.view(len(y), -1, channels))
    spectra = spectra.transpose(0, 1)
    # Where rows lie apart, PyTorch copies them for each of oneDNN's products, and there are two. MKL takes them so.
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
    for part, y in parts(images, products, mebibytes=_PART):
        y = y.view(-1, inverse.shape[1], channels)
        if rows is None:
            torch.bmm(inverse.expand(len(y), -1, -1), y, out=part)
            continue
        y = torch.bmm(inverse.expand(len(y), -1, -1), y).view(len(part), len(rows), -1)
        torch.bmm(rows.T.expand(len(part), -1, -1), y, out=part.view(len(part), side, -1))
    return images.unflatten(1, (side, side)).permute(0, 3, 1, 2)


def parts(*tensors: Tensor, mebibytes: int) -> Iterator[tuple[Tensor, ...]]:
    """The same images of each tensor: so many at once that those of the first have about so many mebibytes."""
    count = max(1, tensors[0].numel() * tensors[0].element_size() // (mebibytes << 20))
    return zip(*(tensor.chunk(count) for tensor in tensors), strict=True)
