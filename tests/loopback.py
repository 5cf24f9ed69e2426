"""Real HTTP servers on loopback that behave like good and bad mirrors, and count what they send."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from typing import Literal
from urllib.parse import urlsplit

_CHUNK = 1 << 16


@dataclass
class Mirror:
    """How one path of the server behaves, and what it has done.

    rate: bytes a second, and a hundredth of it from the place slows_at on.
    stalls_at, breaks_at: the place in the file at which it sends no more, or hangs up. breaks: how often it does so.
    ranges: it knows the Range header. says_length: it tells the size. waits: seconds before it answers.
    drips: it never ends, with a byte of a header or of the body every 50 ms, or with `100 Continue` at full speed.
    offsets: of the requests so far. sent: bytes of bodies so far. users: the Authorization headers so far.
    """

    content: bytes = b""
    status: int = 200
    content_type: str = "application/gzip"
    location: str = ""
    rate: float = 0.0
    slows_at: int = 1 << 60
    stalls_at: int = 1 << 60
    breaks_at: int = 1 << 60
    breaks: int = 1
    ranges: bool = True
    says_length: bool = True
    waits: float = 0.0
    drips: Literal["", "header", "continue", "body"] = ""
    offsets: list[int] = field(default_factory=list)
    sent: int = 0
    users: list[str] = field(default_factory=list)


class _Server(ThreadingHTTPServer):
    """Serves `mirrors` by path until `stopping`."""

    def __init__(self, mirrors: Mapping[str, Mirror]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mirrors, self.stopping = mirrors, threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        mirror = self.server.mirrors[urlsplit(self.path).path]  # a proxy is asked for whole URLs
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and mirror.ranges else 0
        mirror.offsets.append(start)
        mirror.users.append(self.headers.get("Authorization", ""))
        self.server.stopping.wait(mirror.waits)
        with suppress(OSError):  # the client has left
            if mirror.drips in ("header", "continue"):
                self.drip(mirror.drips)
            else:
                self.send_head(mirror, start)
                self.send_body(mirror, start)

    def send_head(self, mirror: Mirror, start: int) -> None:
        size = len(mirror.content)
        status = mirror.status
        if start:
            status = 206 if start < size else 416
        self.send_response(status)
        self.send_header("Content-Type", mirror.content_type)
        if mirror.location:
            self.send_header("Location", mirror.location)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{size}")
        if mirror.says_length:
            self.send_header("Content-Length", str(max(0, size - start)))
        self.end_headers()

    def drip(self, kind: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Filler: " if kind == "header" else b"")
        while not self.server.stopping.wait(0.05 if kind == "header" else 0):
            self.wfile.write(b"a" if kind == "header" else b"HTTP/1.1 100 Continue\r\n\r\n")

    def send_body(self, mirror: Mirror, start: int) -> None:
        stopping, began, body = self.server.stopping, time.monotonic(), memoryview(mirror.content)
        # Small pieces from a slow server, or its speed would be that of the first one.
        piece = 1 if mirror.drips else min(_CHUNK, int(mirror.rate / 20) or _CHUNK)
        for place in range(start, len(body), piece):
            end = min(place + piece, len(body), mirror.stalls_at, mirror.breaks_at if mirror.breaks else len(body))
            if end > place:
                self.wfile.write(body[place:end])
                mirror.sent += end - place
            if end == mirror.stalls_at:
                stopping.wait()
            if stopping.is_set():
                return
            if mirror.breaks and end == mirror.breaks_at:
                mirror.breaks -= 1
                return
            if mirror.drips:
                stopping.wait(0.05)
            if mirror.rate:
                seconds = (min(end, mirror.slows_at) - start + 100 * max(0, end - mirror.slows_at)) / mirror.rate
                stopping.wait(max(0.0, began + seconds - time.monotonic()))

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(mirrors: Mapping[str, Mirror], tls: SSLContext | None = None) -> Iterator[str]:
    """Serve each mirror at its path, over HTTPS where `tls` has a certificate. Yields the server's URL."""
    server = _Server(mirrors)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
