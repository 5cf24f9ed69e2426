"""Mirrors, their connections in one round of the competition, and when a slow one is abandoned."""

from collections import deque
from dataclasses import dataclass, field

from cifarctl.data.download.connection import Broken, Connection
from cifarctl.data.download.urls import redact

# Recent speeds are means over this time.
_WINDOW_SECONDS = 5.0
# Bytes per second. Below this, an archive would take two days.
_MIN_SPEED = 1000.0


@dataclass(frozen=True)
class Patience:
    """When a mirror is abandoned, in seconds.

    answer: from the request to the file's first byte. crawl: how long it may send less than 1 kB per second.
    last_mirror: instead of these two, if it is the last mirror. silence: after its last byte.
    """

    answer: float = 30.0
    crawl: float = 5.0
    last_mirror: float = 60.0
    silence: float = 5.0


@dataclass(eq=False)
class Mirror:
    """speed: bytes per second, when last measured. useless_connections: how many in a row sent next to nothing."""

    url: str
    speed: float = 0.0
    useless_connections: int = 0

    @property
    def shown(self) -> str:
        """The URL as users see it, without secrets."""
        return redact(self.url)


@dataclass(eq=False)
class Contestant:
    """A mirror's connection in one round.

    base: the position in the file of the first byte in `chunks`. position: the position after the last one.
    received: new bytes. arrived: bytes since the time `checked`, including those that were there already.
    started, heard: times of the request and of the last message.
    """

    mirror: Mirror
    connection: Connection
    base: int
    position: int
    started: float
    heard: float
    chunks: list[bytes] = field(default_factory=list)
    received: int = 0
    arrived: int = 0
    checked: float = 0.0
    opened: bool = False
    ended: bool = False
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def find_fault(self, now: float, patience: Patience, *, is_last: bool) -> Broken | None:
        """Why the contestant must be abandoned now; None if it need not. is_last: there is no other mirror."""
        if not self.opened:
            seconds = patience.last_mirror if is_last else patience.answer
            late = now - self.started > seconds
            return Broken(f"no answer for {seconds:g} seconds", final=is_last) if late else None
        if now - self.heard > patience.silence:
            return Broken(f"it has sent nothing for {patience.silence:g} seconds", final=False)
        seconds = patience.last_mirror if is_last else patience.crawl
        if now - self.checked > seconds:
            if self.arrived < _MIN_SPEED * seconds:
                return Broken(f"it has sent only {self.arrived:,} bytes in {seconds:g} seconds", final=is_last)
            self.checked, self.arrived = now, 0
        return None

    def is_crawling(self, now: float) -> bool:
        """True if the mirror is too slow to be used."""
        return self.mean_speed(now) < _MIN_SPEED

    def mean_speed(self, now: float) -> float:
        """Bytes per second since the request, including the time until the server answered."""
        return self.received / max(now - self.started, 1e-3)

    def recent_speed(self, now: float) -> float:
        """Bytes per second over the last few seconds."""
        while self.samples and self.samples[0][0] < now - _WINDOW_SECONDS:
            self.samples.popleft()
        return sum(size for _, size in self.samples) / max(min(now - self.started, _WINDOW_SECONDS), 1e-3)
