"""Images as coloured cells of a terminal, two pixels per cell."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.style import Style
from rich.table import Table
from rich.text import Text

from cifarctl.cli.output import Output
from cifarctl.names import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_UPPER_HALF = "▀"


def show_images(images: "Sequence[NDArray[np.uint8]]", captions: Sequence[str], output: Output) -> None:
    """Draw uint8 (3, H, W) images with a caption under each on the terminal that messages go to, as many side by side
    as fit. If that is no colour terminal, nothing is drawn.
    """
    if not output.redraws:
        return
    width = max(image.shape[2] for image in images)
    per_row = max(1, (output.stderr.width + 1) // (width + 1))
    for start in range(0, len(images), per_row):
        table = Table.grid(padding=(0, 1, 0, 0))
        band = range(start, min(start + per_row, len(images)))
        for _ in band:
            table.add_column(max_width=width, no_wrap=True, overflow="ellipsis")
        table.add_row(*(_cells(images[i]) for i in band))
        table.add_row(*(Text(printable(captions[i])) for i in band))
        output.stderr.print(table)


def _cells(image: "NDArray[np.uint8]") -> Text:
    """uint8 (3, H, W) -> H / 2 lines of W cells, the upper pixel in front of the lower one."""
    pixels = image.transpose(1, 2, 0).tolist()
    text = Text()
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            text.append(_UPPER_HALF, Style(color=_rgb(top), bgcolor=_rgb(bottom)))
        text.append("\n")
    text.rstrip()
    return text


def _rgb(pixel: list[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*pixel)
