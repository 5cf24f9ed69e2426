"""An opened image of any mode and size to 32×32 pixels, as the samples in the file mean them."""

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
_STRIP_PIXELS = 1_000_000  # at a time as copies in other modes, so that these take little memory
_LARGE = 4_000_000
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF.
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 259, 262, 284, 338, 339


def to_array(opened: ImageFile) -> NDArray[np.uint8]:
    """An image as Pillow opened it, not yet loaded -> uint8 (3, 32, 32), RGB.

    Orientation is applied, transparency lies on white, samples of more than 8 bits are scaled. Raises ImageError if it
    is not known what the samples mean, and whatever Pillow raises on damaged pixels.
    """
    _scale_transparent_colour(opened)
    opened.load()
    turn = _TURNS.get(_orientation(opened))
    image = _reduced(opened, _conversion(opened))
    if turn is not None:
        image = image.transpose(turn)
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if image.mode == "F":
        image = Image.fromarray(np.asarray(image).round().clip(0, 255).astype(np.uint8))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image).transpose(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    """The tag alone: other metadata, and what is wrong with it, does not matter."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # readers of metadata raise nearly anything
        return 1


def _scale_transparent_colour(image: ImageFile) -> None:
    """Pillow scales a PNG's samples to 8 bits, but not the colour in `tRNS`, which it compares them with."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not image.tile:
        return
    raw_mode = image.tile[0][3]
    if isinstance(key, int) and raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = key * 255 // (2 ** int(raw_mode[-1]) - 1)
    elif isinstance(key, tuple) and raw_mode == "RGB;16B":
        if any(value % 257 for value in key):  # no colour of 8 bits, to which Pillow cuts the samples
            raise ImageError("its transparent colour has 16 bits, and colours of 8 bits are compared with it")
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """What makes pixels that can be averaged, mode "RGB" or "F" from 0 to 255; None if they are so."""
    tags = getattr(image, "tag_v2", {})
    if reason := _misread_tiff(image, tags):
        raise ImageError(f"{reason}: such a TIFF would be read wrong")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        low, high = _sample_range(image)
        white = _white(image, low, high, tags)
        inverted = tags.get(_PHOTOMETRIC) == 0  # which Pillow applies to 8 bits alone
        return partial(_scaled, white=white, inverted=inverted, transparent=image.info.get("transparency"))
    if 2 in tags.get(_SAMPLE_FORMAT, ()):
        raise ImageError("its samples are signed 8-bit integers: it is not known which value is white")
    if image.mode == "LAB":
        return _from_lab()
    if image.has_transparency_data:
        return _on_white
    return None if image.mode in ("L", "RGB") else partial(_converted, mode="RGB")


def _misread_tiff(image: Image.Image, tags: Any) -> str:
    """What Pillow 13 decodes to wrong pixels without an error, found by hand-written files; else nothing."""
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
    """The sample that means white. Raises ImageError where it is not known."""
    kind = "floats" if image.mode == "F" else "integers"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("its samples are not all finite numbers")
    if low < 0:
        raise ImageError(f"its samples are {kind} from {low:g} to {high:g}: it is not known which value is white")
    if image.mode == "F":
        if high <= 1:
            return 1.0
        # Between: more light than white, or the dark end of 0 to 255.
        if 16 <= high <= 255:
            return 255.0
        raise ImageError(f"its samples are floats up to {high:g}: only 0 to 1 and 0 to 255 are read")
    bits = (tags.get(_BITS_PER_SAMPLE) or (16,))[0]
    if high <= 255 and bits >= 16:  # 8-bit samples in a wider type: over that type's range it would be black
        return 255.0
    if image.mode != "I" or image.format in ("PNG", "PPM"):  # formats whose 16 bits are a range from black to white
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
    """The least and the greatest sample; not finite if any is not."""
    ranges = [(float(samples.min()), float(samples.max())) for samples in map(np.asarray, _strips(image))]
    lows, highs = zip(*ranges, strict=True)
    return float(np.min(lows)), float(np.max(highs))  # which, unlike min and max, keep NaN


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
    """The image after `convert`, and a large one averaged over boxes of whole pixels to three times what is needed.

    What it means is linear in no other mode, so it is converted before it is averaged, strip by strip.
    """
    across = down = max(1, min(image.size) // (3 * SIDE))
    if down == 1 and image.width * image.height > _LARGE:  # a very long one
        across, down = max(1, image.width // (3 * SIDE)), max(1, image.height // (3 * SIDE))
    if across == down == 1:
        return convert(image) if convert else image
    width, height = image.width // across, image.height // down
    if convert is None:
        return image.resize((width, height), Image.Resampling.BOX)
    scale = image.height / height
    rows = max(1, int(_STRIP_PIXELS / (image.width * scale)))
    parts = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = math.floor(top * scale), min(math.ceil(bottom * scale), image.height)
        strip = convert(image.crop((0, first, image.width, last)))
        box = (0, top * scale - first, image.width, min(bottom * scale - first, strip.height))
        parts.append((top, strip.resize((width, bottom - top), Image.Resampling.BOX, box=box)))
    result = Image.new(parts[0][1].mode, (width, height))
    for top, part in parts:
        result.paste(part, (0, top))
    return result
