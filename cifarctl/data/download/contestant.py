"""What is known of a mirror, and of its part in one round of the competition."""

from collections import deque
from dataclasses import dataclass, field

from cifarctl.data.download.connection import Broken, Connection
from cifarctl.data.download.urls import redact

# Speeds are means over so long.
_WINDOW_SECONDS = 5.0
# Bytes a second. At less than this an archive takes two days.
_LEAST_SPEED = 1000.0


@dataclass(frozen=True)
class Patience:
    """When a mirror is left, in seconds.

    answer: after the request, if the file has not begun: names, connections, redirects and headers included.
    crawl: if it has sent less than 1 kB a second for so long. alone: instead of these two, if it is the last mirror.
    silence: after its last byte.
    """

    answer: float = 30.0
    crawl: float = 5.0
    alone: float = 60.0
    silence: float = 5.0


@dataclass(eq=False)
class Mirror:
    """speed: bytes a second, when it last was measured. barren: connections in a row that brought next to nothing."""

    url: str
    speed: float = 0.0
    barren: int = 0

    @property
    def shown(self) -> str:
        """The URL for people, without what is secret in it."""
        return redact(self.url)


@dataclass(eq=False)
class Contestant:
    """A mirror's connection in one round.

    base: the place in the file of the first byte in `chunks`. position: the place after the last one.
    received: new bytes. arrived: bytes since `checked`, also such as were there already.
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

    def find_fault(self, now: float, patience: Patience, *, alone: bool) -> Broken | None:
        """Why the contestant has to be left by now, if it has. alone: no other mirror could take its place."""
        if not self.opened:
            seconds = patience.alone if alone else patience.answer
            late = now - self.started > seconds
            return Broken(f"no answer for {seconds:g} seconds", final=alone) if late else None
        if now - self.heard > patience.silence:
            return Broken(f"it has sent nothing for {patience.silence:g} seconds", final=False)
        seconds = patience.alone if alone else patience.crawl
        if now - self.checked > seconds:
            if self.arrived < _LEAST_SPEED * seconds:
                return Broken(f"it has sent only {self.arrived:,} bytes in {seconds:g} seconds", final=alone)
            self.checked, self.arrived = now, 0
        return None

    def is_crawling(self, now: float) -> bool:
        """True if so little has come since the request that this mirror should not be the one."""
        return self.mean_speed(now) < _LEAST_SPEED

    def mean_speed(self, now: float) -> float:
        """Bytes a second since the request, the server's answering time included."""
        return self.received / max(now - self.started, 1e-3)

    def recent_speed(self, now: float) -> float:
        """Bytes a second over the last few seconds."""
        while self.samples and self.samples[0][0] < now - _WINDOW_SECONDS:
            self.samples.popleft()
        return sum(size for _, size in self.samples) / max(min(now - self.started, _WINDOW_SECONDS), 1e-3)
