"""Names of classes that are nearly the same: one of them may be meant by the other."""

import unicodedata
from collections.abc import Collection
from difflib import get_close_matches


def lookalikes(names: Collection[str]) -> list[list[str]]:
    """The groups of names that differ only in case, outer spaces, leading zeros or how Unicode writes a letter."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_folded(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def hint_at_near(name: str, known: Collection[str], otherwise: str) -> str:
    """A hint for a `name` that is not among those `known`: the one that may be meant, or else `otherwise`."""
    for each in known:
        if unicodedata.normalize("NFC", each) == unicodedata.normalize("NFC", name):
            return f"the names look the same, but Unicode writes them {name!a} and {each!a}"
    near = [each for each in known if _folded(each) == _folded(name)] or get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else otherwise


def _folded(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold().strip()
    return folded.lstrip("0") if folded.isdecimal() else folded
