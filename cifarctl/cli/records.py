"""The one table of formats for many records, written one after another: a new format needs its entry alone."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cifarctl.cli.output import make_console, write_line
from cifarctl.errors import UsageError
from cifarctl.files import atomic_path
from cifarctl.names import printable, spreadsheet_cell

if TYPE_CHECKING:
    from rich.console import Console

Record = dict[str, Any]
Writer = Callable[[Iterable[Record]], None]
DEFAULT_FORMAT = "jsonl"
UNKNOWN = "unknown"  # in tables, the label of an image that was rejected
UNUSUAL = 0.05  # typicality below which a table marks an image


@dataclass(frozen=True)
class Format:
    """suffixes: of the files that get this format by their names. open: from a stream, and the number of classes that
    each record ranks, to a function that writes records to that stream.
    """

    open: Callable[[IO[str], int], AbstractContextManager[Writer]]
    suffixes: tuple[str, ...] = ()


def check_format(name: str) -> str:
    """Raise UsageError, which names the formats that there are, unless this is one of them."""
    if name not in FORMATS:
        raise UsageError(f"--format {name}: no such format", hint=f"one of: {', '.join(FORMATS)}")
    return name


def format_of(out: Path) -> str:
    """The format of a file by its suffix, and `DEFAULT_FORMAT` without one. Raises UsageError on an unknown suffix."""
    if not (suffix := out.suffix.lower()):
        return DEFAULT_FORMAT
    known = {each: name for name, format in FORMATS.items() for each in format.suffixes}
    if suffix not in known:
        raise UsageError(
            f"--out {out}: no format has the suffix {suffix}",
            hint=f"one of: {', '.join(known)}; or any name with --format {'|'.join(FORMATS)}",
        )
    return known[suffix]


@contextmanager
def open_writer(format: str, out: Path | None, top_k: int) -> Iterator[Writer]:
    """A function that writes records to `out`, atomically, or to stdout: as many at a time as there are, since flushing
    each would let all threads that wait for Python's lock go first. Raises OSError.
    """
    if out is None:
        with FORMATS[format].open(sys.stdout, top_k) as write:
            yield write
        return
    with (
        atomic_path(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
        FORMATS[format].open(stream, top_k) as write,
    ):
        yield write


def _table(stream: IO[str], top_k: int) -> AbstractContextManager[Writer]:  # noqa: ARG001 (a line shows all classes)
    console = make_console(stream)
    return nullcontext(_lines(lambda record: _table_line(record, console), stream))


@contextmanager
def _json_array(stream: IO[str], top_k: int) -> Iterator[Writer]:  # noqa: ARG001
    # One array, written as it grows: memory does not.
    separators = chain(["[\n  "], repeat(",\n  "))
    yield _lines(lambda record: next(separators) + json.dumps(record), stream, end="")
    write_line("[]" if next(separators).startswith("[") else "\n]", stream)


def _separated(delimiter: str) -> Callable[[IO[str], int], AbstractContextManager[Writer]]:
    """Columns between delimiters, below a header."""

    @contextmanager
    def open_columns(stream: IO[str], top_k: int) -> Iterator[Writer]:
        write_line(_columns(_header(top_k), delimiter), stream)
        yield _lines(lambda record: _columns(_cells(record, top_k), delimiter), stream)

    return open_columns


def _lines(line: Callable[[Record], str], stream: IO[str], end: str = "\n") -> Writer:
    return lambda records: write_line("".join(line(record) + end for record in records), stream, end="")


def _header(top_k: int) -> list[str]:
    more = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "confidence")]
    return ["path", "label", "confidence", *more, "error", "typicality"]  # last, so that the others keep their places


def _cells(record: Record, top_k: int) -> list[Any]:
    ranked = record.get("top") or [{"label": "", "confidence": ""}] * top_k
    cells = [cell for entry in ranked for cell in (entry["label"], entry["confidence"])]
    if "top" in record and record["label"] is None:
        cells[:2] = UNKNOWN, ""  # the confidence would be that of a class which is not named
    return [record["path"], *cells, record.get("error", ""), record.get("typicality")]


def _columns(cells: list[Any], delimiter: str) -> str:
    row = io.StringIO()
    safe = [spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    if delimiter == "\t":  # a line per record, and `cut` finds the columns: no quotes, as TSV has none
        return delimiter.join("" if cell is None else _escaped(str(cell)) for cell in safe)
    # Python 3.11 leaves a carriage return without quotes, and readers take it for the end of a row.
    has_return = any("\r" in str(cell) for cell in safe)
    csv.writer(
        row,
        delimiter=delimiter,
        lineterminator="\n",
        quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL,
    ).writerow(safe)
    return row.getvalue().removesuffix("\n")


def _escaped(text: str) -> str:
    r"""Line breaks, tabs and other control characters as `\n`, `\t` or `\x1c`; a backslash as `\\`."""
    return "".join(
        each if each.isprintable() and each != "\\" else each.encode("unicode_escape").decode("ascii") for each in text
    )


def _table_line(record: Record, console: "Console") -> str:
    """A row of fixed columns. A real table would have to wait for the last record before it knew its widths."""
    from rich.text import Text

    line = Text()
    if "error" in record:
        line.append(f"{'error':<20}", style="red")
        line.append(f"  {printable(record['path'])}: {printable(record['error'])}")
    else:
        first, *rest = record["top"]
        line.append(f"{printable(record['label'] or UNKNOWN):<12}", style="bold")
        # A rejected image has no confidence in `unknown`; those of the classes follow its path.
        confidence = "" if record["label"] is None else f"{first['confidence']:.1%}"
        line.append(f"{confidence:>7}", style="green" if first["confidence"] > 0.5 else "yellow")
        line.append(f" {'*' if is_unusual(record) else ' '} {printable(record['path'])}")
        for entry in [first, *rest] if record["label"] is None else rest:
            line.append(f"  {printable(entry['label'])} {entry['confidence']:.1%}", style="dim")
    with console.capture() as capture:
        console.print(line, soft_wrap=True)
    return capture.get().rstrip("\n")


def is_unusual(record: Record) -> bool:
    """Whether a table marks the image."""
    typicality = record.get("typicality")
    return typicality is not None and typicality < UNUSUAL


FORMATS = {
    "table": Format(_table),
    "jsonl": Format(lambda stream, _: nullcontext(_lines(json.dumps, stream)), (".jsonl", ".ndjson")),
    "json": Format(_json_array, (".json",)),
    "csv": Format(_separated(","), (".csv",)),
    "tsv": Format(_separated("\t"), (".tsv",)),
}
