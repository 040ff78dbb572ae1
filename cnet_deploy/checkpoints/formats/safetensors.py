"""The safetensors container."""

from __future__ import annotations

import json
from typing import Any

import safetensors

from cnet_deploy.checkpoints.formats.base import Format
from cnet_deploy.checkpoints.tensors import Storage, StoredTensor

MAX_HEADER = 2 << 20  # bytes: the largest of the paper's networks have some 300 KB
MAX_TENSORS = 20_000  # the largest of them have some 2,000, and a file may hold several sets
MAX_DIMENSIONS = 8  # theirs have four at most

_TYPES = {
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "U8": "uint8", "I8": "int8", "I16": "int16",
    "I32": "int32", "I64": "int64", "BOOL": "bool",
}  # fmt: skip


def _recognises(data: bytes) -> bool:
    """Whether it begins as a safetensors file does."""
    return len(data) >= 10 and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8 and data[8:9] == b"{"


def read_safetensors(data: bytes) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Tensors and metadata."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise ValueError(f"its header has {size} bytes; expected at most {MAX_HEADER}")
    header = _header(data[8 : 8 + size])
    tensors = {}
    for name, entry in safetensors.deserialize(data):  # type: ignore[no-untyped-call]
        shape = tuple(entry["shape"])
        strides = [1] * len(shape)
        for axis in range(len(shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * shape[axis + 1]
        dtype = _TYPES.get(entry["dtype"], entry["dtype"])
        tensors[name] = StoredTensor(dtype, _whole(dtype, memoryview(entry["data"])), 0, shape, tuple(strides))
    return tensors, dict(header.get("__metadata__") or {})


def _header(text: bytes) -> dict[str, Any]:
    """The header, if no more is in it than a network of the family has: of more, the library itself takes seconds and gigabytes."""
    if (count := text.count(b'"dtype"')) > MAX_TENSORS:
        raise ValueError(f"it has some {count} tensors; expected at most {MAX_TENSORS}")
    try:
        header = json.loads(text)
    except RecursionError:
        raise ValueError("its header nests too deep") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    for entry in header.values():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(shape, list) and len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"it has a tensor of {len(shape)} dimensions; expected at most {MAX_DIMENSIONS}")
    return header


def _whole(dtype: str, content: memoryview) -> Storage:
    return Storage(dtype, lambda: content)


FORMAT = Format("safetensors", _recognises, read_safetensors, pickled=False, suffixes=(".safetensors",))
