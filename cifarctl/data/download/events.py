"""What happens on the way to a data file, in the order in which it happens."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Waiting:
    """Another process makes the same data file; its result will be used."""

    path: Path


@dataclass(frozen=True)
class Chosen:
    """Bytes are now taken from this source. received: what is there already, from earlier sources or an earlier run."""

    source: str
    received: int


@dataclass(frozen=True)
class Progress:
    """The archive so far.

    source: where the bytes come from, or the one that is ahead while several compete. received: bytes that are there.
    total: the archive's size, 0 while no server has said it. speed: bytes a second, over the last few seconds.
    """

    source: str
    received: int
    total: int
    speed: float


@dataclass(frozen=True)
class Failed:
    """One source was given up; the others go on, if there are any."""

    source: str
    reason: str


@dataclass(frozen=True)
class Present:
    """The data file was made by another process meanwhile. sha256: of the archive that it was made from."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Installed:
    """The data file is in place.

    source: what gave the archive, or most of it. size: the archive's, in bytes (the files', where it was a folder).
    seconds: finding, fetching, verifying and converting.
    """

    path: Path
    source: str
    size: int
    sha256: str
    seconds: float


Event = Waiting | Chosen | Progress | Failed | Present | Installed
