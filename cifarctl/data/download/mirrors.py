"""Mirrors in competition: the best few are started together, the fastest is kept, and another goes on where one fails.

All of a round's contestants send the same bytes, into memory, until one has brought enough to tell. Only its bytes are
kept, so that a file with a wrong digest can nearly always be laid at one mirror's door; what the others sent meanwhile
is at most a few percent of the archive.
"""

import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Queue
from ssl import SSLContext

from cifarctl.data.download.connection import Broken, Connection, Ended, Message, Opened, make_ssl_context
from cifarctl.data.download.contestant import Contestant, Mirror
from cifarctl.data.download.events import Chosen, Failed, Progress
from cifarctl.data.download.partial import Partial, require_room
from cifarctl.errors import UsageError

# So many start at once, and one more joins every second while no one has won.
_WIDTH = 3
_JOIN_SECONDS = 1.0
# A round is won by the first that brings so much, or an eighth of what is missing, or else by the fastest after a time.
# TCP needs about eight round trips to come up to speed, which is about this much on a fast line.
_RACE_BYTES = 8 << 20
_RACE_SECONDS = 3.0
# The winner is left when it sends nothing for so long, or over so long only half of what another one showed.
_STALL_SECONDS = 5.0
# A mirror is given up after so many connections in a row that brought nothing.
_BARREN_CONNECTIONS = 2
_PAUSE_SECONDS = 1.0
_LISTEN_SECONDS = 0.25
_REPORT_SECONDS = 0.1
# Both archives have 170 MB: a server that claims or sends more than this has something else.
_MAX_BYTES = 1 << 30
# The data file is a little larger than the archive: 184.8 MB of 170.5 MB.
_DATA_FILE_RATIO = 1.1
_EARLIER = "an earlier run"


def is_url(source: str) -> bool:
    """True for what is fetched, false for what is a path."""
    return source.lower().startswith(("http:", "https:"))  # C:\\x.tar.gz is none, nor is what urlsplit cannot read


def mirrors_from_environment() -> list[str]:
    """The URLs in $CIFARCTL_MIRRORS, separated by spaces or commas. Raises UsageError on anything else."""
    urls = os.environ.get("CIFARCTL_MIRRORS", "").replace(",", " ").split()
    for url in urls:
        if not is_url(url):
            raise UsageError(f"CIFARCTL_MIRRORS: {url}: no http or https URL")
    return urls


def fetch(
    urls: Sequence[str], partial: Partial, sha256: str, size: int | None
) -> Generator[Chosen | Progress | Failed, None, str | None]:
    """Complete `partial` from `urls`, which should all give the file whose SHA-256 is `sha256`.

    size: the file's, where it is known beforehand. Returns the URL that gave most of it, or None where no mirror is
    left; then `partial` holds what a later run can go on with. Raises DataError where the disk cannot hold it,
    DownloadError where the environment names certificates that cannot be read, OSError where `partial` cannot be
    written.
    """
    competition = _Competition(
        [Mirror(url) for url in dict.fromkeys(urls)],
        partial,
        sha256,
        size,
        {_EARLIER: partial.size} if partial.size else {},
    )
    if size is not None:
        competition.set_total(size)
    context = make_ssl_context()
    while competition.mirrors:
        if partial.size != competition.total:
            yield from competition.hold_round(context)
        elif partial.sha256 != sha256:
            yield competition.drop_all()
        else:
            given = competition.given
            return max(given, key=lambda source: (source != _EARLIER, given[source]))
        if not competition.mirrors and competition.aside:
            competition.start_over()
    return None


@dataclass
class _Round:
    """One competition. joined: when the last contestant did. won: when the winner had won."""

    waiting: deque[Mirror]
    live: dict[Connection, Contestant] = field(default_factory=dict)
    queue: "Queue[tuple[Connection, Message]]" = field(default_factory=lambda: Queue(maxsize=64))
    winner: Contestant | None = None
    joined: float = 0.0
    won: float = 0.0


@dataclass
class _Competition:
    """mirrors: those that are still in. given: who gave the bytes in `partial`, and how many.

    aside: mirrors whose file has another size than the first one's, where nobody knows the right one.
    alone: after a wrong digest whose author is not known, each mirror has to give the whole file by itself.
    """

    mirrors: list[Mirror]
    partial: Partial
    sha256: str
    known_size: int | None
    given: dict[str, int]
    total: int | None = None
    aside: list[Mirror] = field(default_factory=list)
    alone: bool = False

    def set_total(self, total: int) -> None:
        """The file's size is known now. Raises DataError where the disk cannot hold it and what is made of it."""
        self.total = total
        if self.partial.size > total:
            self._forget()
        require_room(self.partial.path.parent, int(total - self.partial.size + _DATA_FILE_RATIO * total))

    def hold_round(self, context: SSLContext) -> Iterator[Chosen | Progress | Failed]:
        """Start the best few, keep the fastest, and take its bytes until the file is complete or it fails."""
        before, reported = self.partial.size, 0.0
        race = _Round(waiting=deque(self._line_up()))
        try:
            while race.live or (race.waiting and race.winner is None):
                if race.winner is None:
                    self._admit(race, context, time.monotonic())
                if (winner := race.winner) and winner.chunks:
                    if winner.position - winner.base == winner.received:  # its first ones
                        yield Chosen(winner.mirror.url, self.partial.size)
                    self._keep(winner)
                if winner and winner.ended:
                    self.total = self.partial.size if self.total is None else self.total
                    return
                yield from self._listen(race)
                now = time.monotonic()
                if race.live and now - reported > _REPORT_SECONDS:
                    reported = now
                    leader = max(race.live.values(), key=lambda contestant: contestant.position)
                    yield Progress(leader.mirror.url, leader.position, self.total or 0, leader.recent_speed(now))
                if winner and now - race.won > _STALL_SECONDS and self._is_slow(winner, now):
                    return
        finally:
            for contestant in race.live.values():
                contestant.connection.stop()
        if self.partial.size == before and self.mirrors:
            time.sleep(_PAUSE_SECONDS)

    def drop_all(self) -> Failed:
        """Drop the bytes, whose digest is wrong, and the mirror if they all came from one."""
        sources, found = list(self.given), self.partial.sha256
        self.start_over()
        if len(sources) > 1 or sources == [_EARLIER]:
            self.alone = True
            # The ones that had no part in it are likelier to be good.
            self.mirrors.sort(key=lambda mirror: mirror.url in sources)
            together = f"the SHA-256 of what they gave is {found}, expected {self.sha256}"
            return Failed(" and ".join(sources), f"{together}: dropped")
        self.mirrors = [mirror for mirror in self.mirrors if mirror.url != sources[0]]
        return Failed(sources[0], f"its SHA-256 is {found}, expected {self.sha256}")

    def start_over(self) -> None:
        """Drop the bytes, and what was believed of the file's size."""
        self._forget()
        self.mirrors += self.aside
        self.aside, self.total = [], self.known_size

    def _line_up(self) -> list[Mirror]:
        """The mirrors for the next round, the best first."""
        if self.alone:
            mirror = next((mirror for mirror in self.mirrors if mirror.url in self.given), self.mirrors[0])
            if set(self.given) - {mirror.url}:
                self._forget()
            return [mirror]
        return sorted(self.mirrors, key=lambda mirror: (mirror.barren, -mirror.speed))

    def _admit(self, race: _Round, context: SSLContext, now: float) -> None:
        """Start the contestants whose turn it is, and end the competition where one has won."""
        while race.waiting and (len(race.live) < _WIDTH or now - race.joined >= _JOIN_SECONDS):
            mirror, place = race.waiting.popleft(), self.partial.size
            connection = Connection(mirror.url, place, context, race.queue)
            race.live[connection] = Contestant(mirror, connection, place, place, now, now)
            race.joined = now
        race.winner = self._winner(list(race.live.values()), now - race.joined, final=not race.waiting)
        if race.winner:
            for contestant in race.live.values():
                contestant.mirror.speed = contestant.mean_speed(now)
                if contestant is not race.winner:
                    contestant.connection.stop()
            race.live, race.won = {race.winner.connection: race.winner}, now

    def _listen(self, race: _Round) -> Iterator[Failed]:
        """Take in the next message, if one comes soon, and leave the contestants that failed or hang."""
        broken: list[tuple[Contestant, Broken]] = []
        with suppress(Empty):
            connection, message = race.queue.get(timeout=_LISTEN_SECONDS)
            if speaker := race.live.get(connection):  # not one that has lost
                broken += [(speaker, reason)] if (reason := self._hear(speaker, message)) else []
        now = time.monotonic()
        silence = Broken(f"it has sent nothing for {_STALL_SECONDS:.0f} seconds", final=False)
        broken += [(c, silence) for c in race.live.values() if c.opened and now - c.heard > _STALL_SECONDS]
        for contestant, reason in broken:
            contestant.connection.stop()
            del race.live[contestant.connection]
            yield self._leave(contestant, reason, rivals=list(race.live.values()))

    def _winner(self, contestants: list[Contestant], since_last: float, *, final: bool) -> Contestant | None:
        """The contestant that has won by now. final: no other one will join."""
        if final and len(contestants) == 1:
            return contestants[0]
        missing = _MAX_BYTES if self.total is None else self.total - self.partial.size
        for contestant in contestants:
            if contestant.ended or contestant.received >= min(_RACE_BYTES, missing // 8 + 1):
                return contestant
        if final and since_last > _RACE_SECONDS:
            best = max(contestants, key=lambda contestant: contestant.received, default=None)
            return best if best and best.received else None
        return None

    def _hear(self, speaker: Contestant, message: Message) -> Broken | None:
        """Take in one message. Returns why the contestant is out, if it is."""
        speaker.heard = time.monotonic()
        match message:
            case Broken():
                return message
            case Opened(total):
                speaker.opened = True
                if total is not None:
                    return self._check_total(speaker.mirror, total)
            case Ended():
                if not speaker.received and self.partial.size != self.total:
                    return Broken("it sends nothing", final=False)
                speaker.ended = True
            case bytes() if message:
                speaker.chunks.append(message)
                speaker.received += len(message)
                speaker.position += len(message)
                speaker.samples.append((speaker.heard, len(message)))
                if speaker.position > (self.total or _MAX_BYTES):
                    return Broken(f"it sends more than {self.total or _MAX_BYTES:,} bytes", final=True)
        return None

    def _check_total(self, mirror: Mirror, total: int) -> Broken | None:
        if not 0 < total <= _MAX_BYTES:
            return Broken(f"its file has {total:,} bytes", final=True)
        if self.total is None:
            self.set_total(total)
        elif total != self.total:
            if self.known_size is None:
                self.aside.append(mirror)
            return Broken(f"its file has {total:,} bytes, expected {self.total:,}", final=True)
        return None

    def _keep(self, contestant: Contestant) -> None:
        """Put the contestant's bytes into the file, as far as they are not there."""
        data = b"".join(contestant.chunks)
        new = data[self.partial.size - contestant.base :]
        if new:
            self.partial.append(new)
            self.given[contestant.mirror.url] = self.given.get(contestant.mirror.url, 0) + len(new)
        contestant.base = contestant.position
        contestant.chunks.clear()

    def _leave(self, contestant: Contestant, broken: Broken, rivals: list[Contestant]) -> Failed:
        """Go on without the contestant. What it brought is kept where no other one has as much."""
        mirror = contestant.mirror
        if not broken.final and all(contestant.position > rival.position for rival in rivals):
            self._keep(contestant)
        mirror.barren = 0 if contestant.received else mirror.barren + 1
        if broken.final or mirror.barren >= _BARREN_CONNECTIONS:
            self.mirrors.remove(mirror)
        return Failed(mirror.url, broken.reason)

    def _is_slow(self, winner: Contestant, now: float) -> bool:
        """True where another mirror has shown twice the winner's speed."""
        winner.mirror.speed = winner.recent_speed(now)
        rivals = [mirror.speed for mirror in self.mirrors if mirror is not winner.mirror and not mirror.barren]
        return not self.alone and max(rivals, default=0.0) > 2 * winner.mirror.speed

    def _forget(self) -> None:
        self.partial.reset()
        self.given.clear()
