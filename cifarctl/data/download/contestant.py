"""What is known of a mirror, and of its part in one round of the competition."""

from collections import deque
from dataclasses import dataclass, field

from cifarctl.data.download.connection import Connection

# Speeds are means over so long.
_WINDOW_SECONDS = 5.0


@dataclass(eq=False)
class Mirror:
    """speed: bytes a second, when it last was measured. barren: connections in a row that brought nothing."""

    url: str
    speed: float = 0.0
    barren: int = 0


@dataclass(eq=False)
class Contestant:
    """A mirror's connection in one round.

    base: the place in the file of the first byte in `chunks`. position: the place after the last one.
    """

    mirror: Mirror
    connection: Connection
    base: int
    position: int
    started: float
    heard: float
    chunks: list[bytes] = field(default_factory=list)
    received: int = 0
    opened: bool = False
    ended: bool = False
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def mean_speed(self, now: float) -> float:
        """Bytes a second since the request, the server's answering time included."""
        return self.received / max(now - self.started, 1e-3)

    def recent_speed(self, now: float) -> float:
        """Bytes a second over the last few seconds."""
        while self.samples and self.samples[0][0] < now - _WINDOW_SECONDS:
            self.samples.popleft()
        return sum(size for _, size in self.samples) / max(min(now - self.started, _WINDOW_SECONDS), 1e-3)
