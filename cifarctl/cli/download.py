"""`cifarctl download`, and the download that other commands start when data is missing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cifarctl.cli import options as opt
from cifarctl.cli.output import Output
from cifarctl.errors import DataError, UsageError

if TYPE_CHECKING:
    from cifarctl.data import Source
    from cifarctl.data.archive import Archive
    from cifarctl.data.download import Installed


def download(
    data: Annotated[
        Literal["cifar10", "cifar100"], typer.Option(help="Which data set.", rich_help_panel=opt.DATA_PANEL)
    ] = "cifar10",
    data_dir: opt.DataDir = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="URL|FILE",
            help="Take the archive from here instead of the known mirrors. Several are tried in order.",
            rich_help_panel=opt.DATA_PANEL,
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(
            metavar="HEX",
            help="The digest that --from's archive must have. Default: the official one.",
            rich_help_panel=opt.DATA_PANEL,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the data file if there is one.", rich_help_panel=opt.DATA_PANEL)
    ] = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Download and verify a data set, into one file that opens in milliseconds.

    The archive's SHA-256 is checked before anything in it is read, and nothing is extracted.

    Examples: [cyan]cifarctl download[/cyan], [cyan]cifarctl download --from cifar-10-python.tar.gz[/cyan]
    """
    from cifarctl.data import Source
    from cifarctl.data.archive import ARCHIVES
    from cifarctl.data.cache import archive_digest

    archive = ARCHIVES[data]
    wanted = (sha256 or archive.sha256).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise UsageError(f"--sha256 {sha256}: not 64 hexadecimal digits")
    if sha256 and not source:
        raise UsageError("--sha256: there is no --from whose digest it could be")
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
    installed = _install(archive, source or archive.urls, wanted, path, output)
    result |= {
        "downloaded": True,
        "source": installed.source,
        "bytes": installed.size,
        "seconds": round(installed.seconds, 2),
        "sha256": installed.sha256,
    }
    output.result(result, lambda: f"{path}: ready, {installed.size:,} bytes from {installed.source}, verified")


def ensure_data(source: "Source", output: Output, *, offline: bool) -> None:
    """Download the data set if it is an archive that is not there. Raises DataError with `offline`, as the download
    does otherwise.
    """
    from cifarctl.data.archive import ARCHIVES

    if not source.is_archive or source.path.exists():
        return
    if offline:
        raise DataError(f"{source.path}: no such file, and --offline", hint=f"cifarctl download --data {source.name}")
    output.status(f"{source.name} is not in {source.path.parent}: downloading it")
    archive = ARCHIVES[source.name]
    _install(archive, archive.urls, archive.sha256, source.path, output)


def _install(archive: "Archive", sources: Sequence[str], sha256: str, path: Path, output: Output) -> "Installed":
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from cifarctl.data.download import Failed, Installed, Progress, install

    with output.progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task("", total=None)
        announced = ""
        for event in install(archive, sources, sha256, path):
            match event:
                case Progress():
                    if announced != event.source:
                        announced = event.source
                        output.status(f"Downloading {event.source}")
                        bar.reset(task, description=archive.name)
                    bar.update(task, completed=event.received, total=event.total or None)
                case Failed():
                    if len(sources) > 1:
                        output.status(f"Gave up on a source: {event.reason}")
                case Installed():
                    return event
    raise AssertionError("install ends with Installed or an exception")
