"""numpy's arrays and numbers in a pickle, as parts: nothing of numpy is called to make them."""

from __future__ import annotations

import array
import math
import struct
from collections.abc import Callable
from typing import Any

from cnet_deploy.errors import printable
from cnet_deploy.files.pickle_reader import Name

MAX_DIMENSIONS = 64  # numpy's own limit
# numpy's codes of numbers, and those of struct.
_SCALARS = {
    "f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "b1": "?",
}  # fmt: skip


class ArrayType:
    """A numpy dtype: its code without the byte order, as in "f4", and whether its numbers are stored with the highest byte first."""

    def __init__(self, code: Any) -> None:
        self.code, self.big_endian = code if isinstance(code, str) else "", False


class StoredArray:
    """An array as it is pickled: its ``state`` is (version, shape, dtype, order by columns, bytes or text), set after it is made.

    ``axes``: the order of its axes in which that array is transposed afterwards, or None.
    """

    def __init__(self, state: Any = None, axes: Any = None) -> None:
        self.state, self.axes = state, axes

    @property
    def code(self) -> str:
        """The code of its type, as in "f4"; empty where it is not known."""
        dtype = self.state[2] if isinstance(self.state, tuple) and len(self.state) == 5 else None
        return dtype.code if isinstance(dtype, ArrayType) else ""

    @property
    def stored_bytes(self) -> int:
        """The length of its bytes; 0 where it is damaged, or of no known type."""
        raw = self.state[4] if self.code else None
        return len(raw) if isinstance(raw, (str, bytes, bytearray)) else 0

    def parts(self, bytes_of: Callable[[str], bytes]) -> tuple[tuple[int, ...], tuple[int, ...], bytes]:
        """Its shape, its strides in elements, and its bytes, the lowest of a number first. ``bytes_of`` turns Latin-1 text into bytes.

        Raises ValueError where they are damaged, or are not as many as the shape has.
        """
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("its array is damaged")
        _, shape, dtype, by_columns, raw = self.state
        if not isinstance(dtype, ArrayType) or not dtype.code:
            raise ValueError("its array is of no known type")
        if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
            raise ValueError("its array's shape is damaged")
        if not all(type(side) is int and 0 <= side < 1 << 59 for side in shape):
            raise ValueError("its array's shape is damaged")
        size = struct.calcsize(_SCALARS[dtype.code]) if dtype.code in _SCALARS else 0
        expected = math.prod(shape) * size
        # Before it is copied: many arrays can share one text.
        if not isinstance(raw, (str, bytes, bytearray)) or (size and len(raw) != expected):
            held = f"{len(raw)} bytes; expected {expected}" if isinstance(raw, (str, bytes, bytearray)) else "something other than bytes"
            raise ValueError(f"its array of {printable(dtype.code, 20)} holds {held}")
        content = bytes(bytes_of(raw) if isinstance(raw, str) else raw)
        strides, step = [0] * len(shape), 1 if expected else 0
        for axis in range(len(shape)) if by_columns else reversed(range(len(shape))):
            strides[axis] = step
            step *= shape[axis]
        axes = range(len(shape)) if self.axes is None else self.axes
        if not isinstance(axes, (range, tuple)) or not all(type(axis) is int for axis in axes) or sorted(axes) != [*range(len(shape))]:
            raise ValueError("the order of its array's axes is damaged")
        return tuple(shape[axis] for axis in axes), tuple(strides[axis] for axis in axes), _lowest_first(content, size, dtype.big_endian)


def made(name: Name, arguments: tuple[Any, ...]) -> Any:
    """What stands for the result of a call of numpy's: a StoredArray, an ArrayType or a number. None for any other name."""
    if name.module.partition(".")[0] != "numpy":
        return None
    if name.name in ("_reconstruct", "ndarray"):
        return StoredArray()
    if name.name == "_frombuffer":
        raw, dtype, shape, order, *axes = arguments
        if order not in ("C", "F", "K") or (order == "K") != bool(axes):
            raise ValueError("the order of its array's numbers is damaged")
        return StoredArray((1, shape, dtype, order == "F", raw), *axes)
    if str(name) == "numpy.dtype":
        return ArrayType(arguments[0])
    if name.name == "scalar" and arguments and isinstance(arguments[0], ArrayType) and arguments[0].code in _SCALARS:
        return _number(*arguments)
    return None


def built(target: Any, state: Any) -> bool:
    """Set the state of an array or a type. Returns whether it was one."""
    if isinstance(target, StoredArray):
        target.state = state
    elif isinstance(target, ArrayType):
        target.big_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    else:
        return False
    return True


def _lowest_first(content: bytes, size: int, big_endian: bool) -> bytes:
    if size < 2 or not big_endian:
        return content
    numbers = array.array({2: "H", 4: "I", 8: "Q"}[size], content)
    numbers.byteswap()
    return numbers.tobytes()


def _number(dtype: ArrayType, raw: Any = None) -> int | float | bool:
    """A numpy number as a Python number."""
    if not isinstance(raw, bytes):
        raise ValueError("a number of numpy is damaged")
    value: int | float | bool = struct.unpack((">" if dtype.big_endian else "<") + _SCALARS[dtype.code], raw)[0]
    return value
