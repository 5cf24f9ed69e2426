"""Many records, one after another, as a table, JSON Lines, JSON or CSV."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from cifarctl.cli.output import make_console, write_line
from cifarctl.files import atomic_path
from cifarctl.names import printable, spreadsheet_cell

Record = dict[str, Any]
Writer = Callable[[Iterable[Record]], None]


@contextmanager
def open_writer(format: str, out: Path | None, top_k: int) -> Iterator[Writer]:
    """A function that writes records to `out`, atomically, or to stdout: as many at a time as there are, since flushing
    each would let all threads that wait for Python's lock go first. Raises OSError.
    """
    if out is None:
        with _formatted(format, sys.stdout, top_k) as write:
            yield write
        return
    with (
        atomic_path(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
        _formatted(format, stream, top_k) as write,
    ):
        yield write


@contextmanager
def _formatted(format: str, stream: IO[str], top_k: int) -> Iterator[Writer]:
    if format == "jsonl":
        yield _lines(json.dumps, stream)
    elif format == "json":
        # One array, written as it grows: memory does not.
        separators = chain(["[\n  "], repeat(",\n  "))
        yield _lines(lambda record: next(separators) + json.dumps(record), stream, end="")
        write_line("[]" if next(separators).startswith("[") else "\n]", stream)
    elif format == "csv":
        write_line(_csv_row(_csv_header(top_k)), stream)
        yield _lines(lambda record: _csv_row(_csv_cells(record, top_k)), stream)
    else:
        console = make_console(stream)
        yield _lines(lambda record: _table_line(record, console), stream)


def _lines(line: Callable[[Record], str], stream: IO[str], end: str = "\n") -> Writer:
    return lambda records: write_line("".join(line(record) + end for record in records), stream, end="")


def _csv_header(top_k: int) -> list[str]:
    more = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "confidence")]
    return ["path", "label", "confidence", *more, "error"]


def _csv_cells(record: Record, top_k: int) -> list[Any]:
    ranked = record.get("top") or [{"label": "", "confidence": ""}] * top_k
    cells = [cell for entry in ranked for cell in (entry["label"], entry["confidence"])]
    return [record["path"], *cells, record.get("error", "")]


def _csv_row(cells: list[Any]) -> str:
    row = io.StringIO()
    safe = (spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in cells)
    csv.writer(row, lineterminator="\n").writerow(safe)
    return row.getvalue().removesuffix("\n")


def _table_line(record: Record, console: Console) -> str:
    """A row of fixed columns. A real table would have to wait for the last record before it knew its widths."""
    line = Text()
    if "error" in record:
        line.append(f"{'error':<20}", style="red")
        line.append(f"  {printable(record['path'])}: {printable(record['error'])}")
    else:
        first, *rest = record["top"]
        line.append(f"{printable(first['label']):<12}", style="bold")
        line.append(f"{first['confidence']:>7.1%}", style="green" if first["confidence"] > 0.5 else "yellow")
        line.append(f"   {printable(record['path'])}")
        for entry in rest:
            line.append(f"  {printable(entry['label'])} {entry['confidence']:.1%}", style="dim")
    with console.capture() as capture:
        console.print(line, soft_wrap=True)
    return capture.get().rstrip("\n")
