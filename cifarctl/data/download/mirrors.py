"""Download from the fastest mirror: the best few start together, the fastest wins, and if it fails, another continues.

In each round the mirrors send the same bytes, into memory, until it is clear which is the fastest. Only its bytes are
kept, so that nearly always one mirror is responsible for a wrong digest. The bytes of the others are at most a few
percent of the archive.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Queue
from ssl import SSLContext

from cifarctl.data.download.connection import Broken, Connection, Ended, Message, Opened, Repeated, make_ssl_context
from cifarctl.data.download.contestant import Contestant, Mirror, Patience
from cifarctl.data.download.events import Chosen, Failed, Progress
from cifarctl.data.download.partial import Partial, require_room
from cifarctl.data.download.urls import redact
from cifarctl.data.targz import MAX_BYTES

# This many mirrors start at once, and one more joins every second until one has won.
_INITIAL_MIRRORS = 3
_JOIN_SECONDS = 1.0
# A round is won by the first mirror that sends this many bytes, or an eighth of those that are missing; otherwise by
# the fastest after this time. TCP reaches full speed after about this many bytes on a fast line.
_RACE_BYTES = 8 << 20
_RACE_SECONDS = 3.0
# After this time, the winner is abandoned if it has less than half the speed of another mirror.
_COMPARE_SECONDS = 5.0
# A mirror is given up after this many connections in a row that sent next to nothing.
_MAX_USELESS_CONNECTIONS = 2
_PAUSE_SECONDS = 1.0
_LISTEN_SECONDS = 0.25
_REPORT_SECONDS = 0.1
# The data file is a little larger than the archive.
_DATA_FILE_RATIO = 1.1
_EARLIER = "an earlier run"
_PATIENCE = Patience()


def fetch(
    urls: Sequence[str], partial: Partial, sha256: str, size: int | None, patience: Patience = _PATIENCE
) -> Generator[Chosen | Progress | Failed, None, str | None]:
    """Complete `partial` from `urls`, which should all give the file whose SHA-256 is `sha256`.

    size: of the file in bytes, if known. patience: when a mirror is abandoned. Returns the URL that gave most of the
    file, without secrets, or None if all mirrors have failed; a later run can then continue with `partial`. Raises
    DataError if the disk is too small, DownloadError if the environment names certificates that cannot be read, OSError
    if `partial` cannot be written.
    """
    competition = _Competition(
        [Mirror(url) for url in dict.fromkeys(urls)],
        partial,
        sha256,
        size,
        {_EARLIER: partial.size} if partial.size else {},
        patience,
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
            return redact(max(given, key=lambda source: (source != _EARLIER, given[source])))
        if not competition.mirrors and competition.other_sizes:
            competition.start_over()
    return None


@dataclass
class _Round:
    """One round of the competition. joined: when the last contestant joined. won: when the winner won."""

    waiting: deque[Mirror]
    live: dict[Connection, Contestant] = field(default_factory=dict)
    queue: "Queue[tuple[Connection, Message]]" = field(default_factory=lambda: Queue(maxsize=64))
    winner: Contestant | None = None
    joined: float = 0.0
    won: float = 0.0


@dataclass
class _Competition:
    """mirrors: those that have not failed. given: how many bytes of `partial` each source has given.

    other_sizes: mirrors whose file differs in size from the first one's, if the right size is not known.
    one_by_one: after a wrong digest of bytes from several mirrors, each mirror must send the whole file by itself.
    """

    mirrors: list[Mirror]
    partial: Partial
    sha256: str
    known_size: int | None
    given: dict[str, int]
    patience: Patience
    total: int | None = None
    other_sizes: list[Mirror] = field(default_factory=list)
    one_by_one: bool = False

    def set_total(self, total: int) -> None:
        """Set the file's size. Raises DataError if the disk is too small for it and the data file."""
        self.total = total
        if self.partial.size > total:
            self._forget()
        require_room(self.partial.path.parent, int(total - self.partial.size + _DATA_FILE_RATIO * total))

    def hold_round(self, context: SSLContext) -> Iterator[Chosen | Progress | Failed]:
        """Start the best few mirrors, choose the fastest, and store its bytes until it fails or all are there."""
        before, reported = self.partial.size, 0.0
        race = _Round(waiting=deque(self._line_up()))
        try:
            while race.live or (race.waiting and race.winner is None):
                if race.winner is None:
                    self._admit(race, context, time.monotonic())
                if (winner := race.winner) and winner.chunks:
                    if winner.position - winner.base == winner.received:  # its first bytes
                        yield Chosen(winner.mirror.shown, self.partial.size)
                    self._keep(winner)
                if winner and winner.ended:
                    self.total = self.partial.size if self.total is None else self.total
                    return
                yield from self._listen(race)
                now = time.monotonic()
                if race.live and now - reported > _REPORT_SECONDS:
                    reported = now
                    leader = max(race.live.values(), key=lambda contestant: contestant.position)
                    yield Progress(leader.mirror.shown, leader.position, self.total or 0, leader.recent_speed(now))
                if winner and now - race.won > _COMPARE_SECONDS and self._is_slow(winner, now):
                    return
        finally:
            for contestant in race.live.values():
                contestant.connection.stop()
        if self.partial.size == before and self.mirrors:
            time.sleep(_PAUSE_SECONDS)

    def drop_all(self) -> Failed:
        """Drop all bytes, since their digest is wrong, and the mirror if they all came from one."""
        sources, found = list(self.given), self.partial.sha256
        self.start_over()
        if len(sources) > 1 or sources == [_EARLIER]:
            self.one_by_one = True
            # Mirrors that sent none of these bytes are more likely to be good.
            self.mirrors.sort(key=lambda mirror: mirror.url in sources)
            together = f"the SHA-256 of what they gave is {found}, expected {self.sha256}"
            return Failed(" and ".join(map(redact, sources)), f"{together}: dropped")
        self.mirrors = [mirror for mirror in self.mirrors if mirror.url != sources[0]]
        return Failed(redact(sources[0]), f"its SHA-256 is {found}, expected {self.sha256}")

    def start_over(self) -> None:
        """Drop all bytes and the file's size, unless that was known beforehand, and use all mirrors again."""
        self._forget()
        self.mirrors += self.other_sizes
        self.other_sizes, self.total = [], self.known_size

    def _line_up(self) -> list[Mirror]:
        """The mirrors for the next round, the best first."""
        if self.one_by_one:
            mirror = next((mirror for mirror in self.mirrors if mirror.url in self.given), self.mirrors[0])
            if set(self.given) - {mirror.url}:
                self._forget()
            return [mirror]
        return sorted(self.mirrors, key=lambda mirror: (mirror.useless_connections, -mirror.speed))

    def _admit(self, race: _Round, context: SSLContext, now: float) -> None:
        """Start the contestants whose turn it is, and stop the others if one has won."""
        while race.waiting and (len(race.live) < _INITIAL_MIRRORS or now - race.joined >= _JOIN_SECONDS):
            mirror, offset = race.waiting.popleft(), self.partial.size
            connection = Connection(mirror.url, offset, context, race.queue)
            race.live[connection] = Contestant(mirror, connection, offset, offset, now, now)
            race.joined = now
        race.winner = self._winner(list(race.live.values()), now - race.joined, final=not race.waiting)
        if race.winner:
            for contestant in race.live.values():
                contestant.mirror.speed = contestant.mean_speed(now)
                if contestant is not race.winner:
                    contestant.connection.stop()
            race.live, race.won = {race.winner.connection: race.winner}, now

    def _listen(self, race: _Round) -> Iterator[Failed]:
        """Handle the next message, if one comes soon, and abandon contestants that have failed or hang."""
        broken: list[tuple[Contestant, Broken]] = []
        with suppress(Empty):
            connection, message = race.queue.get(timeout=_LISTEN_SECONDS)
            if sender := race.live.get(connection):  # None if it has lost already
                broken += [(sender, reason)] if (reason := self._handle(sender, message)) else []
        now = time.monotonic()
        is_last = len(self.mirrors) == 1
        for contestant in race.live.values():
            if not broken and (reason := contestant.find_fault(now, self.patience, is_last=is_last)):
                broken.append((contestant, reason))
        for contestant, reason in broken:
            contestant.connection.stop()
            del race.live[contestant.connection]
            yield self._abandon(contestant, reason, now, rivals=list(race.live.values()))

    def _winner(self, contestants: list[Contestant], since_last: float, *, final: bool) -> Contestant | None:
        """The contestant that has won, if one has. final: no other one will join."""
        if final and len(contestants) == 1:
            return contestants[0]
        missing = MAX_BYTES if self.total is None else self.total - self.partial.size
        for contestant in contestants:
            if contestant.ended or contestant.received >= min(_RACE_BYTES, missing // 8 + 1):
                return contestant
        if final and since_last > _RACE_SECONDS:
            best = max(contestants, key=lambda contestant: contestant.received, default=None)
            return best if best and not best.is_crawling(time.monotonic()) else None
        return None

    def _handle(self, sender: Contestant, message: Message) -> Broken | None:
        """Handle one message. Returns why the contestant has failed, if it has."""
        sender.heard = time.monotonic()
        match message:
            case Broken():
                return message
            case Opened(total):
                sender.opened, sender.checked = True, sender.heard
                if total is not None:
                    return self._check_total(sender.mirror, total)
            case Ended():
                if not sender.received and self.partial.size != self.total:
                    return Broken("it sends nothing", final=False)
                sender.ended = True
            case bytes():
                sender.chunks.append(message)
                sender.received += len(message)
                sender.arrived += len(message)
                sender.position += len(message)
                sender.samples.append((sender.heard, len(message)))
                if sender.position > (self.total or MAX_BYTES):
                    return Broken(f"it sends more than {self.total or MAX_BYTES:,} bytes", final=True)
            case Repeated(size):
                sender.arrived += size
        return None

    def _check_total(self, mirror: Mirror, total: int) -> Broken | None:
        if not 0 < total <= MAX_BYTES:
            return Broken(f"its file has {total:,} bytes", final=True)
        if self.total is None:
            self.set_total(total)
        elif total != self.total:
            if self.known_size is None:
                self.other_sizes.append(mirror)
            return Broken(f"its file has {total:,} bytes, expected {self.total:,}", final=True)
        return None

    def _keep(self, contestant: Contestant) -> None:
        """Append the contestant's new bytes to the file."""
        data = b"".join(contestant.chunks)
        new = data[self.partial.size - contestant.base :]
        if new:
            self.partial.append(new)
            self.given[contestant.mirror.url] = self.given.get(contestant.mirror.url, 0) + len(new)
        contestant.base = contestant.position
        contestant.chunks.clear()

    def _abandon(self, contestant: Contestant, broken: Broken, now: float, rivals: list[Contestant]) -> Failed:
        """Continue without the contestant. Its bytes are kept if no other one has as many."""
        mirror = contestant.mirror
        if not broken.final and all(contestant.position > rival.position for rival in rivals):
            self._keep(contestant)
        mirror.useless_connections = mirror.useless_connections + 1 if contestant.is_crawling(now) else 0
        if broken.final or mirror.useless_connections >= _MAX_USELESS_CONNECTIONS:
            self.mirrors.remove(mirror)
        return Failed(mirror.shown, broken.reason)

    def _is_slow(self, winner: Contestant, now: float) -> bool:
        """True if another mirror was more than twice as fast when it was last measured."""
        winner.mirror.speed = winner.recent_speed(now)
        rivals = [mirror for mirror in self.mirrors if mirror is not winner.mirror and not mirror.useless_connections]
        return not self.one_by_one and max((rival.speed for rival in rivals), default=0.0) > 2 * winner.mirror.speed

    def _forget(self) -> None:
        self.partial.reset()
        self.given.clear()
