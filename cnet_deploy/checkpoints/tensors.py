"""Tensors as stored in a file: bytes, a type, a strided view. Each is checked when it is turned into an array."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.checkpoints.dialects.base import Dialect
from cnet_deploy.errors import InputRefused

MAX_EXPANDED = 16 << 20  # bytes that a view may claim over a smaller storage
MAX_DIMENSIONS = 16
# torch's names of the types of weights, masks and indices. numpy has no bfloat16: it is the upper half of a float32.
TYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8", "uint8": "<u1", "int8": "<i1", "int16": "<i2",
        "int32": "<i4", "int64": "<i8", "bool": "<u1",
    }.items()
}  # fmt: skip
FLOATS = ("float16", "bfloat16", "float32", "float64")


class Storage:
    """Bytes that tensors are views of. ``fetch`` returns them; it may raise ValueError if they are missing."""

    __slots__ = ("dtype", "fetch")

    def __init__(self, dtype: str | None, fetch: Callable[[], memoryview]) -> None:
        self.dtype, self.fetch = dtype, fetch


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of ``shape`` that begins ``offset`` elements into its storage. ``odd`` names any other kind of tensor (sparse,
    quantized …), for which the other fields are not used. ``negative``: its numbers are stored with the opposite sign."""

    dtype: str
    storage: Storage | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    negative: bool = False
    odd: str | None = None

    @property
    def dense(self) -> bool:
        """Whether its numbers are contiguous in some order of its dimensions."""
        expected = 1
        for stride, side in sorted((stride, side) for stride, side in zip(self.strides, self.shape, strict=True) if side != 1):
            if stride != expected:
                return False
            expected *= side
        return True

    def array(self, name: str) -> npt.NDArray[Any]:
        """A copy of its numbers: floating point as float32, others unchanged. InputRefused refers to the tensor as ``name``."""
        view = self._view(name)
        values: npt.NDArray[Any]
        if self.dtype == "bool":
            values = np.array(view, order="C").view(np.bool_)
            np.not_equal(view, 0, out=values)
        elif self.dtype == "bfloat16":
            values = np.array(view, np.uint32, order="C")
            np.left_shift(values, 16, out=values)
            values = values.view(np.float32)
        else:
            with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, which is refused later
                values = np.array(view, np.float32 if self.dtype in FLOATS else view.dtype.newbyteorder("="), order="C")
        return np.negative(values, out=values) if self.negative else values

    def bits(self, name: str) -> npt.NDArray[Any]:
        """A copy of its numbers as stored, to the bit: bfloat16 as uint16, booleans as bytes.

        Raises InputRefused as ``array`` does, and for numbers that are stored with the opposite sign.
        """
        if self.negative:
            raise InputRefused(f"{name} is stored with the opposite sign; expected a tensor as training leaves it")
        return np.array(self._view(name), order="C")

    def bytes_as_array(self, name: str) -> int:
        """The size of ``array``'s result in bytes. Raises InputRefused for a tensor that can't be an array."""
        self._check(name)
        return math.prod(self.shape) * (4 if self.dtype in FLOATS else TYPES[self.dtype].itemsize)

    def _check(self, name: str) -> None:
        if self.odd or self.dtype not in TYPES or (self.negative and self.dtype not in FLOATS):
            what = self.odd or f"a tensor of {self.dtype}"
            raise InputRefused(f"{name} is {what}; expected a dense tensor of real numbers")
        # Beyond this numpy can't hold its size in bytes.
        if len(self.shape) > MAX_DIMENSIONS or math.prod(side or 1 for side in self.shape) >= 1 << 59:
            raise InputRefused(f"{name} has shape {self.shape}; expected weights of its own")

    def _view(self, name: str) -> npt.NDArray[Any]:
        self._check(name)
        assert self.storage is not None
        content = self.storage.fetch()
        dtype, count = TYPES[self.dtype], math.prod(self.shape)
        if count == 0:
            return np.empty(self.shape, dtype)
        # A view with strides of 0 can claim any size over a single number.
        if count * dtype.itemsize > max(len(content), MAX_EXPANDED):
            raise InputRefused(f"{name} has shape {self.shape} over {len(content)} bytes; expected weights of its own")
        end = self.offset + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True)) + 1
        if end * dtype.itemsize > len(content):
            raise InputRefused(f"{name} ends at byte {end * dtype.itemsize} of a storage of {len(content)}; expected a view within it")
        numbers = np.frombuffer(content, dtype, end - self.offset, self.offset * dtype.itemsize)
        strides = [stride * dtype.itemsize if side > 1 else 0 for side, stride in zip(self.shape, self.strides, strict=True)]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)


@dataclass(frozen=True)
class FoundWeights:
    """A set of weights in a file: its key, the number of its tensors and their bytes as stored, and whether it is the one that is read."""

    key: str
    tensors: int
    bytes: int
    chosen: bool


@dataclass(frozen=True)
class InertObject:
    """A class or function that a pickle names and that is left inert. ``runs_code``: elsewhere it would run code, as ``os.system``."""

    name: str
    runs_code: bool


@dataclass(frozen=True)
class Contents:
    """A file's tensors (arrays of float32 or integers, by the original's names) and its metadata. ``source`` is the file's name.

    ``weights`` are all sets of weights in the file, ``why`` says why the chosen one is read. ``companions`` are names that were left out.
    ``notes`` are sentences for the file's owner about how it was read. ``named`` are entries that may name the classes.
    """

    tensors: dict[str, npt.NDArray[Any]]
    source: str
    digest: str
    size: int
    container: str
    metadata: dict[str, Any]
    weights: tuple[FoundWeights, ...] = ()
    why: str = ""
    dialect: Dialect | None = None
    companions: tuple[str, ...] = ()
    inert: tuple[InertObject, ...] = ()
    notes: tuple[str, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
