"""Every kind of image that can be read is read right, nothing else is, and no file starts a program."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import OPEN_INFO

import cifarctl
from cifarctl.data.image_formats import FORMATS
from cifarctl.data.images import read_image
from cifarctl.errors import ImageError

from support import Cifarctl

SIZES = (31, 191, 192, 400)  # below and above each shortcut
Samples = NDArray[np.float64]
ORDERS = {"little": "<", "big": ">"}


def photo(side: int) -> Samples:
    """Something like a photograph, (side, side, 3), from 0 to 255, with structure at every size."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float64)


def grey(side: int) -> Samples:
    return photo(side)[..., 1].round()


def reference(samples: Samples) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) from 0 to 255 -> uint8 (3, 32, 32), resized as floats in one step."""
    channels = samples.transpose(2, 0, 1) if samples.ndim == 3 else [samples] * 3
    resized = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize((32, 32), Image.Resampling.BICUBIC))
        for channel in channels
    ]
    return np.stack(resized).round().clip(0, 255).astype(np.uint8)


def differs(path: Path, samples: Samples) -> float:
    """The mean difference between what is read and the reference."""
    return float(np.abs(read_image(path).astype(int) - reference(samples)).mean())


def tiff(
    samples: np.ndarray,
    order: str,
    photometric: int,
    sample_format: int = 1,
    extra: int | None = None,
    *,
    planar: bool = False,
    deflate: bool = False,
) -> bytes:
    """One strip, or one for each band if `planar`. samples: (H, W) or (H, W, bands) in its type."""
    ordered = samples.astype(f"{order}{samples.dtype.kind}{samples.dtype.itemsize}")
    strips = [ordered[..., band].tobytes() for band in range(samples.shape[2])] if planar else [ordered.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    data, offsets = b"".join(strips), [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    bands, bits = samples.shape[2] if samples.ndim == 3 else 1, 8 * samples.dtype.itemsize
    height, width = samples.shape[:2]
    fields = [(256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * bands)]
    fields += [(259, 3, [8 if deflate else 1]), (262, 3, [photometric]), (273, 4, offsets), (277, 3, [bands])]
    fields += [(278, 4, [height]), (279, 4, [len(strip) for strip in strips]), (284, 3, [2 if planar else 1])]
    fields += [(338, 3, [extra])] if extra is not None else []
    fields += [(339, 3, [sample_format] * bands)]
    after, entries, tail = 8 + len(data) + 6 + 12 * len(fields), b"", b""
    for tag, kind, values in fields:
        packed = struct.pack(order + "HI"[kind == 4] * len(values), *values)
        if len(packed) > 4:
            packed, tail = struct.pack(order + "I", after + len(tail)), tail + packed
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    header = mark + struct.pack(order + "HI", 42, 8 + len(data))
    return header + data + struct.pack(order + "H", len(fields)) + entries + bytes(4) + tail


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(samples: np.ndarray, bits: int, colour: int, *chunks: bytes) -> bytes:
    """samples: (H, W) or (H, W, bands), whole numbers of `bits` bits. chunks: before the pixels."""
    rows = samples.reshape(len(samples), -1).astype(">u2" if bits == 16 else np.uint8)
    if bits < 8:
        rows = np.packbits(np.unpackbits(rows[..., None], axis=2)[:, :, 8 - bits :].reshape(len(rows), -1), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, 0)
    pixels = [chunk(b"IDAT", zlib.compress(data, 1)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join((*chunks, *pixels))


@pytest.fixture(params=SIZES)
def side(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest) -> str:
    return ORDERS[request.param]


class TestSamples:
    """The pixels are those of a plain float reference, whatever the mode, the size and the order of the bytes."""

    @pytest.mark.parametrize("white_is_zero", [False, True])
    @pytest.mark.parametrize(
        ("kind", "sample_format", "scale"),
        [
            ("u1", 1, 1),
            ("u2", 1, 257),
            ("f4", 3, 1 / 255),
            ("f4", 3, 1),
        ],
    )
    def test_tiff_in_grey(
        self, tmp_path: Path, side: int, order: str, kind: str, sample_format: int, scale: float, white_is_zero: bool
    ) -> None:
        path, values = tmp_path / "x.tif", 255 - grey(side) if white_is_zero else grey(side)
        path.write_bytes(tiff((values * scale).astype(kind), order, 0 if white_is_zero else 1, sample_format))
        if (kind, order, white_is_zero) == ("u2", ">", True):  # Pillow knows no such TIFF, which is an answer
            with pytest.raises(ImageError, match="rare kind of TIFF"):
                read_image(path)
        else:
            assert differs(path, grey(side)) < 1

    @pytest.mark.parametrize(("kind", "sample_format"), [("u2", 1), ("i2", 2), ("i4", 2)])
    def test_8_bits_in_a_wider_type(self, tmp_path: Path, side: int, order: str, kind: str, sample_format: int) -> None:
        path = tmp_path / "x.tif"
        path.write_bytes(tiff(grey(side).astype(kind), order, 1, sample_format))
        assert differs(path, grey(side)) < 1

    def test_16_bits_in_a_wider_type(self, tmp_path: Path, side: int, order: str) -> None:
        path = tmp_path / "x.tif"
        path.write_bytes(tiff((grey(side) * 257).astype("i4"), order, 1, 2))
        assert differs(path, grey(side)) < 1

    def test_tiff_in_colour_and_with_alpha(self, tmp_path: Path, side: int, order: str) -> None:
        path, rgb = tmp_path / "x.tif", photo(side)
        alpha = np.linspace(0, 1, side)[None, :, None].repeat(side, 0)
        on_white = rgb * alpha + 255 * (1 - alpha)
        for data, samples in (
            (tiff(rgb.astype("u1"), order, 2), rgb),
            (tiff((rgb * 257).astype("u2"), order, 2), rgb),
            (tiff(np.dstack([rgb, 255 * alpha]).round().astype("u1"), order, 2, extra=2), on_white),
            (tiff(np.dstack([rgb * 257, 65535 * alpha]).astype("u2"), order, 2, extra=2), on_white),
            (tiff(np.dstack([rgb * alpha, 255 * alpha]).round().astype("u1"), order, 2, extra=1), on_white),
            (
                tiff(np.dstack([rgb[..., 1:2] * alpha, 255 * alpha]).round().astype("u1"), order, 1, extra=1),
                on_white[..., 1],
            ),
        )[: 6 if (b"II", 1, (1,), 1, (8, 8), (1,)) in OPEN_INFO else 5]:  # the last one only in later Pillows
            path.write_bytes(data)
            assert differs(path, samples) < 1.5

    def test_inks_and_lab_mean_colours_before_they_are_averaged(self, tmp_path: Path, side: int, order: str) -> None:
        path = tmp_path / "x.tif"
        checks = (np.indices((side, side)).sum(0) % 2)[..., None]
        inks = np.where(checks, [200, 40, 0, 180], [0, 90, 255, 0]).astype("u1")
        path.write_bytes(tiff(inks, order, 5))
        assert differs(path, (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255) < 1.5
        rgb, lab = photo(side), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(
            Image.fromarray(rgb.astype("u1")), ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
        )
        assert image is not None
        path.write_bytes(tiff(np.frombuffer(image.tobytes(), "u1").reshape(side, side, 3), order, 8))
        assert differs(path, rgb) < 2

    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
    def test_png_with_a_transparent_grey(self, tmp_path: Path, side: int, bits: int) -> None:
        top = 2**bits - 1
        values = (grey(side) / 255 * (top - 1)).round()
        path = tmp_path / "x.png"
        for key in {0, top, int(values[0, 0])}:
            path.write_bytes(png(values, bits, 0, chunk(b"tRNS", struct.pack(">H", key))))
            assert differs(path, np.where(values == key, 255, values * 255 / top)) < 1.5
        path.write_bytes(png(values, bits, 0))
        assert differs(path, values * 255 / top) < 1.5

    @pytest.mark.parametrize("bits", [8, 16])
    def test_png_with_a_transparent_colour(self, tmp_path: Path, side: int, bits: int) -> None:
        values = photo(side).round()
        values[: side // 2, : side // 2] = 10, 20, 30
        scale = 257 if bits == 16 else 1
        key = struct.pack(">HHH", 10 * scale, 20 * scale, 30 * scale)
        path = tmp_path / "x.png"
        path.write_bytes(png(values * scale, bits, 2, chunk(b"tRNS", key)))
        assert differs(path, np.where((values == (10, 20, 30)).all(-1, keepdims=True), 255, values)) < 1

    @pytest.mark.parametrize("suffix", ["png", "gif", "tiff", "bmp", "pcx"])
    def test_palettes(self, tmp_path: Path, side: int, suffix: str) -> None:
        image = Image.fromarray(photo(side).astype("u1")).convert("P", palette=Image.Palette.ADAPTIVE, colors=50)
        image.save(tmp_path / f"x.{suffix}")
        colours = np.asarray(image.convert("RGB")).astype(float)
        assert differs(tmp_path / f"x.{suffix}", colours) < 1
        if suffix in ("png", "gif"):
            image.save(tmp_path / f"x.{suffix}", transparency=3)
            assert differs(tmp_path / f"x.{suffix}", np.where((np.asarray(image) == 3)[..., None], 255, colours)) < 1

    @pytest.mark.parametrize("suffix", ["png", "webp", "tga", "tiff", "sgi", "jp2", "dds"])
    def test_colour_and_alpha_in_every_format(self, tmp_path: Path, side: int, suffix: str) -> None:
        rgb, alpha = photo(side), np.linspace(0, 1, side)[None, :, None].repeat(side, 0)
        lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(rgb.astype("u1")).save(tmp_path / f"x.{suffix}", **lossless)
        assert differs(tmp_path / f"x.{suffix}", rgb) < 1
        Image.fromarray(np.dstack([rgb, 255 * alpha]).astype("u1")).save(tmp_path / f"x.{suffix}", **lossless)
        assert differs(tmp_path / f"x.{suffix}", rgb * alpha + 255 * (1 - alpha)) < 1.5

    @pytest.mark.parametrize(
        ("name", "top", "kind", "header"),
        [
            ("x.pgm", 65535, ">u2", b"P5 {0} {0} 65535\n"),
            ("x.pgm", 4095, ">u2", b"P5 {0} {0} 4095\n"),
            ("x.pfm", 1, ">f4", b"Pf\n{0} {0}\n1.0\n"),
        ],
    )
    def test_portable_maps_say_what_white_is(
        self, tmp_path: Path, side: int, name: str, top: int, kind: str, header: bytes
    ) -> None:
        values = grey(side) / 255 * top
        data = (values[::-1] if kind == ">f4" else values.round()).astype(kind).tobytes()
        (tmp_path / name).write_bytes(header.replace(b"{0}", str(side).encode()) + data)
        assert differs(tmp_path / name, grey(side)) < 1

    @pytest.mark.parametrize("side", [31, 400], indirect=True)
    @pytest.mark.parametrize(
        ("kind", "sample_format", "values", "reason"),
        [
            ("f4", 3, lambda g: g * 4, "floats up to 1020"),
            ("f4", 3, lambda g: g / 100, "floats up to 2.55"),
            ("f4", 3, lambda g: g - 10, "floats from -10 to 245"),
            ("f4", 3, lambda g: np.where(g == 0, np.nan, g), "not all finite"),
            ("f4", 3, lambda g: np.where(g == 0, np.inf, g), "not all finite"),
            ("i4", 2, lambda g: g * 15, "integers up to 3825"),
            ("i4", 2, lambda g: g * 300, "integers up to 76500"),
            ("i2", 2, lambda g: g - 100, "integers from -100 to 155"),
            ("i2", 2, lambda g: g * 128, "integers up to 32640"),
            ("u2", 1, lambda g: g * 16, "reach only 4080 of 65535"),
            ("i1", 2, lambda g: g - 128, "signed 8-bit integers"),
        ],
    )
    def test_samples_without_a_sure_meaning_are_an_error(
        self,
        tmp_path: Path,
        side: int,
        order: str,
        kind: str,
        sample_format: int,
        values: Callable[[Samples], Samples],
        reason: str,
    ) -> None:
        samples = grey(side)
        samples[0, 0], samples[-1, -1] = 0, 255
        path = tmp_path / "x.tif"
        path.write_bytes(tiff(values(samples).astype(kind), order, 1, sample_format))
        with pytest.raises(ImageError, match=reason):
            read_image(path)

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_a_tiff_that_pillow_reads_wrong_is_an_error(self, tmp_path: Path, order: str) -> None:
        path, wide = tmp_path / "x.tif", (photo(31) * 257).astype(np.uint16)
        path.write_bytes(tiff(wide, order, 2, planar=True))
        with pytest.raises(ImageError, match="planes of 16 bits are not compressed"):
            read_image(path)
        path.write_bytes(tiff(wide, order, 2, planar=True, deflate=True))
        assert differs(path, photo(31)) < 2
        path.write_bytes(tiff(photo(31).astype(np.uint8), order, 2, planar=True))
        assert differs(path, photo(31)) < 2
        path.write_bytes(tiff(grey(31).astype(np.float32), order, 1, 3, deflate=True))
        if order == ">":
            with pytest.raises(ImageError, match="compressed and big-endian"):
                read_image(path)
        else:
            assert differs(path, grey(31)) < 2

    @pytest.mark.parametrize("colour", [2, 4, 6])
    def test_dark_colours_of_16_bits_are_an_error(self, tmp_path: Path, colour: int) -> None:
        """They may be samples of 8 or 12 bits, and Pillow reads the upper 8 of 16: a black picture."""
        samples = {2: photo(31), 4: photo(31)[..., :2], 6: np.dstack((photo(31), photo(31)[..., 0]))}[colour]
        samples = samples.astype(np.uint16)
        if colour != 2:
            samples[..., -1] = 65535  # opaque
        path = tmp_path / "x.png"
        path.write_bytes(png(samples, 16, colour))
        with pytest.raises(ImageError, match="reach at most 255 of 65535: it is not known which value is white"):
            read_image(path)
        samples[..., :3] *= 257
        path.write_bytes(png(samples, 16, colour))
        assert read_image(path).max() > 200

    def test_a_transparent_colour_of_16_bits_is_an_error(self, tmp_path: Path) -> None:
        samples = (photo(31) * 257).astype(np.uint16)
        (tmp_path / "x.png").write_bytes(png(samples, 16, 2, chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))))
        with pytest.raises(ImageError, match="transparent colour has 16 bits"):
            read_image(tmp_path / "x.png")

    @pytest.mark.parametrize("kind", ["u2", "i4", "f4"])
    def test_black_is_black_in_every_type(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "x.tif"
        path.write_bytes(tiff(np.zeros((40, 40), kind), "<", 1, {"u": 1, "i": 2, "f": 3}[kind[0]]))
        assert read_image(path).max() == 0

    def test_a_very_large_image(self, tmp_path: Path, thorough: bool) -> None:
        side = 5000 if thorough else 2100
        path = tmp_path / "x.tif"
        path.write_bytes(tiff((grey(side) * 257).astype("u2"), ">", 1))
        assert differs(path, grey(side)) < 1


class TestMetadata:
    """Metadata is no reason to refuse pixels."""

    WHOLE = (
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000)),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
        chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"iCCP", b"p\0\7" + b"unknown compression"),
        chunk(b"tEXt", b"k\0" + b"x" * 3_000_000) * 30,
        chunk(b"pHYs", b""),
        chunk(b"acTL", b""),
        chunk(b"tEXt", b"a\0b")[:-4] + b"none",  # another checksum
    )

    @pytest.mark.parametrize("extra", WHOLE, ids=range(len(WHOLE)))
    def test_of_a_png(self, tmp_path: Path, extra: bytes) -> None:
        values = photo(32).round()
        path = tmp_path / "x.png"
        data = png(values, 8, 2, extra)
        end = data.rindex(b"IEND") - 4
        for name, content in (("x.png", data), ("y.png", data.replace(extra, b"")[: end - len(extra)] + extra)):
            path = tmp_path / name
            path.write_bytes(content + (chunk(b"IEND", b"") if name == "y.png" else b""))
            assert np.array_equal(read_image(path), values.transpose(2, 0, 1))

    def test_damaged_pixels_beside_it_are_still_an_error(self, tmp_path: Path) -> None:
        data = png(photo(32).round(), 8, 2, self.WHOLE[0])
        (tmp_path / "x.png").write_bytes(data[:-200])
        with pytest.raises(ImageError):
            read_image(tmp_path / "x.png")

    @pytest.mark.parametrize("turned", [1, 6])
    def test_a_malformed_exif_number(self, tmp_path: Path, turned: int) -> None:
        values = np.zeros((64, 64), np.uint8)
        values[:32] = 255
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "JPEG")
        orientation = struct.pack("<HHIHH", 0x112, 3, 1, turned, 0)
        resolution = struct.pack("<HHII", 0x11A, 10, 1, 38)
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + orientation + resolution
        exif += struct.pack("<Iii", 0, -1, 0)  # minus one over nothing
        marker = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        (tmp_path / "x.jpg").write_bytes(stream.getvalue()[:2] + marker + stream.getvalue()[2:])
        pixels = read_image(tmp_path / "x.jpg")
        bright = pixels[:, :, 20:] if turned == 6 else pixels[:, :12]
        assert bright.min() > 200

    def test_an_orientation_that_cannot_be_read_leaves_the_pixels_as_stored(self, tmp_path: Path) -> None:
        image = Image.fromarray(photo(32).astype("u1"))
        image.save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
        assert np.array_equal(read_image(tmp_path / "x.png"), np.asarray(image).transpose(2, 0, 1))


class TestPrograms:
    """A picture is decoded in this process, or not at all."""

    POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"

    def test_the_package_names_the_formats_wherever_it_opens_an_image(self) -> None:
        package = Path(cifarctl.__file__).parent
        lines = [line for path in package.rglob("*.py") for line in path.read_text("utf-8").splitlines()]
        opening = [line for line in lines if re.search(r"\bImage\.open\(", line)]
        assert len(opening) >= 4
        assert [line for line in opening if "formats=" not in line] == []
        assert not FORMATS.keys() & {"EPS", "WMF", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG", "FITS", "BLP"}

    @pytest.mark.needs("POSIX")
    def test_postscript_starts_nothing(self, installed: Cifarctl, classifier_run: Path, tmp_path: Path) -> None:
        """With the system's Ghostscript, or one that leaves a mark."""
        marker, gs = tmp_path / "marker", tmp_path / "bin" / "gs"
        gs.parent.mkdir()
        gs.write_text(f"#!/bin/sh\ntouch '{marker}'\nexec '{shutil.which('gs') or 'true'}' \"$@\"\n")
        gs.chmod(0o755)
        paths = [tmp_path / f"photo.{suffix}" for suffix in ("png", "jpg", "eps", "ps", "iim", "tif")]
        for path in paths:
            path.write_bytes(self.POSTSCRIPT)
        path_variable = {"PATH": f"{gs.parent}{os.pathsep}{os.environ['PATH']}"}
        done = installed("predict", *paths, "-m", classifier_run, env=path_variable)
        assert done.code == 1
        reason = "PostScript, which is not read, since another program would have to be started: convert it to PNG"
        assert [json.loads(line)["error"] for line in done.out.splitlines()] == [reason] * 6
        assert not marker.exists()

    @pytest.mark.parametrize(
        ("start", "name"),
        [
            (b"%PDF-1.7", "PDF"),
            (b"\xd7\xcd\xc6\x9a" + bytes(40), "a Windows metafile"),
            (b"\x00\x00\x00\x18ftypheic", "HEIC"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
            (b"SIMPLE  =                    T", "FITS"),
        ],
    )
    def test_what_is_not_read_is_named_with_what_to_do(self, tmp_path: Path, start: bytes, name: str) -> None:
        (tmp_path / "x.png").write_bytes(start)
        with pytest.raises(ImageError, match=f"^{name}, which is not read.*: convert it to PNG$"):
            read_image(tmp_path / "x.png")

    def test_no_file_of_any_format_starts_a_process(self, tmp_path: Path) -> None:
        """Nor does the usual one make Pillow import the readers of all formats, which takes longer than the rest."""
        image = Image.fromarray(photo(32).astype("u1"))
        image.save(tmp_path / "a.png")
        Image.init()
        for format in sorted(Image.SAVE.keys() - {"IM", "SPIDER"}):  # deprecated; and it would take over the suffix
            for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK", "F"):
                try:
                    image.convert(mode).save(tmp_path / f"{format}-{mode}.png", format)
                except (OSError, ValueError, KeyError, AttributeError):
                    (tmp_path / f"{format}-{mode}.png").unlink(missing_ok=True)
        (tmp_path / "ps.png").write_bytes(self.POSTSCRIPT)
        assert len(list(tmp_path.iterdir())) > 40
        code = (
            "import sys; from pathlib import Path\n"
            "from no_processes import refuse_processes, ProcessStarted\n"
            "from cifarctl.data.images import find_images, read_image, read_images\n"
            "refuse_processes()\n"
            "read_image(Path(sys.argv[1], 'a.png'))\n"
            "print('PIL.EpsImagePlugin' in sys.modules)\n"
            "print(sum(1 for _ in read_images(find_images(Path(sys.argv[1])))))\n"
            "import os\n"
            "try: os.system('true')\n"
            "except ProcessStarted: print('refused')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        )
        assert done.stdout == f"False\n{len(list(tmp_path.iterdir()))}\nrefused\n"
        assert done.stderr.count("a process was started") == 1


class TestSizes:
    """The limit is on what decoding takes, before it is taken."""

    def test_a_progressive_jpeg_counts_at_its_full_size(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        Image.new("CMYK", (64, 64)).save(stream, "JPEG", progressive=True)
        data = bytearray(stream.getvalue())
        frame = data.index(b"\xff\xc2")
        data[frame + 5 : frame + 9] = struct.pack(">HH", 13300, 13300)
        (tmp_path / "x.jpg").write_bytes(data)
        with pytest.raises(ImageError, match=r"too large: 176,890,000 pixels in several scans, which take 1,415 MB"):
            read_image(tmp_path / "x.jpg")

    def test_a_large_picture_in_a_small_icon(self, tmp_path: Path) -> None:
        inner = png(np.zeros((4, 4, 4)), 8, 6).replace(struct.pack(">II", 4, 4), struct.pack(">II", 9000, 9000), 1)
        icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inner), 22) + inner
        apple = b"icns" + struct.pack(">I", 16 + len(inner)) + b"ic07" + struct.pack(">I", 8 + len(inner)) + inner
        for data in (icon, apple):
            (tmp_path / "x.png").write_bytes(data)
            with pytest.raises(ImageError, match="too large: 81,000,000 pixels"):
                read_image(tmp_path / "x.png")

    def test_a_large_canvas_of_a_small_webp(self, tmp_path: Path) -> None:
        size = (9000 - 1).to_bytes(3, "little") * 2
        data = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + size
        (tmp_path / "x.webp").write_bytes(data + bytes(10))
        with pytest.raises(ImageError, match="too large: 81,000,000 pixels"):
            read_image(tmp_path / "x.webp")

    def test_icons_of_a_usual_size_are_read(self, tmp_path: Path) -> None:
        image = Image.fromarray(photo(128).astype("u1"))
        kinds: tuple[tuple[str, dict[str, Any]], ...] = (("ico", {"sizes": [(128, 128)]}), ("icns", {}))
        for suffix, options in kinds:
            image.save(tmp_path / f"x.{suffix}", **options)
            assert differs(tmp_path / f"x.{suffix}", photo(128)) < 3
