"""A CSV file that says the label, and perhaps the split, of each image file."""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from cifarctl.data.fingerprint import absolute
from cifarctl.data.image_formats import FORMAT_OF_SUFFIX
from cifarctl.data.kind import Stored
from cifarctl.errors import DataError

# The names of columns, in lower case, the likeliest first.
_COLUMNS = {
    "path": ("path", "filepath", "file_path", "filename", "file_name", "file", "image", "image_id", "id"),
    "label": ("label", "class", "class_name", "target"),
    "split": ("split",),
}
_EXPECTED = "the first line must be path,label or path,label,split"


@dataclass(frozen=True)
class Row:
    """One image in a list. line: where, from 1. path: as written. split: None if the list does not say."""

    line: int
    path: str
    label: str
    split: Stored | None


@dataclass(frozen=True)
class LabelList:
    """The rows of a list, and the names of the columns that are not used."""

    rows: list[Row] = field(default_factory=list)
    unused: tuple[str, ...] = ()


def read_label_list(path: Path, splits: Mapping[str, Stored] | None = None, *, needs_labels: bool = True) -> LabelList:
    """The list at `path`: UTF-8, with a header, between commas, semicolons or tabs.

    splits: the names in a column `split`, which is not read if this is None. needs_labels: whether a list without a
    column of labels is an error; if not, it has no rows. Raises DataError, which names the line.
    """
    try:
        if path.exists() and not path.is_file():  # a FIFO could block forever
            raise DataError(f"{path}: not a regular file")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8", hint="save it as CSV in UTF-8") from None
    lines = text.splitlines(keepends=True)
    blank = next((i for i, line in enumerate(lines) if line.strip()), 0)  # lines before the header
    header = lines[blank].strip() if lines else ""
    delimiter = next((each for each in ",;\t" if each in header), ",")
    reader = csv.reader(
        io.StringIO("".join(lines[blank:]), newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows: list[Row] = []
    try:
        given = [name.strip() for name in next(reader, [])]
        names = [name.lower() for name in given]
        columns = {name: _column(names, known) for name, known in _COLUMNS.items()}
        if columns["path"] is None or columns["label"] is None:
            if not needs_labels:
                return LabelList()
            lacks = "paths" if columns["path"] is None else "labels"
            raise DataError(f"{path}, line {blank + 1}: no column of {lacks} in {header[:80]!r}", hint=_EXPECTED)
        used = {column for name, column in columns.items() if name != "split" or splits is not None}
        if twice := next((name for i, name in enumerate(names) if i in used and names.count(name) > 1), None):
            raise DataError(f"{path}, line {blank + 1}: two columns are named {twice}", hint="rename one of them")
        for values in reader:
            if any(value.strip() for value in values):
                rows.append(_row(path, blank + reader.line_num, values, len(names), columns, splits))
    except csv.Error as error:
        _fail(path, blank + reader.line_num, str(error))
    if not rows:
        raise DataError(f"{path}: no images in it", hint=_EXPECTED)
    return LabelList(rows, tuple(name for i, name in enumerate(given) if name and i not in used))


def find_listed(
    rows: list[Row],
    path: Path,
    folder: Path,
    folders: Mapping[Stored, Path] | None = None,
    known: dict[str, tuple[Path, int]] | None = None,
) -> list[Path]:
    """The image file of each row of the list at `path`: in `folder`, or else relative to the list. A row may leave the
    suffix out. Raises DataError, which names the line.

    folders: where to look instead of `folder`, by the split that a row says. known: the images that other lists name,
    by absolute path, with their list and line; those of this one are added.
    """
    found: list[Path] = []
    known = {} if known is None else known
    missing: list[tuple[Row, Path]] = []
    listings = _Folders()
    for row in rows:
        base = (folders or {}).get(row.split or "all", folder)
        places = dict.fromkeys((base, path.parent))
        matches = next((each for place in places if (each := listings.matches(place / row.path))), [])
        if len(matches) > 1:
            _fail(path, row.line, f"{row.path}: is it {matches[0].name} or {matches[1].name}?")
        if not matches:
            missing.append((row, base))
            continue
        first = known.setdefault(absolute(matches[0]), (path, row.line))
        if first != (path, row.line):
            _fail(path, row.line, f"{row.path} is in {'' if first[0] == path else f'{first[0]}, '}line {first[1]} too")
        found.append(matches[0])
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        row, base = missing[0]
        _fail(
            path,
            row.line,
            f"{base / row.path}: no such file{more}",
            hint="folders in a path are separated by /, not \\"
            if "\\" in row.path and os.sep == "/"
            else "paths are relative to the list"
            if base == path.parent
            else None,
        )
    return found


class _Folders:
    """The files in folders, each of which is listed once."""

    def __init__(self) -> None:
        self._names: dict[Path, tuple[set[str], dict[str, list[str]]]] = {}

    def matches(self, image: Path) -> list[Path]:
        """The file `image`; or those of image formats that are called so but for the suffix."""
        if image.parent not in self._names:
            names = {path.name for path in _files(image.parent)}
            by_stem: dict[str, list[str]] = {}
            for name in sorted(names):
                stem, dot, suffix = name.rpartition(".")
                if f"{dot}{suffix.lower()}" in FORMAT_OF_SUFFIX:
                    by_stem.setdefault(stem, []).append(name)
            self._names[image.parent] = names, by_stem
        names, by_stem = self._names[image.parent]
        return [
            image.with_name(name) for name in ([image.name] if image.name in names else by_stem.get(image.name, []))
        ]


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be read ({error})") from None


def _column(names: list[str], known: tuple[str, ...]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _row(
    path: Path,
    line: int,
    values: list[str],
    width: int,
    columns: Mapping[str, int | None],
    splits: Mapping[str, Stored] | None,
) -> Row:
    if len(values) != width:
        _fail(path, line, f"{len(values)} columns, not {width}")
    texts = {name: values[column].strip() for name, column in columns.items() if column is not None}
    for name in ("path", "label"):
        if not texts[name]:
            _fail(path, line, f"no {name}")
    split = None
    if splits is not None and "split" in texts:
        split = splits.get(texts["split"].lower())
        if split is None:
            _fail(path, line, f"split {texts['split']!r} is not one of train, val, test")
    return Row(line, texts["path"], texts["label"], split)


def _fail(path: Path, line: int, text: str, hint: str | None = None) -> NoReturn:
    raise DataError(f"{path}, line {line}: {text}", hint=hint)
