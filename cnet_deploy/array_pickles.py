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

from cnet_deploy.errors import InputRefused
from cnet_deploy.files import read_bytes
from cnet_deploy.pickles import examine

MAX_BYTES = 1 << 28
# What numpy's arrays are pickled as, in its several versions.
_ARRAY_PARTS = {
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode",
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
        raise InputRefused(f"{file}: is truncated, damaged or none of CIFAR's Python files ({found.problem})")
    try:
        loaded = _Reader(io.BytesIO(data), encoding="latin-1").load()
        if not isinstance(loaded, dict):
            raise ValueError(f"it holds a {type(loaded).__name__}")
        return {str(key): _as_array(value) if isinstance(value, _Array) else value for key, value in loaded.items()}
    except Exception as error:  # what a damaged pickle makes its reader raise has no bound
        reason = f"{type(error).__name__}: {error}"
        raise InputRefused(f"{file}: is truncated, damaged or none of CIFAR's Python files ({reason})") from None


class _Array:
    """What a pickled array is built from, until it is turned into one."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Maker:
    """Stands for a function or class that a pickle names; calling it runs nothing of theirs."""

    __slots__ = ("name",)
    name: str

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("stands for a name alone")

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "_codecs.encode":
            text, encoding = arguments
            if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
                raise ValueError("it encodes something else than Latin-1 text")
            return text.encode("latin-1")
        return _Dtype(arguments[0]) if self.name == "numpy.dtype" else _Array()


class _Dtype(_Array):
    def __init__(self, code: Any) -> None:
        super().__init__()
        self.code = code.decode("latin-1") if isinstance(code, bytes) else code


# The reader written in Python: the one in C sizes a table by a number in the file.
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Maker(f"{module}.{name}")


def _as_array(made: _Array) -> npt.NDArray[np.uint8]:
    _, shape, dtype, by_columns, raw = made.state
    if not isinstance(dtype, _Dtype) or dtype.code != "u1":
        raise ValueError(f"its array is of {getattr(dtype, 'code', dtype)!r}; expected bytes (u1)")
    content = raw.encode("latin-1") if isinstance(raw, str) else raw
    if not isinstance(content, bytes):
        raise ValueError(f"its array holds {type(raw).__name__}; expected bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")
