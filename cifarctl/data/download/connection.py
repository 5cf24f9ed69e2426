"""One connection to one mirror: it requests the file from a given byte on, and checks the response.

A connection runs in a thread and puts messages into a queue, so that several can run at the same time, and one that
hangs can be abandoned.
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

# For connecting and for each read. The reader of the queue abandons a mirror that is too slow.
_TIMEOUT_SECONDS = 15.0
_MAX_REDIRECTS = 6
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Opened:
    """The server has answered, with a file of `total` bytes; None if it did not say."""

    total: int | None


@dataclass(frozen=True)
class Repeated:
    """`size` bytes came that are there already: the server ignores ranges, and sends the file from its beginning."""

    size: int


@dataclass(frozen=True)
class Ended:
    """The server has sent the last byte."""


@dataclass(frozen=True)
class Broken:
    """The connection has failed. final: the server does not have the file, so there is no use in asking again."""

    reason: str
    final: bool


Message = Opened | bytes | Repeated | Ended | Broken
_Trace = Callable[[str, Mapping[str, Any]], None]


class _Refused(Exception):  # noqa: N818 (it is an answer)
    """The server's response is not the archive."""


class Connection:
    """A running request for `url` from byte `offset` on.

    Its messages come on `queue` as (connection, message): Opened, bytes or Repeated, and at last Ended or Broken.
    """

    def __init__(self, url: str, offset: int, context: SSLContext, queue: "Queue[tuple[Connection, Message]]") -> None:
        self._url, self._offset, self._context, self._queue = url, offset, context, queue
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._request_sent = False
        # A daemon, since a read that hangs must not stop the program from ending.
        threading.Thread(target=self._run, daemon=True, name="download").start()

    def stop(self) -> None:
        """Stop the thread soon, without waiting for it."""
        self._stopped.set()
        if self._socket is not None and self._request_sent:  # else a slow server would keep the thread in its read
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not that of TLS, which would wait

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember the socket, and that the request was sent. httpcore calls this at each step."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
        elif event.endswith("send_request_headers.complete"):
            self._request_sent = True
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
        except httpx.InvalidURL:  # its text may contain part of a password
            last = Broken("it is no valid web address", final=True)
        except httpx.UnsupportedProtocol as error:
            last = Broken(f"it leads to no web address ({error})", final=True)
        except httpx.TooManyRedirects:
            last = Broken(f"it redirects more than {_MAX_REDIRECTS} times", final=True)
        except httpx.TimeoutException:
            last = Broken(f"no answer for {_TIMEOUT_SECONDS:.0f} seconds", final=False)
        except Exception as error:  # any failure of a socket, proxy or certificate; other connections continue
            last = Broken(str(error) or type(error).__name__, final=False)
        self._put(last)

    def _put(self, message: Message) -> bool:
        """Put the message into the queue. False if the connection was stopped first."""
        while not self._stopped.is_set():
            try:
                self._queue.put((self, message), timeout=0.2)
                return True
            except Full:
                continue
        return False


def make_ssl_context() -> SSLContext:
    """The certificates that all connections trust: those in $SSL_CERT_FILE or $SSL_CERT_DIR, else the usual ones.

    Raises DownloadError if these cannot be read.
    """
    import httpx

    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise DownloadError(
            f"the certificates cannot be read: {error.strerror or error}", hint="see SSL_CERT_FILE and SSL_CERT_DIR"
        ) from None


def _stream(url: str, offset: int, context: SSLContext, trace: _Trace) -> Iterator[Message]:
    """Yield Opened, then the file's bytes from `offset` on. Proxies are those of the environment."""
    import httpx

    # "identity", since some servers treat a .gz as a page that they have compressed themselves.
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
        start, total = _first_byte_and_size(response, offset)
        if start != 0:
            yield Opened(total)
        if start is None:
            return
        for chunk in response.iter_raw():
            if start == 0 and chunk:
                if not _GZIP_MAGIC.startswith(chunk[:2]):
                    raise _Refused("what it sends is no .tar.gz archive")
                # Only now, since before this check `total` could be the size of a web page.
                yield Opened(total)
            yield chunk[max(0, offset - start) :] or Repeated(len(chunk))
            start += len(chunk)


def _first_byte_and_size(response: "httpx.Response", offset: int) -> tuple[int | None, int | None]:
    """The position in the file of the body's first byte (None if `offset` is past the end), and the file's size."""
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
