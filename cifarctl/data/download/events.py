"""The events while a data file is made."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Waiting:
    """Another process is making the same data file; its result will be used."""

    path: Path


@dataclass(frozen=True)
class Chosen:
    """This source is now used. received: bytes that are there already, from other sources or an earlier run."""

    source: str
    received: int


@dataclass(frozen=True)
class Progress:
    """The archive so far.

    source: the one that is used or, while several compete, the one that is ahead. received: bytes so far.
    total: the archive's size in bytes, 0 if not known yet. speed: bytes per second, over the last few seconds.
    """

    source: str
    received: int
    total: int
    speed: float


@dataclass(frozen=True)
class Failed:
    """One source has failed; others continue, if there are any."""

    source: str
    reason: str


@dataclass(frozen=True)
class Present:
    """Another process has made the data file meanwhile. sha256: of the archive that it was made from."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Installed:
    """The data file is in place.

    source: the one that gave most of the archive. size: of the archive, or of the files of a folder, in bytes.
    seconds: the time for finding, fetching, verifying and converting.
    """

    path: Path
    source: str
    size: int
    sha256: str
    seconds: float


Event = Waiting | Chosen | Progress | Failed | Present | Installed
