"""Make the data file from an archive: one process at a time, verified, without leaving other files behind."""

import os
import stat
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cifarctl.data.archive import Archive, read_archive, read_batches, sha256_of
from cifarctl.data.data_file import archive_digest, write_data_file
from cifarctl.data.dataset import Dataset
from cifarctl.data.download.events import Event, Failed, Installed, Present, Waiting
from cifarctl.data.download.local import common_places, find_in, why_none
from cifarctl.data.download.mirrors import fetch
from cifarctl.data.download.partial import Partial
from cifarctl.data.download.urls import is_url, mirrors_from_environment
from cifarctl.data.targz import MAX_BYTES, find_fault
from cifarctl.errors import DataError, DownloadError

_Found = tuple[str, int, Dataset, Dataset]  # source, size in bytes, train, test


def install(
    archive: Archive,
    sources: Sequence[str],
    sha256: str,
    path: Path,
    *,
    places: Sequence[Path] = (),
    replace: bool = False,
) -> Iterator[Event]:
    """Make the data file `path` from the archive whose SHA-256 is `sha256`.

    sources: files and folders, which are tried first, and URLs, of which the fastest is used. places: folders that may
    contain a copy; problems with these are no failure. replace: whether to replace an existing data file.

    The last event is Installed, or Present if another process has made the file meanwhile. Bytes with a wrong digest
    are dropped unread. Raises DataError if the only source is no such archive or the folder cannot be written,
    DownloadError if none of several sources is such an archive, OSError if the disk fails.
    """
    started = time.perf_counter()
    before = _identity(path)
    lock = _lock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield Waiting(path)
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        raise DataError(
            f"{path.parent}: the data folder cannot be written: {error.strerror}",
            hint="`data_dir` DIR names another one",
        ) from None
    try:
        if path.exists() and (not replace or _identity(path) != before):
            found = archive_digest(path)
            if found == sha256:
                yield Present(path, found)
                return
            if not replace:
                raise DataError(f"{path}: another process has made it, from the archive with SHA-256 {found}")
        # Left by a killed process: nobody else writes this data file while the lock is held.
        for leftover in path.parent.glob(f".{path.stem}-*{path.suffix}"):
            leftover.unlink(missing_ok=True)
        source, size = yield from _make(archive, sources, sha256, path, places)
        yield Installed(path, source, size, sha256, time.perf_counter() - started)
    finally:
        # Removed while it is held: a process that waits for it notices that the file is gone, and starts again.
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def install_official(archive: Archive, path: Path) -> Iterator[Event]:
    """`install` the official archive, from a copy on this machine or the fastest mirror."""
    return install(archive, official_sources(archive), archive.sha256, path, places=common_places(path.parent))


def official_sources(archive: Archive) -> list[str]:
    """The URLs of the mirrors in CIFARCTL_MIRRORS and of the known ones."""
    return [*mirrors_from_environment(), *archive.urls]


def _lock(path: Path) -> FileLock:
    """The lock of the data file `path`, not acquired yet. Raises DataError if its folder cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path.parent}: the data folder cannot be made: {error.strerror}", hint="`data_dir` DIR names another one"
        ) from None
    # Other users of the folder must be able to open it too, in order to wait for it.
    return FileLock(path.with_name(f".{path.name}.lock"), mode=0o666)


def _make(
    archive: Archive, sources: Sequence[str], sha256: str, path: Path, places: Sequence[Path]
) -> Generator[Event, None, tuple[str, int]]:
    """Write the data file. Returns the source and its size in bytes."""
    partial = Partial(path, sha256)
    failures: list[Failed] = []
    try:
        found = yield from _read_local(archive, sources, sha256, places, failures)
        urls = [source for source in sources if is_url(source)]
        if found is None and urls:
            found = yield from _read_mirrors(archive, urls, sha256, partial, failures)
        if found is None:
            raise _explain(archive, sources, failures, partial)
        source, size, train, test = found
        write_data_file(path, train, test, sha256)
        partial.discard()
    except OSError:  # the disk is full or fails: remove what was written
        with suppress(OSError):
            partial.discard()
        raise
    finally:
        partial.close()
    return source, size


def _read_local(
    archive: Archive, sources: Sequence[str], sha256: str, places: Sequence[Path], failures: list[Failed]
) -> Generator[Failed, None, _Found | None]:
    """The first valid copy among the files, folders and places. Adds the sources that failed to `failures`."""
    for source in sources:
        if is_url(source):
            continue
        copies = list(find_in(archive, Path(source))) if Path(source).is_dir() else [Path(source)]
        if not copies:
            failures.append(Failed(source, why_none(archive, Path(source))))
            yield failures[-1]
        for copy in copies:
            try:
                return _read_copy(archive, copy, sha256)
            except DataError as error:
                failures.append(_failed(copy, error))
                yield failures[-1]
    for place in places:
        for copy in find_in(archive, place):
            try:
                return _read_copy(archive, copy, sha256)
            except DataError as error:
                yield _failed(copy, error)
    return None


def _failed(copy: Path, error: DataError) -> Failed:
    return Failed(str(copy), str(error).removeprefix(f"{copy}: ").removeprefix(f"{copy}{os.sep}"))


def _read_copy(archive: Archive, copy: Path, sha256: str) -> _Found:
    """Verify and read an archive or an unpacked folder. Raises DataError."""
    if copy.is_dir():
        if sha256 != archive.sha256:
            raise DataError(f"{copy}: an unpacked folder, which has no SHA-256: only the official one can be verified")
        size = sum((copy / member).stat().st_size for member in archive.members)
        return str(copy), size, *read_batches(archive, copy)
    try:
        status = copy.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{copy}: not a regular file")
        if size > MAX_BYTES:
            raise DataError(f"{copy}: {size:,} bytes, more than any CIFAR archive has")
        if (found := sha256_of(copy)) != sha256:
            fault = find_fault(copy, archive.size if sha256 == archive.sha256 else None)
            raise DataError(f"{copy}: {fault or f'its SHA-256 is {found}, expected {sha256}'}")
    except OSError as error:
        raise DataError(f"{copy}: {error.strerror}") from None
    return str(copy), size, *read_archive(archive, copy)


def _read_mirrors(
    archive: Archive, urls: Sequence[str], sha256: str, partial: Partial, failures: list[Failed]
) -> Generator[Event, None, _Found | None]:
    """Fetch the archive and read it. Adds the mirrors that failed to `failures`."""
    source = None
    events = fetch(urls, partial, sha256, archive.size if sha256 == archive.sha256 else None)
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            source = end.value
            break
        if isinstance(event, Failed):
            failures.append(event)
        yield event
    if source is None:
        return None
    try:
        return source, partial.size, *read_archive(archive, partial.path)
    except DataError as error:  # it has the requested digest, but is no such archive
        partial.discard()
        raise DataError(str(error).replace(str(partial.path), source)) from None


def _explain(archive: Archive, sources: Sequence[str], failures: list[Failed], partial: Partial) -> DataError:
    """The error for the case that no source gave the archive."""
    hint = "cifarctl download --from URL, FILE or DIR takes it from another source"
    if partial.size > 50_000:  # 0.1 MB
        hint = f"{partial.size / 1e6:,.1f} MB are kept: the same command goes on there"
    if not failures:
        return DownloadError(
            f"no copy of {archive.name} on this machine, and `offline`", hint="`from` FILE or DIR names one"
        )
    last = f"{failures[-1].source}: {failures[-1].reason}"
    if len(sources) > 1:
        return DownloadError(
            f"none of {len(sources)} sources gave the {archive.name} archive; the last: {last}", hint=hint
        )
    if Path(sources[0]).is_file() and "SHA-256" in last:
        hint = "if you trust this file, name its digest with `sha256`"
    return DataError(last, hint=hint)


def _identity(path: Path) -> tuple[int, int] | None:
    """A value that changes when the file is replaced; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
