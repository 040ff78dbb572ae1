"""Pickles of plain containers and numpy arrays of bytes, such as CIFAR's Python version, read without running anything they name.

What they may ask for is a short list of names, and each stands for an inert value here.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused, printable
from cnet_deploy.files import read_bytes
from cnet_deploy.files.pickle_reader import Name, PickleReader
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
        reader = _ArrayReader(io.BytesIO(data), len(data))
        loaded = reader.load()
        if not isinstance(loaded, dict):
            raise ValueError(f"it holds a {type(loaded).__name__}")
        return {key: _as_array(value, reader) if isinstance(value, _Array) else value for key, value in loaded.items()}
    except Exception as error:  # what a damaged pickle makes its reader raise has no bound
        reason = f"{type(error).__name__}: {error}"
        raise InputRefused(f"{file}: is truncated, damaged or none of CIFAR's Python files ({reason}); get it again") from None


class _Array:
    """What a pickled array is built from, until it is turned into one."""

    def __init__(self, state: Any = None, code: Any = None) -> None:
        self.state, self.code = state, code


class _ArrayReader(PickleReader):
    """numpy's arrays as ``_Array``. All text that becomes bytes is no longer than the file: a pickle may name one text any number of
    times."""

    def __init__(self, file: io.BytesIO, size: int) -> None:
        super().__init__(file, "latin-1", size)

    def find_class(self, module: str, name: str) -> Name:
        if f"{module}.{name}" not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)

    def key(self, key: Any) -> Any:
        if type(key) is not str:
            raise pickle.UnpicklingError(f"it has a key of {type(key).__name__}; expected text")
        return key

    def called(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        if str(name) == "_codecs.encode":
            text, encoding = arguments
            if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
                raise ValueError("it encodes something else than Latin-1 text")
            return self.encoded(text)
        if name.name == "_frombuffer":
            raw, dtype, shape, order = arguments
            return _Array((1, shape, dtype, order == "F", raw))
        return _Array(code=arguments[0]) if str(name) == "numpy.dtype" else _Array()

    def built(self, target: Any, state: Any) -> None:
        if not isinstance(target, _Array):
            raise pickle.UnpicklingError("it sets attributes of what is no array")
        target.state = state

    def encoded(self, text: str) -> bytes:
        """Text as the bytes that it stands for."""
        try:
            return bytes(self.copied(text).encode("latin-1"))
        except pickle.UnpicklingError:
            raise ValueError("it makes more bytes than it has") from None


def _as_array(made: _Array, reader: _ArrayReader) -> npt.NDArray[np.uint8]:
    _, shape, dtype, by_columns, raw = made.state
    code = dtype.code if isinstance(dtype, _Array) else None
    if not isinstance(code, str) or code != "u1":
        raise ValueError(f"its array is of {printable(code, 20) if isinstance(code, str) else 'no known type'}; expected bytes (u1)")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("its array's shape is no row of numbers")
    content = reader.encoded(raw) if isinstance(raw, str) else raw
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"its array holds {type(raw).__name__}; expected bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")
