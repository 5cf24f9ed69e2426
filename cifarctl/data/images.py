"""One image file to one 32×32 tensor, and many files to many, with the decoding in threads.

Imports no torch before it decodes, and never torchvision: `predict` starts as fast as torch does.
"""

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cifarctl.errors import ImageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})
SIDE = 32


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode the file at `path` to uint8 (3, 32, 32), RGB.

    EXIF orientation is applied, transparency is laid on white, the first frame of an animation is taken, and any
    other size is resized to 32×32 (antialiased; the aspect ratio is not kept). Raises ImageError, whose text is the
    reason without the path.
    """
    try:
        if not path.is_file():  # a FIFO or a device would block for ever
            raise ImageError("no such file" if not path.exists() else "not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on odd metadata
            with Image.open(path) as image:
                # JPEG decoders can scale by powers of two while decoding: a 12-megapixel photograph 8 times faster.
                image.draft("RGB", (2 * SIDE, 2 * SIDE))
                return _to_array(image)
    except ImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"too large: more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels") from None
    except UnidentifiedImageError:
        raise ImageError("not an image in a known format") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # decoders of damaged files raise nearly anything (struct.error, SyntaxError, …)
        raise ImageError(f"damaged image: {error}") from None


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):  # 16 bits and more: convert("RGB") would clip instead of scaling
        deep = np.asarray(image, np.float32)
        top = 65535.0 if deep.max(initial=0) > 255 else 255.0
        image = Image.fromarray((deep.clip(0, top) * (255 / top)).astype(np.uint8))
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    image = image.convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image).transpose(2, 0, 1)


def read_images(paths: Iterable[Path], window: int = 1024) -> Iterator[tuple[Path, NDArray[np.uint8] | ImageError]]:
    """Decode in threads and yield (path, uint8 (3, 32, 32) or the ImageError), in the order of `paths`.

    At most `window` files are in flight, so `paths` may be endless. Pillow releases the GIL while it decodes.
    """

    def read(chunk: list[Path]) -> list[tuple[Path, NDArray[np.uint8] | ImageError]]:
        return [(path, _read_or_error(path)) for path in chunk]

    # In chunks, since a task of its own costs a small file as much as its decoding.
    chunk_size = 16
    paths = iter(paths)
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        pending: deque[Future[list[tuple[Path, NDArray[np.uint8] | ImageError]]]] = deque()
        while chunk := list(islice(paths, chunk_size)):
            pending.append(pool.submit(read, chunk))
            if len(pending) * chunk_size >= window:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read_or_error(path: Path) -> NDArray[np.uint8] | ImageError:
    try:
        return read_image(path)
    except ImageError as error:
        return error


def find_images(folder: Path) -> Iterator[Path]:
    """Every image file under `folder`, recursively, by suffix, in sorted order. Links to folders are not followed."""
    for directory, subfolders, names in os.walk(folder):
        subfolders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122 (a Path for each file is slower)
                yield Path(directory, name)


def expand(paths: Iterable[Path]) -> Iterator[Path]:
    """Each path, or where it is a folder, the images under it."""
    for path in paths:
        if path.is_dir():
            yield from find_images(path)
        else:
            yield path
