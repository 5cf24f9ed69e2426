"""How a page names the file that an image comes from, and links to it."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cifarctl.names import shortened

_LONGEST_NAME = 60  # characters; a card has room for three lines of them


@dataclass(frozen=True)
class ImageFile:
    """name: the file's own, without its folders. place: its path from the page's folder, with slashes, if it is in that
    folder or below it; None elsewhere, since a link would tell where things lie on this machine.
    """

    name: str
    place: str | None

    @classmethod
    def seen_from(cls, folder: Path, path: str) -> "ImageFile":
        """The file at `path` as a page in `folder` names it."""
        file = Path(path)
        return cls(shortened(file.name, _LONGEST_NAME), _place_below(folder, file))

    @property
    def href(self) -> str:
        """The place as a relative reference: all but letters, digits, slashes and `_.-~` is percent-encoded, byte by
        byte, as names need not be UTF-8.
        """
        return quote(os.fsencode(self.place or ""))


def _place_below(folder: Path, file: Path) -> str | None:
    # As they are written first: a link to another disk, in the page's folder, is followed by browsers too.
    real = Path(os.path.realpath(file.parent), file.name)
    for base, path in ((folder.absolute(), file.absolute()), (Path(os.path.realpath(folder)), real)):
        if path.is_relative_to(base) and ".." not in (place := path.relative_to(base)).parts:
            return place.as_posix()
    return None
