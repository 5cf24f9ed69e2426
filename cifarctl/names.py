"""Make names from users and files (paths, labels, metadata) safe for terminals, web pages, figures and files.

They may contain anything: escape sequences, line breaks, marks that change the reading direction, formulas, and bytes
that are not UTF-8, which Python keeps as lone surrogates. In JSON they stay as they are: `json.dumps` writes ASCII, a
byte that is not UTF-8 as `\\udcXX`, and `os.fsencode` of the parsed text gives the original bytes.
"""

import re

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')  # on Windows, where `:` would write into a hidden stream of another file
_LONGEST_MESSAGE = 2000  # characters
_FILE_NAME_BYTES = 180  # of at most 255, since callers add to the name


def printable(name: str) -> str:
    """`name` on one line, with invisible characters escaped: `\\n`, `\\x1b`, `\\u202e`, and `\\xe9` for a raw byte."""
    return name if name.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in name)


def is_text(name: str) -> bool:
    """Whether `name` is UTF-8, as names of files need not be."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def shortened(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    """`text` without its middle if it has more than `longest` characters, as what repeats a value from a hostile file
    may have.
    """
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} … {text[-longest // 4 :]}"


def spreadsheet_cell(name: str) -> str:
    """`name` for a CSV file in UTF-8; an apostrophe stops a spreadsheet from running it as a formula."""
    text = "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in name)
    return f"'{text}" if text.startswith(_FORMULA) else text


def portable_name(name: str) -> str:
    """`name` as part of a file name that is valid on any system."""
    text = _FORBIDDEN.sub("-", printable(name))
    return text.encode()[:_FILE_NAME_BYTES].decode(errors="ignore")


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, by PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
