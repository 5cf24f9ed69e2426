"""Decode image files to 32×32 arrays, many of them in threads and processes, and find the image files in folders.

Imports neither torch nor torchvision, so that `predict` starts fast and decoding processes are small.
"""

import contextlib
import logging
import os
import stat
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice, repeat
from operator import attrgetter
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cifarctl.data.decoders import FILES_IN_THREADS, DecoderProcesses
from cifarctl.data.image_formats import FORMAT_OF_SUFFIX, why_not_read
from cifarctl.data.image_opening import bytes_when_opened, is_png, open_image, without_metadata
from cifarctl.data.own_runs import is_run
from cifarctl.data.pixels import to_array
from cifarctl.errors import ImageError, UsageError
from cifarctl.wording import counted

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its warnings about damaged files go to stderr

EXAMPLE = Path(__file__).with_name("example.jpg")  # Chelsea the cat, by Stefan van der Walt (CC0)
_EXAMPLE_NAME = str(EXAMPLE)
_KINDS_SHOWN = 5
SKIPPED = frozenset({"__MACOSX", "@eaDir"})  # what a Mac's archiver, and a Synology's thumbnails, lie in

_LARGE_IMAGE_BYTES = 16_000_000
_LONG_FILE_BYTES = 64_000_000
_large_image_lock = threading.RLock()  # one at a time, so that memory does not grow with the number of threads
_stderr_lock = threading.Lock()
_Lock = contextlib.AbstractContextManager[object]
Decoded = NDArray[np.uint8] | ImageError  # uint8 (3, 32, 32), RGB
R = TypeVar("R")


def named_image(name: str) -> Path:
    """The path that a user means: `name` itself, or if it is "example" and no such file exists, the picture that comes
    with the package.
    """
    return EXAMPLE if name == EXAMPLE.stem and not os.path.lexists(name) else Path(name)


def image_name(path: Path) -> str:
    """The image's name in results: its path, or "example"."""
    name = str(path)  # strings are faster to compare than paths
    return EXAMPLE.stem if name == _EXAMPLE_NAME else name


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode the file at `path` to uint8 (3, 32, 32), RGB.

    EXIF orientation is applied, transparent pixels are drawn on white, of an animation the first frame is used, and
    other sizes are resized to 32×32 (antialiased; the aspect ratio is not kept). Raises ImageError, whose text is the
    reason without the path.
    """
    with no_warnings():
        return _decode(path, _large_image_lock)


def _decode(path: Path, for_large: _Lock) -> NDArray[np.uint8]:
    try:
        status = os.stat(path)  # noqa: PTH116 (faster)
        if not stat.S_ISREG(status.st_mode):  # a FIFO or a device could block forever
            if stat.S_ISDIR(status.st_mode):
                os.scandir(path).close()  # raises OSError if the folder cannot be listed: the reason to report
            raise ImageError("not a regular file")
        with open(path, "rb") as file:  # noqa: PTH123 (faster)
            return _decode_file(file, path.suffix.lower(), status.st_size, for_large)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except Image.DecompressionBombError:
        raise ImageError(f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None
    except Exception as error:  # decoders of damaged files raise nearly anything (struct.error, SyntaxError, …)
        raise ImageError(f"damaged image: {error}") from None


def _decode_file(file: IO[bytes], suffix: str, size: int, for_large: _Lock) -> NDArray[np.uint8]:
    try:
        if size <= _LONG_FILE_BYTES or not is_png(file):  # a long PNG may consist of metadata, which takes memory
            return _decode_pixels(file, suffix, for_large)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        if not is_png(file):
            if isinstance(error, UnidentifiedImageError):
                file.seek(0)
                raise ImageError(why_not_read(file.read(32))) from None
            raise
    try:
        return _decode_pixels(without_metadata(file), ".png", for_large)
    except UnidentifiedImageError:
        raise ImageError("not an image in a known format") from None


def _decode_pixels(file: IO[bytes], suffix: str, for_large: _Lock) -> NDArray[np.uint8]:
    with contextlib.ExitStack() as held:
        if bytes_when_opened(file) > _LARGE_IMAGE_BYTES:
            held.enter_context(for_large)
        image, decoded_bytes = open_image(file, suffix)
        held.enter_context(image)
        if decoded_bytes > _LARGE_IMAGE_BYTES:
            held.enter_context(for_large)
        if image.format == "TIFF":
            held.enter_context(_silent_stderr())
        return to_array(image)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what is written to the process's stderr: libtiff writes a line for each row of a damaged file."""
    with _stderr_lock, open(os.devnull, "wb") as devnull:  # noqa: PTH123
        stderr = os.dup(2)
        os.dup2(devnull.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings about metadata, old formats and large images; this module checks what matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def read_images(
    paths: Iterable[Path],
    window: int = 4096,
    *,
    processes: int | None = None,
    after: int = FILES_IN_THREADS,
) -> Iterator[tuple[Path, Decoded]]:
    """Decode files, and yield (path, uint8 (3, 32, 32) or the ImageError), in the order of `paths`.

    At most `window` files are in flight, so `paths` may be endless. processes, after: see `map_files`.
    """
    # In batches, since a task takes as long as the decoding of a small file.
    threads = min(8, os.cpu_count() or 1)
    size = max(1, min(64, window // threads))
    for batch in map_files(_pairs, paths, repeat(size), threads, window // size, processes=processes, after=after):
        yield from batch


def _pairs(paths: list[Path], images: list[Decoded]) -> list[tuple[Path, Decoded]]:
    return list(zip(paths, images, strict=True))


def map_files(
    function: Callable[[list[Path], list[Decoded]], R],
    paths: Iterable[Path],
    sizes: Iterator[int],
    threads: int,
    in_flight: int,
    *,
    initializer: Callable[[], object] | None = None,
    processes: int | None = None,
    after: int = FILES_IN_THREADS,
) -> Iterator[R]:
    """Yield function(paths, decoded images) for each batch of files, in the order of `paths`.

    sizes: of the batches. in_flight: how many batches are worked on at a time. initializer: each thread calls it first.
    processes: how many decode beside the threads if there are more than `after` files; None is one per thread, or none
    if there are at most two threads.
    """
    helpers = DecoderProcesses((threads if threads > 2 else 0) if processes is None else processes, after)
    ended = threading.Event()
    paths = iter(paths)

    def work(batch: list[Path]) -> R:
        return function(batch, _decode_all(batch, helpers, ended))

    pool = ThreadPoolExecutor(threads, initializer=initializer)
    with no_warnings():  # the filters are the process's, so they apply to the threads too
        try:
            pending: deque[Future[R]] = deque()
            while batch := list(islice(paths, next(sizes))):
                helpers.expect(len(batch))
                pending.append(pool.submit(work, batch))
                while pending and (pending[0].done() or len(pending) >= in_flight):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            ended.set()
            helpers.stop()
            pool.shutdown(cancel_futures=True)
            helpers.close()


def _decode_all(paths: list[Path], helpers: DecoderProcesses, ended: threading.Event) -> list[Decoded]:
    """Decode the files in a process if one is free, else in this thread until one is."""
    images: list[Decoded] = []
    while len(images) < len(paths):
        chunk = paths[len(images) :][:128]
        answers = helpers.decode(chunk) or [None] * min(8, len(chunk))
        for path, answer in zip(chunk, answers, strict=False):
            if ended.is_set():
                raise CancelledError
            images.append(read_or_error(path) if answer is None else answer)
    return images


def read_or_error(path: Path, for_large: _Lock = _large_image_lock) -> Decoded:
    """As `read_image`, but return the ImageError; the caller silences Pillow (`no_warnings`). Images that take much
    memory are decoded inside the context `for_large`.
    """
    try:
        return _decode(path, for_large)
    except ImageError as error:
        return error


class ImageFiles:
    """Iterate over image files: the given files themselves, and for each given folder the files under it, at any depth,
    whose suffix is that of an image. In each folder, files come in sorted order, before those of subfolders.

    Names that start with a dot are skipped, and `SKIPPED`. Links to folders are followed once each, after all else.
    A folder that cannot be listed is yielded itself, so that reading it gives the error.

    ignored: the number of other files, by suffix in lower case. example: the first of them. empty: the given folders
    without images. All are complete when the iteration has ended.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = paths
        self.ignored: Counter[str] = Counter()
        self.example: Path | None = None
        self.empty: list[Path] = []

    def __iter__(self) -> Iterator[Path]:
        self.ignored.clear()
        self.example = None
        self.empty.clear()
        for path in self._paths:
            if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises on names that are too long)
                yield path
                continue
            found = False
            for found_path in self._search(path):
                found = True
                yield found_path
            if not found:
                self.empty.append(path)

    def describe_ignored(self) -> str:
        """What was ignored, for example "70 other files ignored: .txt, .csv"; empty if nothing was."""
        if not self.ignored:
            return ""
        kinds = [suffix or "no suffix" for suffix, _ in self.ignored.most_common()]
        shown = ", ".join(kinds[:_KINDS_SHOWN]) + (", …" if len(kinds) > _KINDS_SHOWN else "")
        return f"{counted(self.ignored.total(), 'other file')} ignored: {shown}"

    def _search(self, root: Path) -> Iterator[Path]:
        folders, links = [str(root)], deque[str]()
        seen = {_identity(parent) for parent in root.resolve().parents}  # a link to one of these would leave `root`
        while folders or links:
            folder = folders.pop() if folders else links.popleft()
            try:
                identity = _identity(folder)
                with os.scandir(folder) as scan:
                    entries = sorted(scan, key=attrgetter("name"))
            except OSError:
                yield Path(folder)
                continue
            if identity in seen:
                continue
            seen.add(identity)
            subfolders: list[str] = []
            for entry in entries:
                if entry.name.startswith(".") or entry.name in SKIPPED:
                    continue
                if _is_folder(entry):
                    (links if entry.is_symlink() else subfolders).append(entry.path)
                elif (suffix := os.path.splitext(entry.name)[1].lower()) in FORMAT_OF_SUFFIX:  # noqa: PTH122 (faster)
                    yield Path(entry.path)
                else:
                    self.ignored[suffix] += 1
                    self.example = self.example or Path(entry.path)
            folders += reversed(subfolders)


def find_images(folder: Path) -> ImageFiles:
    """All image files under `folder`."""
    return ImageFiles([folder])


def expand(paths: Iterable[Path]) -> ImageFiles:
    """Each path, or the images under it if it is a folder. `paths` may be endless. Raises UsageError, when it comes to
    it, on the folder of a training run: its charts are no photographs.
    """
    return ImageFiles(map(_no_run, paths))


def _no_run(path: Path) -> Path:
    if os.path.isdir(path) and is_run(path):  # noqa: PTH112 (as above; most are files, of which there may be many)
        raise UsageError(f"{path}: the folder of a training run, not of pictures", hint=f"`model` {path} takes the run")
    return path


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 (faster)
    return status.st_dev, status.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False
