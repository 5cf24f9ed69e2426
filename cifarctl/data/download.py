"""From a source of an archive to a verified data file. Yields its progress and prints nothing."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cifarctl.data.archive import Archive, read_archive, sha256_of
from cifarctl.data.cache import write_cache
from cifarctl.errors import DataError, DownloadError

# A server that sends nothing for so long is given up for the next one.
_STALL_SECONDS = 15.0
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Progress:
    """Bytes received so far from one source. total: 0 where the server does not say."""

    source: str
    received: int
    total: int


@dataclass(frozen=True)
class Failed:
    """One source was given up; the next one follows, if there is one."""

    source: str
    reason: str


@dataclass(frozen=True)
class Installed:
    """The data file is in place. size: the archive's, in bytes. seconds: fetching, verifying and converting."""

    path: Path
    source: str
    size: int
    sha256: str
    seconds: float


def install(
    archive: Archive, sources: Sequence[str], sha256: str, path: Path
) -> Iterator[Progress | Failed | Installed]:
    """Make the data file `path` from the first of `sources` (URLs or paths) whose SHA-256 is `sha256`.

    The last event is Installed. Bytes that do not verify are dropped unread. Raises DataError where the only source is
    no such archive, DownloadError where none of several is, OSError where `path` cannot be written.
    """
    started = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    failures: list[DataError] = []
    for source in sources:
        # Beside the data file, since /tmp may be small; gone afterwards, whatever happens.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
            try:
                if is_url(source):
                    file = Path(folder, "archive.tar.gz")
                    yield from _fetch(source, file)
                else:
                    file = Path(source)
                _verify(file, sha256, source)
                train, test = read_archive(archive, file)
            except DataError as error:
                failures.append(error)
                yield Failed(source, str(error))
                continue
            size = file.stat().st_size
            write_cache(path, train, test, sha256)
        yield Installed(path, source, size, sha256, time.perf_counter() - started)
        return
    if len(failures) == 1:
        raise failures[0]
    raise DownloadError(
        f"none of {len(sources)} sources gave the {archive.name} archive; the last: {failures[-1]}",
        hint="--from URL or FILE names another one",
    )


def is_url(source: str) -> bool:
    """True for what is fetched, false for what is a path."""
    return urlsplit(source).scheme in ("http", "https")


def _fetch(url: str, file: Path) -> Iterator[Progress]:
    """Stream `url` into `file`. Proxies and certificates are taken from the environment. Raises DownloadError."""
    import httpx

    try:
        with (
            file.open("wb") as target,
            httpx.stream("GET", url, follow_redirects=True, timeout=_STALL_SECONDS) as response,
        ):
            response.raise_for_status()
            total, received = int(response.headers.get("Content-Length", 0)), 0
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                target.write(chunk)
                received += len(chunk)
                yield Progress(url, received, total)
    except httpx.HTTPStatusError as error:
        raise DownloadError(f"{url}: the server answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadError(f"{url}: {str(error) or type(error).__name__}") from None


def _verify(file: Path, sha256: str, source: str) -> None:
    try:
        found = sha256_of(file)
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}") from None
    if found != sha256:
        raise DataError(
            f"{source}: its SHA-256 is {found}, expected {sha256}",
            hint=None if is_url(source) else "if you trust this file, name its digest with --sha256",
        )
