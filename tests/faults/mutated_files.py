"""Whether the readers of weights and of images survive damaged files: no crash, no hang, little memory.

    python tests/faults/mutated_files.py weights|images [--count 10000] [--seed 0]

Each variant of an honest file goes through the command's own loader, and a model that loads answers a batch. Prints how
the variants ended, the slowest and the memory. Exits with 1 where one ended otherwise than in an error line or a right
answer, started a process, took more than 5 s, or where the process took more than 1 GiB.
"""

import argparse
import collections
import copy
import io
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # these files are small

import numpy as np
import torch
from PIL import Image

from cifarctl import models, weights
from cifarctl.data.images import read_image
from cifarctl.errors import CifarctlError
from cifarctl.inference import predict_logits, reconstruct

sys.path.insert(0, str(Path(__file__).parent.parent))
from no_processes import refuse_processes
from support import peak_memory

_SECONDS, _BYTES = 5.0, 1 << 30
_BATCH = torch.zeros((2, 3, 32, 32), dtype=torch.uint8)
# What stands in headers: numbers at the edges of their types, other types, containers in each other.
_VALUES: tuple[Any, ...] = (
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    2**64 - 1,
    1e308,
    "",
    "F64",
    "F8_E4M3",
    "BOOL",
    "F4",
    "U8",
    None,
    True,
    [],
    {},
    [[]],
    [1] * 40,
)


def honest_weights(folder: Path) -> list[bytes]:
    """A small file of each kind of model."""
    kinds: tuple[tuple[models.Kind, str, dict[str, Any]], ...] = (
        ("classifier", "airbench", {"classes": 3, "widths": [24, 24, 24], "depth": 1}),
        ("classifier", "mlp", {"classes": 3, "hidden": [4]}),
        ("autoencoder", "conv2", {"latent_dim": 64}),
        ("autoencoder", "resconv", {"latent_dim": 2, "width": 8, "blocks": 1}),
    )
    files = []
    for kind, name, config in kinds:
        torch.manual_seed(0)
        classes = ("a", "b", "c") if kind == "classifier" else ()
        path = folder / "honest.safetensors"
        weights.save(path, models.build(name, **config).state_dict(), weights.ModelInfo(kind, name, config, classes))
        files.append(path.read_bytes())
    return files


def honest_images() -> list[bytes]:
    """A photograph-like image in every format that is read, in the modes that matter."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (48, 40, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (40, 40), np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((rgb, format, {}) for format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")),
        (rgb, "JPEG", {"exif": exif, "progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("RGBA"), "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb.convert("LA"), "PNG", {}),
        (deep, "PNG", {}),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        (rgb, "TIFF", {"compression": "tiff_lzw", "exif": exif}),
        (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        *(
            (rgb, format, {})
            for format in ("AVIF", "JPEG2000", "TGA", "ICO", "ICNS", "SGI", "PCX", "QOI", "DDS", "DIB")
        ),
        *((rgb.convert("RGBA"), format, {}) for format in ("AVIF", "JPEG2000", "WEBP", "TGA", "ICO", "DDS")),
        (rgb, "TGA", {"compression": "tga_rle"}),
        (rgb, "DDS", {"pixel_format": "DXT1"}),
        (rgb.convert("1"), "MSP", {}),
        (rgb.convert("1"), "XBM", {}),
        (rgb.convert("F"), "PPM", {}),
        (rgb.convert("F"), "TIFF", {}),
        (rgb, "MPO", {"save_all": True, "append_images": [rgb.rotate(90)]}),
    ]
    files = []
    for image, format, options in kinds:
        stream = io.BytesIO()
        try:
            image.save(stream, format, **options)
        except (KeyError, OSError) as error:  # this Pillow cannot write it
            print(f"without {format}: {error}")
            continue
        files.append(stream.getvalue())
    return files + _unwritten(rgb)


def _unwritten(image: Image.Image) -> list[bytes]:
    """The same in formats that Pillow reads and does not write."""
    width, height = image.size
    pixels = image.tobytes()
    planes = b"".join(channel.tobytes() for channel in image.split())
    stream = io.BytesIO()
    image.save(stream, "PCX")
    dib = io.BytesIO()
    image.save(dib, "DIB")
    data = bytearray(dib.getvalue())
    data[8:12] = struct.pack("<i", 2 * height)  # the mask counts
    cursor = bytes(data) + bytes(4 * -(-width // 32) * height)
    colours = "".join(f'"{i} c #{40 * i:02x}80{200 - 30 * i:02x}",\n' for i in range(6))
    rows = "".join(f'"{"".join(str((x * y) % 6) for x in range(width))}",\n' for y in range(height))
    return [
        struct.pack(">8I", 0x59A66A95, width, height, 24, len(pixels), 1, 0, 0) + pixels,  # SUN
        b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3) + bytes(12) + bytes(2) + planes,  # PSD
        struct.pack("<III", 0x3ADE68B1, 12, 0) + stream.getvalue(),  # DCX
        struct.pack("<HHH", 0, 2, 1) + struct.pack("<BBBBHHII", width, height, 0, 0, 0, 0, len(cursor), 22) + cursor,
        f'/* XPM */\nstatic char *x[] = {{\n"{width} {height} 6 1",\n{colours}{rows}}};\n'.encode(),
        struct.pack(">IIIIII", 28 + 8, 2, width, height, 1, 0x47494D50)
        + struct.pack(">I", 10)
        + b"a brush\0"
        + image.convert("L").tobytes(),  # GBR
        b"FTEX"
        + struct.pack("<I4iI", 0, width, height, 1, 1, 1)
        + struct.pack("<II", 1, 32)
        + struct.pack("<I", len(pixels))
        + pixels,  # FTEX
    ]


def mutate(files: list[bytes], seed: int, count: int) -> Iterator[bytes]:
    """`count` variants: flipped bits, numbers at their limits, truncations, repeats, pieces of other files.

    Half of the damage goes to the first 512 bytes, where formats keep what they are.
    """
    rng = np.random.default_rng(seed)
    for i in range(count):
        data = bytearray(files[rng.integers(len(files))])

        def place(data: bytearray = data) -> int:
            return int(rng.integers(len(data) if rng.random() < 0.5 else min(512, len(data))))

        match i % 5:
            case 0:
                for _ in range(rng.integers(1, 12)):
                    data[place()] ^= 1 << int(rng.integers(8))
            case 1:
                size = int(rng.choice([1, 2, 4, 8]))
                at = place()
                data[at : at + size] = rng.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * size
            case 2:
                del data[place() :]
            case 3:
                first, last = sorted((place(), place()))
                data[last:last] = data[first:last][:4096]
            case 4:
                other = files[rng.integers(len(files))]
                at, start = place(), int(rng.integers(len(other)))
                data[at : at + 64] = other[start : start + 64]
        yield bytes(data)


def mutate_headers(files: list[bytes], seed: int, count: int) -> Iterator[bytes]:
    """`count` weights files whose header is still JSON, with one to three values in it replaced."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = files[rng.integers(len(files))]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        for _ in range(rng.integers(1, 4)):
            _replace_one(header, rng)
        text = json.dumps(header).encode()
        yield len(text).to_bytes(8, "little") + text + data[8 + length :]


def _replace_one(header: object, rng: np.random.Generator) -> None:
    """Walk down from the top, and replace what is found there; JSON in strings is walked into too."""
    while isinstance(header, dict | list) and header:
        key = list(header)[rng.integers(len(header))] if isinstance(header, dict) else int(rng.integers(len(header)))
        value = header[key]
        if isinstance(value, str) and value[:1] in "{[" and rng.random() < 0.8:
            inner = json.loads(value) if value[:1] == "{" and value != "{" else value
            if isinstance(inner, dict):
                _replace_one(inner, rng)
                header[key] = json.dumps(inner)
                return
        if isinstance(value, dict | list) and value and rng.random() < 0.7:
            header = value
            continue
        header[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])  # what is put in may be changed later
        return


def load_weights(path: Path) -> str:
    info = weights.read_info(path)
    if info.kind == "classifier":
        classifier, info = weights.load_classifier(path, torch.device("cpu"))
        answer = predict_logits(classifier, _BATCH)
        assert answer.shape == (2, len(info.classes)), answer.shape
    else:
        autoencoder, _ = weights.load_autoencoder(path, torch.device("cpu"))
        answer = reconstruct(autoencoder, _BATCH)
        assert answer.shape == _BATCH.shape, answer.shape
    assert answer.isfinite().all()
    return "answered"


def load_image(path: Path) -> str:
    pixels = read_image(path)
    assert pixels.shape == (3, 32, 32), pixels.shape
    assert pixels.dtype == np.uint8
    return "answered"


def outcome(load: Callable[[Path], str], path: Path) -> str:
    """How loading the file ended: "answered", the kind of error line, or what is not allowed."""
    try:
        return load(path)
    except CifarctlError as error:
        return type(error).__name__ if "\n" not in str(error) else "an error of several lines"
    except BaseException as error:
        return f"escaped: {type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=["weights", "images"])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ends: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    # In memory where there is such a folder: 10,000 files should not wear out a disk.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder, "mutated")
        if options.reader == "weights":
            files, load = honest_weights(Path(folder)), load_weights
            half = options.count // 2
            variants = [mutate(files, options.seed, options.count - half), mutate_headers(files, options.seed, half)]
        else:
            files, load = honest_images(), load_image
            variants = [mutate(files, options.seed, options.count)]
        for number, file in enumerate(files):
            path.write_bytes(file)
            assert outcome(load, path) == "answered", f"honest file {number}, {file[:16]!r}: {outcome(load, path)}"
        refuse_processes()
        before, started = peak_memory(), time.perf_counter()
        for group in variants:
            for data in group:
                path.write_bytes(data)
                began = time.perf_counter()
                ends[outcome(load, path)] += 1
                slowest = max(slowest, time.perf_counter() - began)
        seconds = time.perf_counter() - started
    print(f"seed {options.seed}: {ends.total():,} variants of {len(files)} {options.reader} files in {seconds:.1f} s")
    for ended, count in ends.most_common():
        print(f"{ended:<40}{count:>8,}")
    print(f"slowest: {slowest:.2f} s")
    print(f"memory: {peak_memory() / 2**20:,.0f} MiB at most, {before / 2**20:,.0f} with the honest files")
    right = set(ends) <= {"answered", "WeightsError", "ImageError"}
    return 0 if right and slowest <= _SECONDS and peak_memory() <= _BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
