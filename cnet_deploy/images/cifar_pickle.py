"""Read CIFAR's Python version, pickles of plain containers and numpy arrays of bytes, without executing anything.

Only a short list of names is accepted, and an inert value stands for each.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused, in_words, printable
from cnet_deploy.files import read_bytes
from cnet_deploy.files.pickle_arrays import StoredArray, built, made
from cnet_deploy.files.pickle_reader import Name, PickleReader
from cnet_deploy.files.pickle_scan import examine

MAX_BYTES = 1 << 28
# The names in pickles of numpy arrays, in all versions.
_ARRAY_PARTS = {
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode",
    "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer",
}  # fmt: skip


def read_arrays(file: Path) -> dict[str, Any]:
    """The dictionary in one of CIFAR's Python files, with numpy arrays of bytes. Raises InputRefused for any other pickle."""
    data = read_bytes(file, limit=MAX_BYTES)
    findings = examine(data)
    if findings.wanted:
        wanted = ", ".join(findings.wanted[:3])
        raise InputRefused(f"{file}: its pickle wants {wanted}, which can run code; expected only CIFAR's arrays and lists")
    if findings.problem:
        raise InputRefused(f"{file}: is truncated, damaged or not one of CIFAR's Python files ({findings.problem}); get it again")
    try:
        reader = _ArrayReader(io.BytesIO(data), len(data))
        loaded = reader.load()
        if not isinstance(loaded, dict):
            raise ValueError("it holds something other than a dictionary")
        return {key: _as_array(value, reader) if isinstance(value, StoredArray) else value for key, value in loaded.items()}
    except Exception as error:  # a damaged pickle can make its reader raise anything
        reason = in_words(error)
        raise InputRefused(f"{file}: is truncated, damaged or not one of CIFAR's Python files ({reason}); get it again") from None


class _ArrayReader(PickleReader):
    """Reads numpy arrays as StoredArray. The total length of text that becomes bytes is limited to the file's size, since a pickle can
    refer to the same text many times."""

    def __init__(self, file: io.BytesIO, size: int) -> None:
        super().__init__(file, "latin-1", size)

    def find_class(self, module: str, name: str) -> Name:
        if f"{module}.{name}" not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)

    def key(self, key: Any) -> Any:
        if type(key) is not str:
            raise pickle.UnpicklingError("it has a key that is not text")
        return key

    def called(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        if str(name) == "_codecs.encode":
            text, encoding = arguments
            if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
                raise ValueError("it encodes something other than Latin-1 text")
            return self.encoded(text)
        if (value := made(name, arguments)) is None:
            raise pickle.UnpicklingError(f"it calls {name}")
        return value

    def built(self, target: Any, state: Any) -> None:
        if not built(target, state):
            raise pickle.UnpicklingError("it sets attributes of an object that is not an array")

    def encoded(self, text: str) -> bytes:
        """The bytes that a text stands for."""
        try:
            return bytes(self.copied(text).encode("latin-1"))
        except pickle.UnpicklingError:
            raise ValueError("its arrays are larger than the file") from None


def _as_array(stored: StoredArray, reader: _ArrayReader) -> npt.NDArray[np.uint8]:
    if stored.code != "u1":
        raise ValueError(f"its array is of {printable(stored.code or 'no known type', 20)}; expected bytes (u1)")
    shape, strides, content = stored.parts(reader.encoded)
    return np.lib.stride_tricks.as_strided(np.frombuffer(content, np.uint8), shape, strides)
