"""numpy's arrays and numbers in a pickle, as parts: nothing of numpy is called to make them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from cnet_deploy.errors import printable
from cnet_deploy.files.pickle_reader import Name

# numpy's codes of numbers, and those of struct.
_SCALARS = {
    "f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "b1": "?",
}  # fmt: skip


class ArrayType:
    """A numpy dtype: its code without the byte order, as in "f4", and whether its numbers are stored with the highest byte first."""

    def __init__(self, code: Any) -> None:
        self.code, self.big_endian = code if isinstance(code, str) else "", False


class StoredArray:
    """An array as it is pickled: its ``state`` is (version, shape, dtype, order by columns, bytes or text), set after it is made."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    @property
    def code(self) -> str:
        """The code of its type, as in "f4"; empty where it is not known."""
        dtype = self.state[2] if isinstance(self.state, tuple) and len(self.state) == 5 else None
        return dtype.code if isinstance(dtype, ArrayType) else ""

    def parts(self, bytes_of: Callable[[str], bytes]) -> tuple[tuple[int, ...], bool, bytes]:
        """Its shape, whether it is stored by columns, and its bytes. ``bytes_of`` turns Latin-1 text into bytes.

        Raises ValueError where they are damaged.
        """
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("its array is damaged")
        _, shape, dtype, by_columns, raw = self.state
        if not isinstance(dtype, ArrayType) or not dtype.code:
            raise ValueError("its array is of no known type")
        if dtype.big_endian:
            raise ValueError(f"its array stores {printable(dtype.code, 20)} with the highest byte first; expected the lowest first")
        if not isinstance(shape, tuple) or not all(type(side) is int and 0 <= side < 1 << 59 for side in shape):
            raise ValueError("its array's shape is damaged")
        content = bytes_of(raw) if isinstance(raw, str) else raw
        if not isinstance(content, (bytes, bytearray)):
            raise ValueError(f"its array of {printable(dtype.code, 20)} holds something other than bytes")
        return shape, bool(by_columns), bytes(content)


def made(name: Name, arguments: tuple[Any, ...]) -> Any:
    """What stands for the result of a call of numpy's: a StoredArray, an ArrayType or a number. None for any other name."""
    if name.module.partition(".")[0] != "numpy":
        return None
    if name.name in ("_reconstruct", "ndarray"):
        return StoredArray()
    if name.name == "_frombuffer":
        raw, dtype, shape, order = arguments
        return StoredArray((1, shape, dtype, order == "F", raw))
    if str(name) == "numpy.dtype":
        return ArrayType(arguments[0])
    if name.name == "scalar":
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


def _number(dtype: Any, raw: Any = None) -> int | float | bool:
    """A numpy number as a Python number."""
    if not isinstance(dtype, ArrayType) or dtype.code not in _SCALARS or not isinstance(raw, bytes):
        raise ValueError("a number of numpy is damaged, or of no known type")
    value: int | float | bool = struct.unpack((">" if dtype.big_endian else "<") + _SCALARS[dtype.code], raw)[0]
    return value
