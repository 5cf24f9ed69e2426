"""Names of files on stdin, as `find`, `find -print0` and the editors and shells of several systems write them."""

import codecs
import errno
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from cifarctl.errors import UsageError

_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_path_list(stream: BinaryIO) -> Iterator[Path]:
    """The paths in `stream`, each as soon as it is complete: one per line, or with a NUL after each.

    A byte-order mark is no part of the first name; that of UTF-16 decides the encoding. Other names are bytes: those
    that are not UTF-8 are kept as the system gives them. Empty lines are skipped. Raises UsageError on UTF-16 without
    the mark.
    """
    chunks = _chunks(stream)
    first = b""
    while len(first) < 3 and (chunk := next(chunks, b"")):
        first += chunk
    encoding = _UTF_16.get(first[:2])
    if not encoding and _is_unmarked_utf_16(first):
        raise UsageError("-: the list is UTF-16 without a byte-order mark", hint="write it as UTF-8")
    if encoding:
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        texts = (decoder.decode(chunk).encode() for chunk in chain([first[2:]], chunks))
        names = _split(texts)
        to_text: Callable[[bytes], str] = bytes.decode
    else:
        names, to_text = _split(chain([first.removeprefix(codecs.BOM_UTF8)], chunks)), _decoded
    for name in names:
        yield Path(to_text(name))


def _is_unmarked_utf_16(first: bytes) -> bool:
    """Whether lines of ASCII stand there with a NUL in each character, which is no way to write names."""
    return any(not any(first[odd:64:2]) and end in first for odd, end in ((1, b"\n\0"), (0, b"\0\n")))


def _decoded(name: bytes) -> str:
    if sys.platform == "win32":  # PowerShell's in UTF-8; cmd's in the console's code page
        with suppress(UnicodeDecodeError):
            return name.decode()
        return name.decode("oem", "replace")
    else:  # noqa: RET505 (mypy knows platforms by such blocks)
        # Names are bytes; undecodable ones survive the round trip as surrogates.
        return name.decode(sys.getfilesystemencoding(), "surrogateescape")


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    read = stream.read1 if isinstance(stream, io.BufferedReader) else stream.read  # what there is, without waiting
    try:
        while chunk := read(65536):
            yield chunk
    except OSError as error:  # of a caller's `<&-`, for one
        raise OSError(error.errno, "it is closed" if error.errno == errno.EBADF else error.strerror, "stdin") from None


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The names that are not empty. A NUL can be in no name, so the first one says what is between them."""
    separator = b""
    rest = b""
    for chunk in chunks:
        rest += chunk
        if not separator:
            separator = b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b""
        if separator:
            *names, rest = rest.split(separator)
            yield from _cleaned(names, separator)
    yield from _cleaned([rest], separator)


def _cleaned(names: list[bytes], separator: bytes) -> Iterator[bytes]:
    for name in names:
        if cleaned := name if separator == b"\0" else name.rstrip(b"\r\n"):
            yield cleaned
