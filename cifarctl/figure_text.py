"""Names as Matplotlib draws them: no mathematics, and in a font that has their characters."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from cifarctl.names import printable

_FAMILY = "DejaVu Sans"  # comes with Matplotlib


def drawable(names: Sequence[str], width: int | None = None) -> tuple[list[str], dict[str, Any]]:
    """The names as texts, and the properties that their Matplotlib text needs.

    width: the most characters of each; the end is kept, since files often differ only there. Characters that no font of
    this system has are written as escapes.
    """
    texts = [printable(name) for name in names]
    foreign = {character for text in texts if not text.isascii() for character in text}
    families = [_FAMILY]
    missing = {character for character in foreign if not _has(font_manager.findfont(_FAMILY), character)}
    if missing:
        found, missing = _fallbacks("".join(sorted(missing)))
        families += found
    escapes = str.maketrans({character: character.encode("unicode_escape").decode() for character in missing})
    texts = [_shortened(text.translate(escapes), width).replace("$", r"\$") for text in texts]
    return texts, {"fontfamily": families} if len(families) > 1 else {}


@cache
def _fallbacks(characters: str) -> tuple[list[str], set[str]]:
    """Families of installed fonts that together have most of the characters, and those that none has."""
    missing, families = set(characters), []
    for entry in font_manager.fontManager.ttflist:
        if not missing:
            break
        if entry.name.startswith("Last Resort"):  # it has a box for every character
            continue
        if found := {character for character in missing if _has(entry.fname, character)}:
            # As the family is looked up when it is drawn: its regular face need not be this file.
            path = font_manager.findfont(font_manager.FontProperties(family=[entry.name]))
            if found := {character for character in found if _has(path, character)}:
                families.append(entry.name)
                missing -= found
    return families, missing


def _has(path: str, character: str) -> bool:
    try:
        font: FT2Font = font_manager.get_font(path)
        if not font.get_char_index(ord(character)):
            return False
        font.set_size(10, 100)
        font.load_char(ord(character))  # fails in fonts of coloured pictures
    except (OSError, RuntimeError, ValueError):
        return False
    return True


def _shortened(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else "…" + text[-(width - 1) :]
