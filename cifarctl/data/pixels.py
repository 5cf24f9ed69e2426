"""Convert an opened image of any mode and size to 32×32 RGB pixels."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from cifarctl.errors import ImageError

SIDE = 32
_STRIP_PIXELS = 1_000_000  # converted at a time, so that copies in other modes take little memory
_LARGE_PIXELS = 4_000_000
_ORIENTATION = 0x0112
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# TIFF tags.
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 259, 262, 284, 338, 339


def to_array(opened: ImageFile) -> NDArray[np.uint8]:
    """An image that Pillow has opened but not loaded -> uint8 (3, 32, 32), RGB.

    Orientation is applied, transparent pixels are drawn on white, samples of more than 8 bits are scaled. Raises
    ImageError if the meaning of the samples is not known, and whatever Pillow raises on damaged pixels.
    """
    _scale_transparent_colour(opened)
    has_low_bytes = _has_low_bytes(opened)
    opened.load()
    if has_low_bytes:
        _check_high_bytes(opened)
    transpose = _TRANSPOSE_OF_ORIENTATION.get(_orientation(opened))
    image = _reduced(opened, _conversion(opened))
    if transpose is not None:
        image = image.transpose(transpose)
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if image.mode == "F":
        image = Image.fromarray(np.asarray(image).round().clip(0, 255).astype(np.uint8))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image).transpose(2, 0, 1)


def resize(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (N, H, W, 3), RGB, or (N, H, W), grey -> uint8 (N, 3, 32, 32), as image files of this size are resized."""
    resized = np.empty((len(images), 3, SIDE, SIDE), np.uint8)
    for i, pixels in enumerate(images):
        image = _reduced(Image.fromarray(np.ascontiguousarray(pixels)), None)
        resized[i] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")).transpose(2, 0, 1)
    return resized


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if it cannot be read: damaged metadata is no error."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # readers of metadata raise nearly anything
        return 1


def _scale_transparent_colour(image: ImageFile) -> None:
    """Scale the transparent colour of a PNG to 8 bits: Pillow scales the samples, but not the colour in `tRNS`."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not image.tile:
        return
    raw_mode = image.tile[0][3]
    if isinstance(key, int) and raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = key * 255 // (2 ** int(raw_mode[-1]) - 1)
    elif isinstance(key, tuple) and raw_mode == "RGB;16B":
        if any(value % 257 for value in key):  # it has no 8-bit equivalent, and Pillow cuts the samples to 8 bits
            raise ImageError("its transparent colour has 16 bits, and colours of 8 bits are compared with it")
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _has_low_bytes(image: ImageFile) -> bool:
    """Whether the colours have 16 bits per sample, of which Pillow reads the upper 8."""
    arguments = image.tile[0][3] if image.tile else ""
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw_mode, str) and ";16" in raw_mode and image.mode in ("RGB", "RGBA", "LA")


def _check_high_bytes(image: ImageFile) -> None:
    """Raise ImageError if all colours are so dark that they may be samples of 8 to 12 bits in a wider type."""
    colours = image.mode.removesuffix("A")
    highest = max(int(np.asarray(strip)[..., : len(colours)].max()) for strip in _strips(image))
    if highest < 16:
        raise ImageError(
            f"its samples of 16 bits reach at most {256 * highest + 255} of 65535: it is not known which value is white"
        )


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """The function that converts to pixels that can be averaged: mode "RGB", or "F" from 0 to 255. None if they can."""
    tags = getattr(image, "tag_v2", {})
    if reason := _misread_tiff(image, tags):
        raise ImageError(f"{reason}: such a TIFF would be read wrong")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        low, high = _sample_range(image)
        white = _white(image, low, high, tags)
        inverted = tags.get(_PHOTOMETRIC) == 0  # Pillow applies this to 8-bit samples only
        return partial(_scaled, white=white, inverted=inverted, transparent=image.info.get("transparency"))
    if 2 in tags.get(_SAMPLE_FORMAT, ()):
        raise ImageError("its samples are signed 8-bit integers: it is not known which value is white")
    if image.mode == "LAB":
        return _from_lab()
    if image.has_transparency_data:
        return _on_white
    return None if image.mode in ("L", "RGB") else partial(_converted, mode="RGB")


def _misread_tiff(image: Image.Image, tags: Any) -> str:
    """Why Pillow 13 would decode this TIFF to wrong pixels without an error (found with test files); else ""."""
    if not tags:
        return ""
    is_compressed = tags.get(_COMPRESSION, 1) != 1
    bits = max(tags.get(_BITS_PER_SAMPLE) or (1,))
    if image.mode == "F" and is_compressed and tags.prefix == b"MM":
        return "its floats are compressed and big-endian"
    if tags.get(_PLANAR) == 2:
        if bits > 8 and not is_compressed:
            return f"its planes of {bits} bits are not compressed"
        if image.mode == "LA" or (image.mode == "RGBA" and is_compressed and _EXTRA_SAMPLES not in tags):
            return "its planes hold transparency"
    return ""


def _white(image: Image.Image, low: float, high: float, tags: dict[int, tuple[int, ...]]) -> float:
    """The sample value that means white. Raises ImageError if it is not known."""
    kind = "floats" if image.mode == "F" else "integers"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("its samples are not all finite numbers")
    if low < 0:
        raise ImageError(f"its samples are {kind} from {low:g} to {high:g}: it is not known which value is white")
    if image.mode == "F":
        if high <= 1:
            return 1.0
        # In between, it could be brighter than white, or the dark end of 0 to 255.
        if 16 <= high <= 255:
            return 255.0
        raise ImageError(f"its samples are floats up to {high:g}: only 0 to 1 and 0 to 255 are read")
    bits = (tags.get(_BITS_PER_SAMPLE) or (16,))[0]
    if high <= 255 and bits >= 16:  # 8-bit samples in a wider type, in whose range they would be black
        return 255.0
    if image.mode != "I" or image.format in ("PNG", "PPM"):  # formats whose full range is from black to white
        white = 2.0**bits - 1
        if high < white / 16:
            raise ImageError(
                f"its samples of {bits} bits reach only {high:g} of {white:g}: it is not known which value is white"
            )
        return white
    if 32768 <= high <= 65535:
        return 65535.0
    raise ImageError(f"its samples are integers up to {high:g}: it is not known which value is white")


def _sample_range(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest sample; not finite if any sample is not."""
    ranges = [(float(samples.min()), float(samples.max())) for samples in map(np.asarray, _strips(image))]
    lows, highs = zip(*ranges, strict=True)
    return float(np.min(lows)), float(np.max(highs))  # unlike min and max, these keep NaN


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _scaled(strip: Image.Image, white: float, inverted: bool, transparent: int | None) -> Image.Image:
    samples = np.array(strip, np.float32)
    opaque = samples != transparent if isinstance(transparent, int) else None
    samples *= 255 / white
    if inverted:
        samples = 255 - samples
    if opaque is not None:
        samples[~opaque] = 255
    return Image.fromarray(samples)


def _on_white(strip: Image.Image) -> Image.Image:
    if strip.mode == "La":
        strip = strip.convert("LA")
    rgba = strip.convert("RGBA")
    result = Image.new("RGB", strip.size, "white")
    result.paste(rgba, mask=rgba.getchannel("A"))
    return result


def _converted(strip: Image.Image, mode: str) -> Image.Image:
    return strip.convert(mode)


def _from_lab() -> Callable[[Image.Image], Image.Image]:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, rgb, "LAB", "RGB")
    return lambda strip: ImageCms.applyTransform(strip, transform) or strip


def _reduced(image: Image.Image, convert: Callable[[Image.Image], Image.Image] | None) -> Image.Image:
    """Convert the image, and shrink a large one to about three times the needed size by averaging boxes of pixels.

    Other modes cannot be averaged, so each strip is converted before it is averaged.
    """
    across = down = max(1, min(image.size) // (3 * SIDE))
    if down == 1 and image.width * image.height > _LARGE_PIXELS:  # a very long or very wide image
        across, down = max(1, image.width // (3 * SIDE)), max(1, image.height // (3 * SIDE))
    if across == down == 1:
        return convert(image) if convert else image
    width, height = image.width // across, image.height // down
    if convert is None:
        return image.resize((width, height), Image.Resampling.BOX)
    scale = image.height / height
    rows = max(1, int(_STRIP_PIXELS / (image.width * scale)))
    reduced = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = math.floor(top * scale), min(math.ceil(bottom * scale), image.height)
        strip = convert(image.crop((0, first, image.width, last)))
        box = (0, top * scale - first, image.width, min(bottom * scale - first, strip.height))
        reduced.append((top, strip.resize((width, bottom - top), Image.Resampling.BOX, box=box)))
    result = Image.new(reduced[0][1].mode, (width, height))
    for top, strip in reduced:
        result.paste(strip, (0, top))
    return result
