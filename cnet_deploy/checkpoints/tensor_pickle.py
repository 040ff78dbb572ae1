"""Pickles of tensors and plain containers, as torch.save writes them, read without torch and without running anything they name.

A name in the pickle stands for itself; what calling it would build is told by the functions below, all of them inert. Opcodes that
torch.save has no use for are not read at all.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from cnet_deploy.checkpoints.tensors import Storage, StoredTensor

MAX_COPIED = 1 << 20  # elements and bytes that are copied from one container into another: a pickle may copy one any number of times
# torch's classes of storages: the type of the numbers in them, and its bytes.
STORAGES: dict[str, tuple[str | None, int]] = {
    "FloatStorage": ("float32", 4), "DoubleStorage": ("float64", 8), "HalfStorage": ("float16", 2), "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8), "IntStorage": ("int32", 4), "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1), "BoolStorage": ("bool", 1), "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1), "QUInt8Storage": ("quint8", 1), "QInt32Storage": ("qint32", 4), "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1), "UntypedStorage": (None, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A function, class or constant that a pickle names. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def storage(self) -> tuple[str | None, int]:
        """Type and size of an element of the storages of this class. Raises ValueError for what is none."""
        if self.module not in ("torch", "torch.storage") or self.name not in STORAGES:
            raise ValueError(f"{self} is no class of storages")
        return STORAGES[self.name]


class OddKey:
    """In the place of a key that is no text and no small number: hashing it, or telling it from others, could take for ever."""

    def __init__(self, key: object) -> None:
        self.type = type(key).__name__


_LOADS: dict[int, Any] = pickle._Unpickler.dispatch
_AS_THEY_ARE = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
    pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINUNICODE,
    pickle.BINUNICODE8, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS,
    pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE,
    pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID,
)  # fmt: skip
FindStorage = Callable[[tuple[Any, ...]], Storage]


# The reader written in Python: the one in C sizes tables by numbers in the file.
class Reader(pickle._Unpickler):
    """Reads one pickle. ``find_storage`` gives the storage of a persistent id, whose first word was already taken off."""

    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = {opcode[0]: _LOADS[opcode[0]] for opcode in _AS_THEY_ARE}

    def __init__(self, file: io.BytesIO, find_storage: FindStorage) -> None:
        super().__init__(file, encoding="utf-8")
        self.find_storage, self.left = find_storage, MAX_COPIED

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            raise pickle.UnpicklingError(f"it has opcode or memo {error.args[:1]}, which torch.save does not write") from None

    def find_class(self, module: str, name: str) -> Name:
        return Name(module, name)

    def persistent_load(self, saved: Any) -> Any:
        if not isinstance(saved, tuple) or not saved or saved[0] not in ("storage", "module"):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        return saved[1] if saved[0] == "module" else self.find_storage(saved[1:])

    def copied(self, values: Any) -> Any:
        """``values``, on its way into another container."""
        self.left -= len(values)
        if self.left < 0:
            raise pickle.UnpicklingError("it copies more than it has")
        return values

    def _fill(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError("it sets entries of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_as_key(key)] = value

    def _set_item(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._fill(self.stack[-1], items)

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._fill(self.stack[-1], items)

    def _add_items(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise pickle.UnpicklingError("it adds elements to what is no set")
        self.stack[-1].update(map(_as_key, items))

    def _frozen_set(self) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(map(_as_key, items)))

    def _call(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self, self.stack[-1], arguments)

    def _byte_array(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.stack.append(self.read(min(length, sys.maxsize)))  # pickle's own takes the memory before it looks what is there

    def _build(self) -> None:
        self.stack.pop()  # attributes beside a container's entries or a tensor's numbers: nobody looks at them

    dispatch |= {
        pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items, pickle.ADDITEMS[0]: _add_items, pickle.FROZENSET[0]: _frozen_set,
        pickle.REDUCE[0]: _call, pickle.NEWOBJ[0]: _call, pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _byte_array,
    }  # fmt: skip


def _as_key(key: Any) -> Any:
    # Numbers of equal hash begin at 2^61 - 1.
    plain = key is None or isinstance(key, (str, bool)) or (isinstance(key, int) and abs(key) < (1 << 61) - 1)
    return key if plain else OddKey(key)


def _made(reader: Reader, called: Any, arguments: Any) -> Any:
    """What calling the name would give, or what stands for that here."""
    if not isinstance(called, Name) or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("it calls something that has no name")
    name = str(called)
    if name in _MAKERS:
        return _MAKERS[name](reader, *arguments)
    for beginning, odd in _ODD.items():
        if name.startswith(beginning):
            return StoredTensor("", odd=odd)
    raise pickle.UnpicklingError(f"it calls {name}")


def _ordered(reader: Reader, entries: Any = ()) -> OrderedDict[Any, Any]:
    pairs = list(reader.copied(entries.items() if isinstance(entries, dict) else entries))
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError("a dictionary is made from something else than pairs")
    return OrderedDict((_as_key(key), value) for key, value in pairs)


def _row(reader: Reader, entries: Any = ()) -> list[Any]:
    if not isinstance(entries, (list, tuple, set, frozenset)):
        raise ValueError(f"a container is made from a {type(entries).__name__}")
    return list(reader.copied(entries))


def _encoded(reader: Reader, text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("it encodes something else than Latin-1 text")
    reader.copied(text)
    return text.encode("latin-1")


def _bytes(reader: Reader, values: Any = b"", *encoding: Any) -> bytes:
    return values if isinstance(values, bytes) else _encoded(reader, values, *encoding)


def _tensor(_: Reader, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any, dtype: str | None = None) -> StoredTensor:
    """``more`` are the gradient's flag, the hooks, and what else torch notes of a tensor, where it does."""
    metadata = more[2] if len(more) > 2 else None
    dtype = dtype or (storage.dtype if isinstance(storage, Storage) else None)
    if not isinstance(storage, Storage) or dtype is None or not isinstance(metadata, (dict, type(None))):
        raise ValueError("a tensor is made from something else than a storage")
    for row in (shape, strides, (offset,)):
        if not isinstance(row, tuple) or not all(type(number) is int and 0 <= number < 1 << 63 for number in row):
            raise ValueError("a tensor's shape, strides and offset are no whole numbers")
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    return StoredTensor(dtype, storage, offset, shape, strides, bool((metadata or {}).get("neg")))


def _typed_tensor(
    reader: Reader, storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> StoredTensor:
    return _tensor(reader, storage, offset, shape, strides, gradient, hooks, metadata, dtype=_type_name(dtype))


def _without_data(_: Reader, dtype: Any, *__: Any) -> StoredTensor:
    return StoredTensor(_type_name(dtype), odd="a tensor without data (meta)")


def _parameter(_: Reader, data: Any = None, *__: Any) -> Any:
    return data


def _of_type(reader: Reader, called: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor of a class of its own, or with attributes: the numbers are what counts."""
    return _made(reader, called, arguments)


def _type_name(dtype: Any) -> str:
    if not isinstance(dtype, Name) or dtype.module != "torch":
        raise ValueError("a tensor's type is none of torch's")
    return dtype.name


_MAKERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _ordered,
    "_codecs.encode": _encoded,
    "torch.Size": lambda reader, entries=(): tuple(_row(reader, entries)),
    "torch.device": lambda _, kind, index=None: kind if index is None else f"{kind}:{index}",
    "torch.serialization._get_layout": lambda _, name: name,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_data,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type": _of_type,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}
for _module in ("builtins", "__builtin__"):
    _MAKERS |= {
        f"{_module}.set": lambda reader, entries=(): set(map(_as_key, _row(reader, entries))),
        f"{_module}.bytearray": _bytes,
        f"{_module}.complex": lambda *_: Name("builtins", "complex"),
    }  # fmt: skip
_ODD = {
    "torch._utils._rebuild_sparse": "a sparse tensor", "torch._utils._rebuild_nested": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor", "torch._utils._rebuild_": "a tensor of a kind of its own",
    "torch._tensor._rebuild_": "a tensor of a kind of its own", "torch.storage.": "a storage",
}  # fmt: skip
