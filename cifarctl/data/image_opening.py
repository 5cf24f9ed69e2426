"""Open image files without decoding their pixels, after checking that these are not too many."""

import contextlib
import io
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import IO

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile

from cifarctl.data.image_formats import FORMAT_OF_SUFFIX, FORMATS
from cifarctl.data.pixels import SIDE
from cifarctl.errors import ImageError

# The limit on decoded pixels, which take 256 MB with Pillow's copies. A JPEG counts as it is scaled during decoding.
MAX_PIXELS = 32_000_000
_MAX_BYTES = 256_000_000
_JPEG_2000_BYTES = 25  # per pixel, while OpenJPEG decodes it (measured)
_PNG = b"\x89PNG\r\n\x1a\n"
# The chunks that the pixels and their orientation need.
_NEEDED_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")


def open_image(file: IO[bytes], suffix: str) -> tuple[ImageFile, int]:
    """Open the image in `file`. `suffix` only decides which format is tried first. Returns the image, and an estimate
    of the bytes that decoding takes.

    Raises ImageError if it is too large, UnidentifiedImageError, and whatever Pillow raises on a damaged header.
    """
    likely = FORMAT_OF_SUFFIX.get(suffix)
    if likely is not None:  # tried first, since Pillow imports the readers of all formats to identify a file
        with contextlib.suppress(UnidentifiedImageError, KeyError):  # KeyError: a Pillow without this format
            return _checked(Image.open(file, formats=[likely]))
    Image.init()
    return _checked(Image.open(file, formats=[format for format in FORMATS if format in Image.OPEN]))


def bytes_when_opened(file: IO[bytes]) -> int:
    """The bytes of memory that Pillow takes when it opens the file: it decodes icons, and allocates WebP's pixels.

    Raises ImageError if that is too much.
    """
    start = file.read(32)
    file.seek(0)
    sizes: Iterator[tuple[int, int]] | list[tuple[int, int]] = []
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        sizes = [_webp_size(start)]
    elif start[:4] == b"\x00\x00\x01\x00":
        sizes = _icon_sizes(file, start)
    if start[8:12] == b"WEBP" or start[4:8] == b"ftyp":  # these formats are read as a whole
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_BYTES:
            raise ImageError(f"too large: a file of {size:,} bytes, more than {_MAX_BYTES:,}")
    return 4 * sum(_required(size) for size in sizes)


def is_png(file: IO[bytes]) -> bool:
    """Whether the file starts as a PNG does."""
    file.seek(0)
    return file.read(len(_PNG)) == _PNG


def without_metadata(file: IO[bytes]) -> IO[bytes]:
    """A view of a PNG file without the chunks that its pixels do not need, which may be damaged or huge."""
    return io.BufferedReader(_FileRanges(file, list(_needed_ranges(file))))


def _checked(image: ImageFile) -> tuple[ImageFile, int]:
    stored = 0
    if isinstance(image, JpegImageFile):
        if (stored := _stored_coefficients(image)) > _MAX_BYTES:
            pixels = image.width * image.height
            raise ImageError(f"too large: {pixels:,} pixels in several scans, which take {stored / 1e6:,.0f} MB")
        # The decoder can scale by powers of two, which is 8 times faster for a photograph of 12 megapixels.
        image.draft("RGB", (2 * SIDE, 2 * SIDE))
    if image.format == "ICNS" and image.fp is not None:
        for size in _icon_sizes(image.fp, b"icns"):
            _required(size)
    pixels = _required(image.size)
    if isinstance(image, Jpeg2KImageFile) and _JPEG_2000_BYTES * pixels > _MAX_BYTES:
        image.reduce = 1  # half the width and height
        pixels //= 4
        if _jpeg_2000_levels(image) < 1:
            raise ImageError(
                f"too large: {image.width * image.height:,} pixels in a JPEG 2000 without smaller versions"
            )
    return image, 4 * pixels + stored


def _required(size: tuple[int, int]) -> int:
    """The number of pixels. Raises ImageError if it is too large."""
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS:
        raise ImageError(f"too large: {pixels:,} pixels, more than {MAX_PIXELS:,}")
    return pixels


def _stored_coefficients(image: JpegImageFile) -> int:
    """The bytes that libjpeg stores of a JPEG at full size: none, unless it has several scans, to be combined."""
    has_several_scans = "progressive" in image.info
    if type(image) is JpegImageFile and image.fp is not None:  # it has been read up to the first scan's marker
        scan = image.fp.read(3)
        has_several_scans |= len(scan) == 3 and scan[2] < len(image.layer)
    if not has_several_scans:
        return 0
    samples = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
    return 2 * image.width * image.height * sum(samples) // max(*samples, 1, 1)


def _jpeg_2000_levels(image: Jpeg2KImageFile) -> int:
    """How many times the image can be halved while it is decoded, from the COD marker of the first header."""
    assert image.fp is not None
    position = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(65536)
    image.fp.seek(position)
    marker = head.find(b"\xff\x4f\xff\x51") + 2
    while head[marker : marker + 1] == b"\xff" and len(head) > marker + 9:
        if head[marker + 1] == 0x52:
            return head[marker + 9]
        marker += 2 + int.from_bytes(head[marker + 2 : marker + 4], "big")
    return 0


def _webp_size(start: bytes) -> tuple[int, int]:
    """Width and height of a WebP file, from its first 32 bytes. Source: RFC 9649."""
    if start[12:16] == b"VP8X":
        return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1
    if start[12:16] == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF


def _icon_sizes(file: IO[bytes], start: bytes) -> Iterator[tuple[int, int]]:
    """The true sizes of the pictures in a Windows or macOS icon; its directory may give smaller ones."""
    is_windows = start[0] == 0
    for offset in list(_windows_offsets(file) if is_windows else _macos_offsets(file)):
        file.seek(offset)
        head = file.read(64)
        if len(head) < 64:
            continue
        if head.startswith(_PNG):
            yield struct.unpack_from(">II", head, 16)
        elif head.startswith(b"\xff\x4f\xff\x51"):  # a JPEG 2000 codestream
            yield struct.unpack_from(">II", head, 8)
        elif (header := head.find(b"ihdr")) in range(56):  # a JPEG 2000 file: height, width
            yield struct.unpack_from(">II", head, header + 4)
        elif is_windows:
            width, height = struct.unpack_from("<HH" if head[0] == 12 else "<ii", head, 4)
            yield abs(width), abs(height) // 2  # the other half is the mask
    file.seek(0)


def _windows_offsets(file: IO[bytes]) -> Iterator[int]:
    file.seek(4)
    count = int.from_bytes(file.read(2), "little")
    directory = file.read(16 * count)
    for entry in range(len(directory) // 16):
        yield int.from_bytes(directory[16 * entry + 12 : 16 * entry + 16], "little")


def _macos_offsets(file: IO[bytes]) -> Iterator[int]:
    offset = 8
    file.seek(offset)
    while len(header := file.read(8)) == 8 and (length := int.from_bytes(header[4:], "big")) >= 8:
        yield offset + 8
        offset += length
        file.seek(offset)


def _needed_ranges(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """(offset, length) of the PNG's signature and needed chunks; adjacent ones are joined."""
    start, end = 0, len(_PNG)
    file.seek(end)
    position = end
    while len(header := file.read(8)) == 8:
        length, name = int.from_bytes(header[:4], "big") + 12, header[4:]
        if name in _NEEDED_CHUNKS:
            if position != end:
                yield start, end - start
                start = position
            end = position + length
        position += length
        file.seek(position)
        if name == b"IEND":
            break
    yield start, end - start


class _FileRanges(io.RawIOBase):
    """Some ranges of a file, (offset, length) each, as a file of its own."""

    def __init__(self, file: IO[bytes], ranges: list[tuple[int, int]]) -> None:
        self._file, self._ranges = file, ranges
        self._starts = [0]
        for _, length in ranges:
            self._starts.append(self._starts[-1] + length)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self._position, self._starts[-1])[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        index = bisect_right(self._starts, self._position) - 1
        if index >= len(self._ranges):
            return 0
        within = self._position - self._starts[index]
        offset, length = self._ranges[index]
        self._file.seek(offset + within)
        data = self._file.read(min(len(buffer), length - within))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
