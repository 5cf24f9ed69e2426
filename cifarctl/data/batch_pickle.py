"""Read CIFAR's batch pickles without an unpickler.

The official archives hold Python-2 pickles (protocol 2): a dictionary of strings, lists of small integers and one
uint8 array. A pickle is a program for a stack machine, and a general unpickler runs any program. This one interprets
only the two dozen opcodes that those files use. The only "callables" it knows are three names that stand for NumPy's
array, and they are placeholders: nothing is imported or called.

Memory depends on the file's size, not on what the file claims: lengths are compared with the bytes that exist, an array
is a view of them, and the size limits the number of opcodes.
"""

import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cifarctl.errors import DataError

_MARK: Final = object()
_UINT8: Final = struct.Struct("<B")
_UINT16: Final = struct.Struct("<H")
_UINT32: Final = struct.Struct("<I")
_INT32: Final = struct.Struct("<i")

# An image takes four opcodes (two labels, a name and its memo) besides its 3072 bytes of pixels; one per 400 bytes is
# twice as many. This limits memory, since an empty list takes one byte in the file and 60 bytes in memory.
_OPCODES: Final = 2000
_BYTES_PER_OPCODE: Final = 400
# Longer text is the content of an array. It stays a view, since two bytes of the file can repeat a text.
_MAX_TEXT: Final = 4096
_MAX_NAME: Final = 200


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Array:
    """A uint8 array that REDUCE creates and BUILD fills."""

    values: NDArray[np.uint8] | None = None


@dataclass
class _DType:
    name: str


_RECONSTRUCT: Final = _Global("numpy.core.multiarray _reconstruct")
_NDARRAY: Final = _Global("numpy ndarray")
_DTYPE: Final = _Global("numpy dtype")
_GLOBALS: Final = {g.name: g for g in (_RECONSTRUCT, _NDARRAY, _DTYPE)}


def read_batch(data: bytes) -> dict[str, Any]:
    """Decode one batch file.

    Returns its dictionary: strings (decoded as Latin-1, which keeps every byte), integers, lists of both, and arrays as
    NumPy uint8 (rows, columns), read-only views of `data`. Raises DataError at the first unexpected opcode.
    """
    machine = _Machine(data)
    try:
        result = machine.run()
    except DataError as error:
        raise DataError(f"{error} at byte {machine.position}") from None
    except (ValueError, IndexError, KeyError, TypeError) as error:
        # An invalid program: an empty stack, a missing memo, a tuple of another length.
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise DataError(f"damaged batch: {reason} at byte {machine.position}") from None
    if type(result) is not dict:
        raise DataError("damaged batch: it is not one dictionary")
    return {key: _finished(value) for key, value in result.items()}


def _finished(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    if value.values is None:
        raise DataError("damaged batch: an array without values")
    return value.values


class _Machine:
    """The stack machine: what it has read of `data`, and the values on its stack and in its memo. `_HANDLERS` has its
    opcodes.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.view = data, memoryview(data)
        self.next = 0  # index of the first unread byte
        self.position = 0  # index of the current opcode
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The one value that is on the stack at STOP."""
        for _ in range(_OPCODES + len(self.data) // _BYTES_PER_OPCODE):
            self.position = self.next
            opcode = bytes(self._take(1))
            if opcode == b".":
                (result,) = self.stack
                return result
            self._step(opcode)
        raise DataError("refused: more opcodes than the images of a batch need")

    def _step(self, opcode: bytes) -> None:
        if opcode not in _HANDLERS:
            names = (known.name for known in pickletools.opcodes if known.code == opcode.decode("latin-1"))
            raise DataError(f"refused: pickle opcode {next(names, opcode)!s}, which no CIFAR batch uses")
        _HANDLERS[opcode](self)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_number(self, layout: struct.Struct) -> None:
        self.push(self._number(layout))

    def push_text(self, length: struct.Struct) -> None:
        self.push(self._text(self._number(length)))

    def put(self, index: struct.Struct) -> None:
        self.memo[self._number(index)] = self.stack[-1]

    def get(self, index: struct.Struct) -> None:
        self.push(self.memo[self._number(index)])

    def push_tuple(self, size: int) -> None:
        first = len(self.stack) - size
        if first < 0:
            raise DataError("damaged batch: stack underflow")
        self.stack[first:] = [tuple(self.stack[first:])]

    def push_marked_tuple(self) -> None:
        self.push(tuple(self._pop_to_mark()))

    def append(self) -> None:
        item = self.stack.pop()
        _extend(_expect(self.stack[-1], list), [item])

    def append_marked(self) -> None:
        items = self._pop_to_mark()
        _extend(_expect(self.stack[-1], list), items)

    def set_item(self) -> None:
        item = [self.stack.pop(-2), self.stack.pop()]
        _update(_expect(self.stack[-1], dict), item)

    def set_marked_items(self) -> None:
        items = self._pop_to_mark()
        _update(_expect(self.stack[-1], dict), items)

    def push_global(self) -> None:
        self.push(self._global())

    def reduce(self) -> None:
        arguments, function = _expect(self.stack.pop(), tuple), self.stack.pop()
        self.push(_announce(function, arguments))

    def build(self) -> None:
        state = _expect(self.stack.pop(), tuple)
        if isinstance(self.stack[-1], _Array):
            self.stack[-1].values = _array(state)
        else:  # a uint8 dtype's state says only that it has no byte order
            _expect(self.stack[-1], _DType)

    def skip_byte(self) -> None:
        self._take(1)

    def _take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self.data) - self.next:
            raise DataError("damaged batch: it ends in the middle of a value")
        self.next += size
        return self.view[self.next - size : self.next]

    def _number(self, layout: struct.Struct) -> int:
        number: int = layout.unpack(self._take(layout.size))[0]
        return number

    def _text(self, length: int) -> str | memoryview:
        raw = self._take(length)
        return str(raw, "latin-1") if length <= _MAX_TEXT else raw

    def _global(self) -> _Global:
        """The name that GLOBAL's two lines, module and attribute, spell."""
        lines = self.data[self.next : self.next + _MAX_NAME].split(b"\n", 2)
        if len(lines) < 3:
            raise DataError("damaged batch: a name without an end")
        module, attribute, _ = lines
        self._take(len(module) + len(attribute) + 2)
        name = f"{module.decode('latin-1')} {attribute.decode('latin-1')}"
        if name not in _GLOBALS:
            raise DataError(f"refused: the batch names {name[:60]!r}, which is no part of a NumPy array")
        return _GLOBALS[name]

    def _pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise DataError("damaged batch: no mark on the stack")


def _extend(target: list[str | int], items: list[Any]) -> None:
    """Append labels or names. Lists in lists are refused: they could contain themselves, or double at every opcode."""
    for item in items:
        if type(item) is not int and type(item) is not str:
            raise DataError(f"refused: {type(item).__name__} in a list, which no CIFAR batch has")
    target.extend(items)


def _update(target: dict[str, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(value) not in (str, int, bool, type(None), list, _Array):
            raise DataError(f"refused: {type(value).__name__} in a dictionary, which no CIFAR batch has")
        target[_expect(key, str)] = value


def _announce(function: Any, arguments: tuple[Any, ...]) -> _Array | _DType:
    if function is _RECONSTRUCT and arguments == (_NDARRAY, (0,), "b"):
        return _Array()
    if function is _DTYPE and arguments[0] in ("u1", "|u1"):
        return _DType(arguments[0])
    raise DataError("refused: the batch calls something other than NumPy's uint8 array")


def _array(state: tuple[Any, ...]) -> NDArray[np.uint8]:
    """The array that ndarray's pickled state (version, shape, dtype, is Fortran order, bytes) describes."""
    version, shape, dtype, fortran, text = state
    rows, columns = (_expect(n, int) for n in _expect(shape, tuple))
    _expect(dtype, _DType)
    raw = text if type(text) is memoryview else _expect(text, str).encode("latin-1")
    if version != 1 or min(rows, columns) < 0 or math.prod((rows, columns)) != len(raw):
        raise DataError(f"damaged batch: an array of shape {rows}×{columns} with {len(raw)} bytes")
    return np.frombuffer(raw, np.uint8).reshape(rows, columns, order="F" if fortran is True else "C")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise DataError(f"damaged batch: {type(value).__name__} where {kind.__name__} was expected")
    return value


# Every opcode that is not here is refused. Names: `pickletools.opcodes`.
_HANDLERS: Final[dict[bytes, Callable[[_Machine], None]]] = {
    b"K": lambda machine: machine.push_number(_UINT8),  # BININT1
    b"M": lambda machine: machine.push_number(_UINT16),  # BININT2
    b"J": lambda machine: machine.push_number(_INT32),  # BININT
    b"U": lambda machine: machine.push_text(_UINT8),  # SHORT_BINSTRING
    b"T": lambda machine: machine.push_text(_INT32),  # BINSTRING
    b"q": lambda machine: machine.put(_UINT8),  # BINPUT
    b"r": lambda machine: machine.put(_UINT32),  # LONG_BINPUT
    b"h": lambda machine: machine.get(_UINT8),  # BINGET
    b"j": lambda machine: machine.get(_UINT32),  # LONG_BINGET
    b"N": lambda machine: machine.push(None),  # NONE
    b"\x89": lambda machine: machine.push(False),  # NEWFALSE
    b"\x88": lambda machine: machine.push(True),  # NEWTRUE
    b")": lambda machine: machine.push_tuple(0),  # EMPTY_TUPLE
    b"\x85": lambda machine: machine.push_tuple(1),  # TUPLE1
    b"\x86": lambda machine: machine.push_tuple(2),  # TUPLE2
    b"\x87": lambda machine: machine.push_tuple(3),  # TUPLE3
    b"t": _Machine.push_marked_tuple,  # TUPLE
    b"(": lambda machine: machine.push(_MARK),  # MARK
    b"]": lambda machine: machine.push([]),  # EMPTY_LIST
    b"}": lambda machine: machine.push({}),  # EMPTY_DICT
    b"a": _Machine.append,  # APPEND
    b"e": _Machine.append_marked,  # APPENDS
    b"s": _Machine.set_item,  # SETITEM
    b"u": _Machine.set_marked_items,  # SETITEMS
    b"c": _Machine.push_global,  # GLOBAL
    b"R": _Machine.reduce,  # REDUCE
    b"b": _Machine.build,  # BUILD
    b"\x80": _Machine.skip_byte,  # PROTO
}
