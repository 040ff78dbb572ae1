"""Read pickles of tensors, arrays and plain containers, as torch.save writes them, without torch and without executing anything.

The functions below build a value for each call that such a pickle makes of torch, numpy and Python's containers. For every other call an
Inert stands (see files/pickle_reader.py).
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from cnet_deploy.checkpoints.tensors import Storage, StoredTensor
from cnet_deploy.files import pickle_arrays
from cnet_deploy.files.pickle_arrays import StoredArray
from cnet_deploy.files.pickle_reader import MAX_COPIED, Inert, Name, PickleReader

# torch's storage classes: the type of their numbers, and its size in bytes.
STORAGES: dict[str, tuple[str | None, int]] = {
    "FloatStorage": ("float32", 4), "DoubleStorage": ("float64", 8), "HalfStorage": ("float16", 2), "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8), "IntStorage": ("int32", 4), "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1), "BoolStorage": ("bool", 1), "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1), "QUInt8Storage": ("quint8", 1), "QInt32Storage": ("qint32", 4), "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1), "UntypedStorage": (None, 1),
}  # fmt: skip


# numpy's codes of the same types.
_ARRAY_TYPES = {
    "f2": "float16", "f4": "float32", "f8": "float64", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8",
    "b1": "bool",
}  # fmt: skip

MOST_SIDES = 64  # dimensions: many tensors can share one shape of thousands, each of which is looked at

FindStorage = Callable[[tuple[Any, ...]], Storage]


def storage_type(kind: object) -> tuple[str | None, int]:
    """Type and size in bytes of the elements of a storage class. Raises ValueError for anything else."""
    if not isinstance(kind, Name) or kind.module not in ("torch", "torch.storage") or kind.name not in STORAGES:
        raise ValueError(f"{kind if isinstance(kind, Name) else 'a value'} is not a storage class")
    return STORAGES[kind.name]


class TensorReader(PickleReader):
    """Reads one pickle. ``find_storage`` returns the storage of a persistent id (without its first word)."""

    def __init__(self, file: io.BytesIO, find_storage: FindStorage) -> None:
        # numpy's arrays are texts in old protocols, which may be as long as the file; text of Python 2 is Latin-1.
        super().__init__(file, "latin-1", max(MAX_COPIED, file.getbuffer().nbytes))
        self.find_storage = find_storage

    def persistent_load(self, saved: Any) -> Any:
        if not isinstance(saved, tuple) or not saved or saved[0] not in ("storage", "module"):
            raise pickle.UnpicklingError("it has a reference to something other than a storage")
        return saved[1] if saved[0] == "module" else self.find_storage(saved[1:])

    def called(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        text = str(name)
        if text in _MAKERS:
            return _MAKERS[text](self, *arguments)
        for beginning, odd in _ODD.items():
            if text.startswith(beginning):
                return StoredTensor("", odd=odd)
        value = pickle_arrays.made(name, arguments)
        return super().called(name, arguments) if value is None else value

    def built(self, target: Any, state: Any) -> None:
        # Four values would make torch's tensor another view; what else old files set there is no number of it.
        if isinstance(target, StoredTensor) and isinstance(state, tuple) and len(state) == 4:
            raise ValueError("a tensor is changed after it was built")
        if not pickle_arrays.built(target, state):
            super().built(target, state)


def as_tensor(value: StoredTensor | StoredArray) -> StoredTensor:
    """A tensor, or an array of numpy as a tensor. Raises ValueError for a damaged array."""
    if isinstance(value, StoredTensor):
        return value
    dtype = _ARRAY_TYPES.get(value.code)
    if dtype is None:
        return StoredTensor("", odd=f"an array of {value.code or 'objects'}")
    shape, strides, content = value.parts(lambda text: text.encode("latin-1"))
    return StoredTensor(dtype, Storage(dtype, lambda: memoryview(content)), 0, shape, strides)


def _ordered(reader: TensorReader, entries: Any = ()) -> OrderedDict[Any, Any]:
    pairs = list(reader.copied(entries.items() if isinstance(entries, dict) else entries))
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError("a dictionary is built from something other than pairs")
    return OrderedDict((reader.key(key), value) for key, value in pairs)


def _row(reader: TensorReader, entries: Any = ()) -> list[Any]:
    if not isinstance(entries, (list, tuple, set, frozenset)):
        raise ValueError("a container is built from something other than a sequence or set")
    return list(reader.copied(entries))


def _encoded(reader: TensorReader, text: Any, encoding: Any = "latin1") -> bytes | Inert:
    if encoding not in ("latin1", "latin-1"):
        return Inert("_codecs.encode")
    if not isinstance(text, str):
        raise ValueError("it encodes something other than text")
    reader.copied(text)
    return text.encode("latin-1")


def _bytes(reader: TensorReader, values: Any = b"", *encoding: Any) -> bytes | Inert:
    return values if isinstance(values, bytes) else _encoded(reader, values, *encoding)


def _tensor(_: TensorReader, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any, dtype: str | None = None) -> StoredTensor:
    """``more``: requires_grad, hooks, and sometimes a dictionary of metadata."""
    metadata = more[2] if len(more) > 2 else None
    dtype = dtype or (storage.dtype if isinstance(storage, Storage) else None)
    if not isinstance(storage, Storage) or dtype is None or not isinstance(metadata, (dict, type(None))):
        raise ValueError("a tensor is built from something other than a storage")
    for row in (shape, strides, (offset,)):
        if not isinstance(row, tuple) or len(row) > MOST_SIDES or not all(type(number) is int and 0 <= number < 1 << 63 for number in row):
            raise ValueError("a tensor's shape, strides and offset are not whole numbers")
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    return StoredTensor(dtype, storage, offset, shape, strides, bool((metadata or {}).get("neg")))


def _typed_tensor(
    reader: TensorReader, storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> StoredTensor:
    return _tensor(reader, storage, offset, shape, strides, gradient, hooks, metadata, dtype=_type_name(dtype))


def _without_data(_: TensorReader, dtype: Any, *__: Any) -> StoredTensor:
    return StoredTensor(_type_name(dtype), odd="a tensor without data (meta)")


def _parameter(_: TensorReader, data: Any = None, *__: Any) -> Any:
    return data


def _of_type(reader: TensorReader, called: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor of a subclass, or with attributes: only its numbers are read."""
    if not isinstance(called, Name) or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("it calls an object that is not a named function")
    return reader.called(called, arguments)


def _of_device(_: TensorReader, numbers: Any, *__: Any) -> StoredTensor:
    """A tensor of a device without storages, as XLA's: stored as an array of numpy, or as a tensor on the CPU."""
    if not isinstance(numbers, (StoredArray, StoredTensor)):
        raise ValueError("a device's tensor is built from something other than an array")
    return as_tensor(numbers)


def _instance(_: TensorReader, kind: Any, _base: Any = None, state: Any = None, *__: Any) -> Inert:
    """An object of a Python class (copyreg._reconstructor)."""
    made = Inert(str(kind) if isinstance(kind, Name) else "an object")
    if isinstance(state, dict):
        made.entries = state
    return made


def _type_name(dtype: Any) -> str:
    if not isinstance(dtype, Name) or dtype.module != "torch":
        raise ValueError("a tensor's type is not one of torch's")
    return dtype.name


_MAKERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _ordered,
    "collections.defaultdict": lambda _, *__: OrderedDict(),
    "copyreg._reconstructor": _instance,
    "copy_reg._reconstructor": _instance,
    "_codecs.encode": _encoded,
    "torch.Size": lambda reader, entries=(): tuple(_row(reader, entries)),
    "torch.device": lambda _, kind, index=None: kind if index is None else f"{kind}:{index}",
    "torch.serialization._get_layout": lambda _, name: name,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_data,
    "torch._utils._rebuild_device_tensor_from_numpy": _of_device,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _of_device,
    "torch._utils._rebuild_xla_tensor": _of_device,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type": _of_type,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}
for _module in ("builtins", "__builtin__"):
    _MAKERS |= {
        f"{_module}.set": lambda reader, entries=(): set(map(reader.key, _row(reader, entries))),
        f"{_module}.frozenset": lambda reader, entries=(): frozenset(map(reader.key, _row(reader, entries))),
        f"{_module}.bytearray": _bytes,
        f"{_module}.bytes": lambda _, *arguments: Inert("builtins.bytes") if arguments else b"",  # as protocols before 3 have no bytes
        f"{_module}.complex": lambda *_: Name("builtins", "complex"),
    }  # fmt: skip
_ODD = {
    "torch._utils._rebuild_sparse": "a sparse tensor", "torch._utils._rebuild_nested": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor", "torch._utils._rebuild_": "a special kind of tensor",
    "torch._tensor._rebuild_": "a special kind of tensor", "torch.storage.": "a storage",
}  # fmt: skip
