"""The images in a page: all of a section in one picture, and each by its place in it."""

import base64
import io
from dataclasses import dataclass

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

_COLUMNS = 40
_SIDE = 32


def data_uri(pixels: Tensor) -> Markup:
    """A picture, uint8 (height, width, 3), or 4 with opacity, as a URI. Lossless, since what a model confuses may be a
    few pixels.
    """
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, "webp", lossless=True, quality=100, method=4)
    return Markup("data:image/webp;base64,{}").format(base64.b64encode(stream.getvalue()).decode())


@dataclass(frozen=True)
class Sprite:
    """Many images of 32×32 in one picture, as a data URI: a picture for each would be many times larger."""

    uri: Markup
    columns: int
    rows: int

    @classmethod
    def pack(cls, images: Tensor) -> "Sprite":
        """Images, uint8 (N, 3, 32, 32), row by row."""
        columns = min(len(images), _COLUMNS)
        rows = -(-len(images) // columns)
        sheet = torch.zeros(rows * columns, 3, _SIDE, _SIDE, dtype=torch.uint8)
        sheet[: len(images)] = images
        pixels = sheet.view(rows, columns, 3, _SIDE, _SIDE).permute(0, 3, 1, 4, 2).reshape(rows * _SIDE, -1, 3)
        return cls(data_uri(pixels), columns, rows)


@dataclass(frozen=True)
class Thumb:
    """An image by its place in the sprite, and what it shows, in words."""

    column: int
    row: int
    text: str

    @classmethod
    def at(cls, position: int, text: str) -> "Thumb":
        """The image that was packed as number `position`."""
        return cls(position % _COLUMNS, position // _COLUMNS, text)


@dataclass(frozen=True)
class Answer:
    """An image, its number in the split, the path of its file if it has one, its true label, the model's likeliest
    labels with their probabilities, and its typicality if the model has that score.
    """

    thumb: Thumb
    number: int
    path: str | None
    truth: str
    top: list[tuple[str, float]]
    typicality: float | None


@dataclass(frozen=True)
class Pair:
    """An original and its reconstruction. path: of the original's file, if it has one."""

    original: Thumb
    reconstruction: Thumb
    path: str | None
    label: str
    psnr: float
