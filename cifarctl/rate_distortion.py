"""Rate and distortion: the PSNR of an autoencoder and of image codecs against their bytes per image."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from cifarctl.data.dataset import to_float
from cifarctl.inference import decode, encode
from cifarctl.model_outputs import psnr
from cifarctl.models.base import Autoencoder
from cifarctl.progress import OnEvent, Progress, ignore

_QUALITIES = (2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)
_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class RateDistortionPoint:
    """A codec at one setting. setting: bits per latent, or the codec's quality. size: mean bytes per image, without
    what is the same for all images. psnr: dB, of the mean squared error over all images.
    """

    codec: Literal["latents", "jpeg", "webp"]
    setting: int
    size: float
    psnr: float


def measure_rate_distortion(
    model: Autoencoder, images: Tensor, training_images: Tensor, *, on_event: OnEvent = ignore
) -> list[RateDistortionPoint]:
    """The autoencoder's quantised latents, JPEG and WebP at several rates on the same uint8 (N, 3, 32, 32).

    Each latent is rounded to equal steps between its extremes on `training_images`, uint8 (M, 3, 32, 32), and not
    entropy-coded: a vector of 256 takes 256 bytes at 8 bits. Of the codecs' files, only the coded pixels count: not the
    headers, tables and containers, which a file format for 32×32 images would not repeat.

    on_event: called with a Progress after each batch that is encoded, and before each kind of codec.
    """
    known, latents = encode(model, training_images, on_event=on_event), encode(model, images)
    low, high = known.amin(0), known.amax(0)
    points = []
    on_event(Progress("Quantising the latents"))
    for bits in _BITS:
        step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
        indices = ((latents - low) / step).round().clamp(0, 2**bits - 1)
        error = decode(model, indices * step + low) - to_float(images)
        mse = error.square().mean().item()
        points.append(RateDistortionPoint("latents", bits, model.latent_dim * bits / 8, psnr(mse).item()))
    arrays = images.cpu().permute(0, 2, 3, 1).numpy()
    for codec in ("jpeg", "webp"):
        on_event(Progress(f"Compressing {len(images):,} images as {codec.upper()}"))
        points += [_codec_point(codec, quality, arrays) for quality in _QUALITIES]
    return points


def _codec_point(
    codec: Literal["jpeg", "webp"], quality: int, arrays: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"
) -> RateDistortionPoint:
    sizes, errors = [], []
    for array in arrays:
        stream = io.BytesIO()
        Image.fromarray(array).save(
            stream, codec, quality=quality, **({"optimize": True} if codec == "jpeg" else {"method": 6})
        )
        data = stream.getvalue()
        sizes.append(len(_jpeg_scan(data)) if codec == "jpeg" else len(_webp_frame(data)))
        with Image.open(stream, formats=[codec]) as decoded:
            difference = np.asarray(decoded.convert("RGB"), np.float64) - array
        errors.append(np.square(difference / 255).mean())
    return RateDistortionPoint(codec, quality, float(np.mean(sizes)), psnr(float(np.mean(errors))).item())


def _jpeg_scan(data: bytes) -> bytes:
    """The entropy-coded segment: what follows the SOS header, without the two bytes of the end marker."""
    start = data.index(b"\xff\xda")
    return data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") : -2]


def _webp_frame(data: bytes) -> bytes:
    """The VP8 chunk's payload without the frame's 10-byte header. Source: RFC 9649 and RFC 6386, section 9.1."""
    assert data[12:16] == b"VP8 "
    return data[20 + 10 : 20 + int.from_bytes(data[16:20], "little")]
