"""`cifarctl download`, and the download that other commands start if data is missing."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cifarctl.cli import options as opt
from cifarctl.cli.output import Output
from cifarctl.cli.transfer import follow
from cifarctl.distributed import process_number
from cifarctl.errors import DataError, UsageError

if TYPE_CHECKING:
    from cifarctl.data import Source


def download(
    data: Annotated[
        Literal["cifar10", "cifar100"], typer.Option(help="Which data set.", rich_help_panel=opt.DATA_PANEL)
    ] = "cifar10",
    data_dir: opt.DataDir = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="URL|FILE|DIR",
            help="Take the archive from here, not from the known mirrors and those in CIFARCTL_MIRRORS. Of several "
            "URLs, the fastest is used. DIR contains the archive, or is its unpacked folder or that folder's parent.",
            rich_help_panel=opt.DATA_PANEL,
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(
            metavar="HEX",
            help="SHA-256 that the archive of --from must have. Default: the official one.",
            rich_help_panel=opt.DATA_PANEL,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", metavar="", help="Replace an existing data file.", rich_help_panel=opt.DATA_PANEL),
    ] = False,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            metavar="",
            help="Never use the network: use a copy on this machine.",
            rich_help_panel=opt.DATA_PANEL,
        ),
    ] = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Download and verify a data set, into one file that opens in milliseconds.

    A copy that another tool has left in its usual place is used if there is one; otherwise the fastest mirror. An
    interrupted download continues where it stopped. The SHA-256 is checked before anything is read, and nothing is
    extracted.

    Examples:
      cifarctl download
      cifarctl download --from cifar-10-python.tar.gz
    """
    if process_number():  # under torchrun the first process does everything
        return
    from cifarctl.data import Source
    from cifarctl.data.archive import ARCHIVES
    from cifarctl.data.data_file import archive_digest
    from cifarctl.data.download import Installed, common_places, install, is_url, official_sources

    archive = ARCHIVES[data]
    wanted = (sha256 or archive.sha256).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise UsageError(f"--sha256 {sha256}: not 64 hexadecimal digits")
    if sha256 and not source:
        raise UsageError("--sha256: there is no --from whose digest it could be")
    urls = [each for each in source or () if is_url(each)]
    if offline and source and len(urls) == len(source):
        raise UsageError("--offline: --from names URLs only", hint="--from FILE or DIR")
    output = Output(json=json, quiet=quiet)
    path = Source(data, folder=data_dir).path
    result: dict[str, Any] = {"data": data, "path": str(path)}
    if path.exists() and not force:
        found = archive_digest(path)
        if sha256 and found != wanted:
            raise DataError(
                f"{path}: is there already, made from the archive with SHA-256 {found}", hint="--force replaces it"
            )
        result |= {"downloaded": False, "sha256": found}
        note = (
            "" if found == archive.sha256 else f", made from an archive that is not the official one (SHA-256 {found})"
        )
        output.result(result, lambda: f"{path} is there already{note}")
        return
    sources = [each for each in source or official_sources(archive) if not (offline and is_url(each))]
    places = () if source else common_places(path.parent)
    event = follow(install(archive, sources, wanted, path, places=places, replace=force), archive.name, output)
    if not isinstance(event, Installed):
        result |= {"downloaded": False, "sha256": event.sha256}
        output.result(result, lambda: f"{path}: ready, made by another process")
        return
    result |= {
        "downloaded": True,
        "source": event.source,
        "bytes": event.size,
        "seconds": round(event.seconds, 2),
        "sha256": event.sha256,
    }
    output.result(result, lambda: f"{path}: ready, {event.size:,} bytes from {event.source}, verified")


def ensure_data(source: "Source", output: Output, *, offline: bool) -> None:
    """Download the data set if it is an archive and missing. Raises DataError if that fails, or with `offline`."""
    from cifarctl.data.archive import ARCHIVES

    if not source.is_archive or source.path.exists():
        return
    if offline:
        raise DataError(f"{source.path}: no such file, and --offline", hint=f"cifarctl download --data {source.name}")
    from cifarctl.data.download import install_official

    output.status(f"{source.name} is not in {source.path.parent}: getting it")
    archive = ARCHIVES[source.name]
    follow(install_official(archive, source.path), archive.name, output)
