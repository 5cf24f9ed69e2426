"""One connection to one mirror: a request from a byte on, its answer checked, and its bytes in order.

A connection runs in a thread and puts what it gets into a queue, so that several can be watched at once and one that
hangs can be left.
"""

import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Full, Queue
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

from cifarctl.errors import DownloadError
from cifarctl.version import __version__

if TYPE_CHECKING:
    import httpx

# For connecting and for each read. A mirror that drips is left by whoever watches the queue.
_TIMEOUT_SECONDS = 15.0
_MAX_REDIRECTS = 6
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Opened:
    """The server answered, with a file of `total` bytes (None: it did not say)."""

    total: int | None


@dataclass(frozen=True)
class Repeated:
    """So many bytes came that are there already: the server knows no ranges, and sends the file from its beginning."""

    size: int


@dataclass(frozen=True)
class Ended:
    """The server has sent all that it has."""


@dataclass(frozen=True)
class Broken:
    """The connection is over. final: the answer was no such file, so that asking again is of no use."""

    reason: str
    final: bool


Message = Opened | bytes | Repeated | Ended | Broken
_Trace = Callable[[str, Mapping[str, Any]], None]


class _Refused(Exception):  # noqa: N818 (it is an answer)
    """What the server answers is not the archive."""


class Connection:
    """A running request for `url` from byte `offset` on.

    Its messages come on `queue` as (connection, message): Opened, bytes or Repeated, and at last Ended or Broken.
    """

    def __init__(self, url: str, offset: int, context: SSLContext, queue: "Queue[tuple[Connection, Message]]") -> None:
        self._url, self._offset, self._context, self._queue = url, offset, context, queue
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._asked = False
        # A daemon, since a read that hangs must not keep the program from ending.
        threading.Thread(target=self._run, daemon=True, name="download").start()

    def stop(self) -> None:
        """Want no more of it. The thread ends soon, and nobody waits for it."""
        self._stopped.set()
        if self._socket is not None and self._asked:  # or a server that drips would keep the thread in its read
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not TLS's own, which would wait

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Learn the socket, and when the request is sent. httpcore calls this at each step."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
        elif event.endswith("send_request_headers.complete"):
            self._asked = True
            if self._stopped.is_set():
                self.stop()

    def _run(self) -> None:
        import httpx

        last: Message = Ended()
        try:
            for message in _stream(self._url, self._offset, self._context, self._trace):
                if not self._put(message):
                    return
        except _Refused as error:
            last = Broken(str(error), final=True)
        except httpx.InvalidURL:  # whose text may hold a piece of a password
            last = Broken("it is no valid web address", final=True)
        except httpx.UnsupportedProtocol as error:
            last = Broken(f"it leads to no web address ({error})", final=True)
        except httpx.TooManyRedirects:
            last = Broken(f"it redirects more than {_MAX_REDIRECTS} times", final=True)
        except httpx.TimeoutException:
            last = Broken(f"no answer for {_TIMEOUT_SECONDS:.0f} seconds", final=False)
        except Exception as error:  # whatever a socket, a proxy or a certificate can do; the others go on
            last = Broken(str(error) or type(error).__name__, final=False)
        self._put(last)

    def _put(self, message: Message) -> bool:
        """True where the message was wanted."""
        while not self._stopped.is_set():
            try:
                self._queue.put((self, message), timeout=0.2)
                return True
            except Full:
                continue
        return False


def make_ssl_context() -> SSLContext:
    """The certificates that all connections trust: $SSL_CERT_FILE or $SSL_CERT_DIR, else the usual ones.

    Raises DownloadError where these name no certificates.
    """
    import httpx

    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise DownloadError(
            f"the certificates cannot be read: {error.strerror or error}", hint="see SSL_CERT_FILE and SSL_CERT_DIR"
        ) from None


def _stream(url: str, offset: int, context: SSLContext, trace: _Trace) -> Iterator[Message]:
    """Opened, then the file's bytes from `offset` on. Proxies are those of the environment."""
    import httpx

    # The bytes of the file and no others: some servers take a .gz for a page that they have compressed.
    headers = {"User-Agent": f"cifarctl/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    address = httpx.URL(url)
    user = (address.username, address.password) if address.userinfo else None
    address = address.copy_with(userinfo=b"")  # httpx logs it
    with (
        httpx.Client(
            verify=context, timeout=_TIMEOUT_SECONDS, follow_redirects=True, max_redirects=_MAX_REDIRECTS
        ) as client,
        client.stream("GET", address, headers=headers, auth=user, extensions={"trace": trace}) as response,
    ):
        start, total = _place(response, offset)
        if start != 0:
            yield Opened(total)
        if start is None:
            return
        for chunk in response.iter_raw():
            if start == 0 and chunk:
                if not _GZIP_MAGIC.startswith(chunk[:2]):
                    raise _Refused("what it sends is no .tar.gz archive")
                # Only now, since what a web page says of its size is not the archive's.
                yield Opened(total)
            yield chunk[max(0, offset - start) :] or Repeated(len(chunk))
            start += len(chunk)


def _place(response: "httpx.Response", offset: int) -> tuple[int | None, int | None]:
    """Which byte of the file the body starts with (None: it has none from `offset` on), and the file's size."""
    status, headers = response.status_code, response.headers
    content_range = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    start, total = content_range.groups() if content_range else (None, None)
    size = int(total) if total and total != "*" else None
    if status == 416 and size is not None:
        return None, size
    if status == 206:
        if start is None or int(start) != offset:
            raise _Refused("it sends another range than the one that was asked for")
        return offset, size
    if status != 200:
        raise _Refused(f"the server answered {status}")
    if headers.get("Content-Type", "").lower().startswith("text/html"):
        raise _Refused("the server answered with a web page")
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None
