"""The safetensors container."""

from __future__ import annotations

import json
from typing import Any

import safetensors

from cnet_deploy.checkpoints.formats.base import Format
from cnet_deploy.checkpoints.tensors import Storage, StoredTensor

MAX_HEADER = 2 << 20  # bytes: the largest of the paper's networks have some 300 KB

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
    tensors = {}
    for name, entry in safetensors.deserialize(data):  # type: ignore[no-untyped-call]
        shape = tuple(entry["shape"])
        strides = [1] * len(shape)
        for axis in range(len(shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * shape[axis + 1]
        dtype = _TYPES.get(entry["dtype"], entry["dtype"])
        tensors[name] = StoredTensor(dtype, _whole(dtype, memoryview(entry["data"])), 0, shape, tuple(strides))
    header = json.loads(data[8 : 8 + size])
    return tensors, dict(header.get("__metadata__") or {})


def _whole(dtype: str, content: memoryview) -> Storage:
    return Storage(dtype, lambda: content)


FORMAT = Format("safetensors", _recognises, read_safetensors, pickled=False, suffixes=(".safetensors",))
