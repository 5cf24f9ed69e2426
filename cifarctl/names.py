"""Names from elsewhere (paths, labels, what a weights file says) as text for terminals, pages, figures and files.

They may hold anything: orders to a terminal, line breaks, marks that turn the reading direction, bytes that are not
UTF-8 (which Python keeps as lone surrogates), formulas. In JSON they stay as they are: `json.dumps` writes ASCII, a
byte that is not UTF-8 as `\\udcXX`, and `os.fsencode` of what is read again gives the name's bytes.
"""

import re

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')  # by Windows; `:` hides what is written inside another file
_FILE_NAME_BYTES = 180  # of 255, since what comes before and after it needs room


def printable(name: str) -> str:
    """`name` on one line, with all that cannot be seen as an escape: `\\n`, `\\x1b`, `\\u202e`; a byte as `\\xe9`."""
    return name if name.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in name)


def spreadsheet_cell(name: str) -> str:
    """`name` for a CSV file in UTF-8: an apostrophe keeps a spreadsheet from running it as a formula."""
    text = "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in name)
    return f"'{text}" if text.startswith(_FORMULA) else text


def portable_name(name: str) -> str:
    """`name` as a part of a file's name, on any system."""
    text = _FORBIDDEN.sub("-", printable(name))
    return text.encode()[:_FILE_NAME_BYTES].decode(errors="ignore")


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, by PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
