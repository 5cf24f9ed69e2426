"""Names of classes that are nearly the same: one of them may be meant by the other."""

import unicodedata
from collections.abc import Collection
from difflib import get_close_matches

# How much of two names must be the same: "hores" is near horse (0.8), "cat" not near ant (0.67).
_NEAR = 0.75


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
    folded = {_folded(each): each for each in known}
    # The same name in other case is the nearest; and a number is no misspelling of another one.
    near = get_close_matches(_folded(name), folded, 1, 1 if _folded(name).isdecimal() else _NEAR)
    return f"did you mean {folded[near[0]]}?" if near else otherwise


def _folded(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold().strip()
    return folded.lstrip("0") if folded.isdecimal() else folded
