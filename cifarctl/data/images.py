"""One image file to one 32×32 tensor, and many files to many, with the decoding in threads.

Imports no torch before it decodes, and never torchvision: `predict` starts as fast as torch does.
"""

import contextlib
import logging
import os
import stat
import threading
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

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its remarks on damaged files go to stderr

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})
SIDE = 32
EXAMPLE = Path(__file__).with_name("example.jpg")  # Chelsea the cat, by Stefan van der Walt (CC0)


# Of an image's pixels as they are decoded; JPEG is scaled down while it is. With Pillow's copies they take 256 MB.
MAX_PIXELS = 32_000_000
_LARGE = 4_000_000
_one_large_image = threading.Lock()  # at a time, so that memory does not grow with the number of threads
_one_silence = threading.Lock()


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode the file at `path` to uint8 (3, 32, 32), RGB.

    "example", if there is no such file, is the picture that comes with the package.
    EXIF orientation is applied, transparency is laid on white, the first frame of an animation is taken, and any
    other size is resized to 32×32 (antialiased; the aspect ratio is not kept). Raises ImageError, whose text is the
    reason without the path.
    """
    with no_warnings():
        return _decode(path)


def _decode(path: Path) -> NDArray[np.uint8]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (faster); a FIFO or a device would block for ever
            raise ImageError("not a regular file")
        with Image.open(path) as image:
            # JPEG decoders can scale by powers of two while decoding: a 12-megapixel photograph 8 times faster.
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise ImageError(f"too large: {pixels:,} pixels, more than {MAX_PIXELS:,}")
            with (
                _one_large_image if pixels > _LARGE else contextlib.nullcontext(),
                _native_silence() if image.format == "TIFF" else contextlib.nullcontext(),
            ):
                return _to_array(image)
    except ImageError:
        raise
    except FileNotFoundError:
        if str(path) == EXAMPLE.stem:
            return _decode(EXAMPLE)
        raise ImageError("no such file") from None
    except Image.DecompressionBombError:
        raise ImageError(f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except UnidentifiedImageError:
        raise ImageError("not an image in a known format") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None
    except Exception as error:  # decoders of damaged files raise nearly anything (struct.error, SyntaxError, …)
        raise ImageError(f"damaged image: {error}") from None


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("P", "PA", "1"):  # numbers of colours cannot be averaged
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if (factor := min(image.size) // (3 * SIDE)) > 1:  # before anything makes copies
        image = image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)
    if image.mode.startswith(("I", "F")):  # 16 bits and more: convert("RGB") would clip instead of scaling
        deep = np.asarray(image, np.float32)
        top = 65535.0 if deep.max(initial=0) > 255 else 255.0
        image = Image.fromarray((deep.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


@contextlib.contextmanager
def _native_silence() -> Iterator[None]:
    """Inside, what libtiff prints of a damaged file to the process's stderr, a line for each row, goes nowhere."""
    with _one_silence, open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Pillow remarks on odd metadata and on large images; what matters of it is checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def read_images(paths: Iterable[Path], window: int = 1024) -> Iterator[tuple[Path, NDArray[np.uint8] | ImageError]]:
    """Decode in threads and yield (path, uint8 (3, 32, 32) or the ImageError), in the order of `paths`.

    At most `window` files are in flight, so `paths` may be endless. Pillow releases the GIL while it decodes.
    """

    def read(chunk: list[Path]) -> list[tuple[Path, NDArray[np.uint8] | ImageError]]:
        return [(path, read_or_error(path)) for path in chunk]

    # In chunks, since a task of its own costs a small file as much as its decoding.
    chunk_size = 16
    paths = iter(paths)
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    with no_warnings():  # the filters are the process's, so the threads' too
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


def read_or_error(path: Path) -> NDArray[np.uint8] | ImageError:
    """As `read_image`, but give the ImageError back, and let the caller silence Pillow (`no_warnings`)."""
    try:
        return _decode(path)
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
        if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises on names that are too long)
            yield from find_images(path)
        else:
            yield path
