"""Pickles of plain containers and numpy arrays of bytes, such as CIFAR's Python version, read without running anything they name.

What they may ask for is a short list of names, and each stands for an inert value here.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused, printable
from cnet_deploy.files import read_bytes
from cnet_deploy.files.pickle_scan import examine

MAX_BYTES = 1 << 28
# What numpy's arrays are pickled as, in its several versions.
_ARRAY_PARTS = {
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode",
    "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer",
}  # fmt: skip


def read_arrays(file: Path) -> dict[str, Any]:
    """The dictionary in one of CIFAR's Python files, its arrays of bytes as numpy's. Raises InputRefused for any other pickle."""
    data = read_bytes(file, limit=MAX_BYTES)
    found = examine(data)
    if foreign := [name for name in found.wanted if name not in _ARRAY_PARTS]:
        raise InputRefused(
            f"{file}: its pickle wants {', '.join(foreign[:3])}, which can run code; expected CIFAR's arrays and lists alone"
        )
    if found.problem:
        raise InputRefused(f"{file}: is truncated, damaged or none of CIFAR's Python files ({found.problem}); get it again")
    try:
        encode = _Encoder(len(data))
        loaded = _Reader(io.BytesIO(data), encode).load()
        if not isinstance(loaded, dict):
            raise ValueError(f"it holds a {type(loaded).__name__}")
        return {key: _as_array(value, encode) if isinstance(value, _Array) else value for key, value in loaded.items()}
    except Exception as error:  # what a damaged pickle makes its reader raise has no bound
        reason = f"{type(error).__name__}: {error}"
        raise InputRefused(f"{file}: is truncated, damaged or none of CIFAR's Python files ({reason}); get it again") from None


class _Encoder:
    """Text as the bytes that it stands for: in all no more than the file has, since a pickle may name one text any number of times."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, text: str) -> bytes:
        self.left -= len(text)
        if self.left < 0:
            raise ValueError("it makes more bytes than it has")
        return text.encode("latin-1")


class _Array:
    """What a pickled array is built from, until it is turned into one."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Maker:
    """Stands for a function or class that a pickle names; calling it runs nothing of theirs."""

    __slots__ = ("encode", "name")
    name: str
    encode: _Encoder

    def __init__(self, name: str, encode: _Encoder) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "encode", encode)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("stands for a name alone")

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "_codecs.encode":
            text, encoding = arguments
            if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
                raise ValueError("it encodes something else than Latin-1 text")
            return self.encode(text)
        if self.name.endswith("._frombuffer"):
            raw, dtype, shape, order = arguments
            return _Array((1, shape, dtype, order == "F", raw))
        return _Dtype(arguments[0]) if self.name == "numpy.dtype" else _Array()


class _Dtype(_Array):
    def __init__(self, code: Any) -> None:
        super().__init__()
        self.code = code


_LOADS: dict[int, Any] = pickle._Unpickler.dispatch


# The reader written in Python: the one in C sizes a table by a number in the file.
class _Reader(pickle._Unpickler):
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(_LOADS)

    def __init__(self, file: io.BytesIO, encode: _Encoder) -> None:
        super().__init__(file, encoding="latin-1")
        self.encode = encode

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Maker(f"{module}.{name}", self.encode)

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"it asks for extension {code}")

    # Keys are text alone: the time to hash tuples that share tuples, and to tell apart numbers of equal hash, has no bound.
    def _set_item(self) -> None:
        _require_text(self.stack[-2:-1])
        _LOADS[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        _require_text(self.stack[::2])
        _LOADS[pickle.SETITEMS[0]](self)

    def _dict(self) -> None:
        _require_text(self.stack[::2])
        _LOADS[pickle.DICT[0]](self)

    def _set(self) -> None:
        raise pickle.UnpicklingError("it holds a set")

    dispatch |= {pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items, pickle.DICT[0]: _dict}
    dispatch |= dict.fromkeys((pickle.EMPTY_SET[0], pickle.FROZENSET[0]), _set)


def _require_text(keys: list[Any]) -> None:
    for key in keys:
        if type(key) is not str:
            raise pickle.UnpicklingError(f"it has a key of {type(key).__name__}; expected text")


def _as_array(made: _Array, encode: _Encoder) -> npt.NDArray[np.uint8]:
    _, shape, dtype, by_columns, raw = made.state
    code = dtype.code if isinstance(dtype, _Dtype) else None
    if not isinstance(code, str) or code != "u1":
        raise ValueError(f"its array is of {printable(code, 20) if isinstance(code, str) else 'no known type'}; expected bytes (u1)")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("its array's shape is no row of numbers")
    content = encode(raw) if isinstance(raw, str) else raw
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"its array holds {type(raw).__name__}; expected bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")
