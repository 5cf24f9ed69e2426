"""Images of any size, in one array -> RGB images of 32×32 pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifarctl.data.pixels import SIDE, resize

HINT_WHITE = "black is 0 and white is 255: multiply by 255 before making integers"
# With fewer, an axis is taken for channels, or images for something else.
_LEAST_SIDE = 4


# Of 255: below a sixteenth of white, as files of 16 bits are refused. Digits of 16 grey levels reach it.
_DARK = 16


def darkness(images: NDArray[Any]) -> tuple[str, bool]:
    """What to know of images, uint8 of any shape, that are nearly black, in words or ""; and whether they were
    surely not meant so: 0 and 1, of which 1 stood for white.
    """
    high = int(images.max(initial=0))
    return (f"no value is above {high} of 255, so they are nearly black" if 0 < high <= _DARK else ""), high == 1


def to_rgb(images: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Images whose axes have one meaning -> uint8 (N, 3, 32, 32), and what was done to them, in words.

    images: uint8; RGB, (N, H, W, 3) or (N, 3, H, W); or grey, with one channel or (N, H, W). Those that need no change,
    or have no sure meaning, are returned as they are, with "".
    """
    if images.shape[1:] in ((3, SIDE, SIDE), (SIDE, SIDE, 3)) or images.dtype != np.uint8 or not images.size:
        return images, ""
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    elif images.ndim != 4 or images.shape[1] in (1, 3) or images.shape[3] not in (1, 3):
        return images, ""
    _, height, width, channels = images.shape
    if min(height, width) < _LEAST_SIDE:
        return images, ""
    grey = "grey, read as RGB" if channels == 1 else ""
    size = "" if height == width == SIDE else f"{width}×{height} pixels, resized to {SIDE}×{SIDE}"
    return resize(images[..., 0] if grey else images), "; ".join(filter(None, (grey, size)))
