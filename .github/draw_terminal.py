"""Draw the README's picture of a terminal, from what the command prints there.

python .github/draw_terminal.py
"""

import contextlib
import os
import pty
import subprocess
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from rich.color import Color
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE = Path(__file__).parent / "images" / "terminal.png"
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")  # DejaVu comes with matplotlib
COMMAND = "cifarctl predict example --top-k 3 --show"
WIDTH, SIZE, MARGIN = 72, 20, 24  # characters per line; pixels


def main() -> None:
    regular, bold = (ImageFont.truetype(FONTS / f"DejaVuSansMono{style}.ttf", SIZE) for style in ("", "-Bold"))
    cell, height = round(regular.getlength("0")), round(1.2 * SIZE)
    lines = [Text(f"$ {COMMAND}"), *printed(COMMAND)]
    console = Console(width=WIDTH, color_system="truecolor")
    image = Image.new("RGB", (2 * MARGIN + WIDTH * cell, 2 * MARGIN + len(lines) * height), MONOKAI.background_color)
    pen = ImageDraw.Draw(image)
    for row, text in enumerate(lines):
        column = 0
        for segment in text.render(console):
            style = segment.style or console.get_style("none")
            front, back = rgb(style.color, MONOKAI.foreground_color), rgb(style.bgcolor, MONOKAI.background_color)
            for character in segment.text.rstrip("\n"):
                x, y = MARGIN + column * cell, MARGIN + row * height
                pen.rectangle((x, y, x + cell - 1, y + height - 1), fill=back)
                if character == "▀":
                    pen.rectangle((x, y, x + cell - 1, y + height // 2 - 1), fill=front)
                else:
                    pen.text((x, y), character, front, bold if style.bold else regular)
                column += 1
    image.quantize(128).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {image.width}×{image.height}, {PICTURE.stat().st_size:,} bytes")


def printed(command: str) -> list[Text]:
    """The lines that the command shows on a terminal, with their colours."""
    terminal, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(WIDTH)}
    shown = b""
    with subprocess.Popen(command.split(), stdout=end, stderr=end, env=environment) as process:
        os.close(end)
        with contextlib.suppress(OSError):  # as Linux says that the other end is closed
            while chunk := os.read(terminal, 65536):
                shown += chunk
        assert process.wait() == 0
    return [Text.from_ansi(line) for line in shown.decode().replace("\r", "").splitlines()]


def rgb(color: Color | None, default: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour of a cell, in the terminal's theme."""
    return tuple(color.get_truecolor(MONOKAI)) if color and not color.is_default else default


if __name__ == "__main__":
    main()
