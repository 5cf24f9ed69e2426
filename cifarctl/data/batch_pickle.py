"""Read CIFAR's batch pickles without an unpickler.

The official archives hold Python-2 pickles (protocol 2): a dictionary of strings, lists of small integers and one
uint8 array. A pickle is a program for a stack machine, and a general unpickler runs whatever program it is given.
This one interprets the two dozen opcodes that those files use; the only "callables" it knows are three names that stand
for NumPy's array, and they are placeholders here: nothing is imported or called.
"""

import math
import pickletools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cifarctl.errors import DataError

_MARK: Final = object()
_PLAIN: Final = {"BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING"}
_CONSTANTS: Final[dict[str, Any]] = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True}
_TUPLES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Array:
    """A uint8 array that REDUCE has announced and BUILD fills."""

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

    Returns its dictionary: strings (decoded as Latin-1, which keeps every byte), integers, lists of those, and
    arrays as NumPy uint8 (rows, columns). Raises DataError on anything else, at the first opcode that is not expected.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    position = 0
    try:
        for opcode, argument, offset in pickletools.genops(data):
            position = offset or 0
            if opcode.name == "STOP":
                break
            _step(opcode.name, argument, stack, memo)
        result = stack.pop()
    except DataError as error:
        raise DataError(f"{error} at byte {position}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        # genops raises ValueError on truncation, and a stack machine fed nonsense fails in the other ways.
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise DataError(f"damaged batch: {reason} at byte {position}") from None
    if stack or not isinstance(result, dict):
        raise DataError("damaged batch: it is not one dictionary")
    return {key: _finished(value) for key, value in result.items()}


def _finished(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    if value.values is None:
        raise DataError("damaged batch: an array without values")
    return value.values


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Execute one opcode on `stack`."""
    if name in _PLAIN:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _TUPLES:
        size = _TUPLES[name]
        if size > len(stack):
            raise DataError("damaged batch: stack underflow")
        stack[len(stack) - size :] = [tuple(stack[len(stack) - size :])]
    elif name == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name in ("APPEND", "APPENDS"):
        items = _pop_to_mark(stack) if name == "APPENDS" else [stack.pop()]
        _expect(stack[-1], list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = _pop_to_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        target = _expect(stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_expect(key, str)] = value
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        if argument not in _GLOBALS:
            raise DataError(f"refused: the batch names {argument[:60]!r}, which is no part of a NumPy array")
        stack.append(_GLOBALS[argument])
    elif name == "REDUCE":
        arguments, function = _expect(stack.pop(), tuple), stack.pop()
        stack.append(_announce(function, arguments))
    elif name == "BUILD":
        state = _expect(stack.pop(), tuple)
        if isinstance(stack[-1], _Array):
            stack[-1].values = _array(state)
        else:  # a uint8 dtype's state says only that it has no byte order
            _expect(stack[-1], _DType)
    elif name != "PROTO":
        raise DataError(f"refused: pickle opcode {name}, which no CIFAR batch uses")


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
    raw = _expect(text, str).encode("latin-1")
    if version != 1 or min(rows, columns) < 0 or math.prod((rows, columns)) != len(raw):
        raise DataError(f"damaged batch: an array of shape {rows}×{columns} with {len(raw)} bytes")
    return np.frombuffer(raw, np.uint8).reshape(rows, columns, order="F" if fortran else "C")


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    for index in range(len(stack) - 1, -1, -1):
        if stack[index] is _MARK:
            items = stack[index + 1 :]
            del stack[index:]
            return items
    raise DataError("damaged batch: no mark on the stack")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise DataError(f"damaged batch: {type(value).__name__} where {kind.__name__} was expected")
    return value
