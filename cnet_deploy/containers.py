"""What a file of weights holds, whatever its container: torch's zip, torch's legacy row of pickles, safetensors. No torch is needed.

Whatever is wrong with a file raises ValueError, zipfile's errors or pickle's; who reads it says which file it was.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

import safetensors

from cnet_deploy.stored_tensors import Storage, StoredTensor
from cnet_deploy.tensor_pickles import Name, Reader

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_SAFETENSORS_TYPES = {
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "U8": "uint8", "I8": "int8", "I16": "int16",
    "I32": "int32", "I64": "int64", "BOOL": "bool",
}  # fmt: skip


def is_zip(data: bytes) -> bool:
    """Whether it begins as torch's zip container does."""
    return data[:2] == b"PK"


def is_safetensors(data: bytes) -> bool:
    """Whether it begins as a safetensors file does."""
    return len(data) >= 10 and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8 and data[8:9] == b"{"


def read_pickled(data: bytes) -> Any:
    """The object that torch.save wrote, its tensors as StoredTensor. ``pickles.examine`` must have found nothing in it before."""
    return _Zip(data).read() if is_zip(data) else _Legacy(data).read()


def read_safetensors(data: bytes) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Tensors and metadata."""
    tensors = {}
    for name, entry in safetensors.deserialize(data):  # type: ignore[no-untyped-call]
        shape = tuple(entry["shape"])
        strides = [1] * len(shape)
        for axis in range(len(shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * shape[axis + 1]
        dtype = _SAFETENSORS_TYPES.get(entry["dtype"], entry["dtype"])
        tensors[name] = StoredTensor(dtype, _whole(dtype, memoryview(entry["data"])), 0, shape, tuple(strides))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, dict(header.get("__metadata__") or {})


def _whole(dtype: str, content: memoryview) -> Storage:
    return Storage(dtype, lambda: content)


class _Zip:
    """torch's zip container: ``ROOT/data.pkl`` and a file for each storage, ``ROOT/data/KEY``, all of them stored as they are."""

    def __init__(self, data: bytes) -> None:
        self.data, self.storages = data, dict[str, Storage]()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) != len(entries):
            raise ValueError("the archive has several entries of one name")
        self.pickle = next(name for name in self.entries if name.rpartition("/")[2] == "data.pkl")
        self.root = self.pickle.removesuffix("data.pkl")

    def read(self) -> Any:
        order = f"{self.root}byteorder"
        if order in self.entries and bytes(self.content(order)) != b"little":
            raise ValueError("its numbers are in another byte order; expected little-endian ones")
        return Reader(io.BytesIO(self.content(self.pickle)), self.storage).load()

    def storage(self, saved: tuple[Any, ...]) -> Storage:
        """The storage of ``saved``: its class, key, place and number of elements."""
        kind, key, _, count = saved
        if not isinstance(kind, Name) or not isinstance(key, str) or type(count) is not int:
            raise ValueError("it refers to a storage that has no name")
        dtype, size = kind.storage
        name = f"{self.root}data/{key}"

        def fetch() -> memoryview:
            content = self.content(name)
            if len(content) != count * size:
                raise ValueError(f"{name} has {len(content)} bytes; expected {count * size}")
            return content

        return Storage(dtype, fetch)

    def content(self, name: str) -> memoryview:
        """The bytes of an entry."""
        if name not in self.entries:
            raise ValueError(f"the archive has no entry {name}")
        entry = self.entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise ValueError(f"{name} is compressed or encrypted; expected it as torch.save stores it")
        begin = entry.header_offset
        signature, _, _, _, _, _, _, _, _, name_length, extra = _LOCAL_HEADER.unpack_from(self.data, begin)
        begin += _LOCAL_HEADER.size + name_length + extra
        if signature != b"PK\x03\x04" or begin + entry.file_size > len(self.data):
            raise ValueError(f"{name} is not whole")
        return memoryview(self.data)[begin : begin + entry.file_size]


class _Legacy:
    """torch's container before 1.6: magic number, protocol, system, object and keys as a row of pickles; then each storage's number of
    elements and the elements, in the order of the keys."""

    def __init__(self, data: bytes) -> None:
        self.data, self.file = data, io.BytesIO(data)
        self.sizes: dict[Any, tuple[str | None, int, int]] = {}  # type, bytes of an element, elements
        self.contents: dict[Any, memoryview] = {}

    def read(self) -> Any:
        if self._next() != LEGACY_MAGIC or self._next() != LEGACY_PROTOCOL:
            raise ValueError("it does not begin as torch.save begins")
        self._next()  # of the system only the byte order would matter, and torch writes little-endian everywhere
        loaded, keys = self._next(), self._next()
        if not isinstance(keys, list) or len(set(map(self._known, keys))) != len(keys):
            raise ValueError("its list of storages is none")
        place = self.file.tell()
        for key in keys:
            _, size, count = self.sizes[key]
            (found,) = struct.unpack_from("<q", self.data, place)
            place += 8
            if found != count or place + count * size > len(self.data):
                raise ValueError(f"storage {key} has {found} numbers in {len(self.data) - place} bytes; expected {count}")
            self.contents[key] = memoryview(self.data)[place : place + count * size]
            place += count * size
        return loaded

    def _next(self) -> Any:
        return Reader(self.file, self.storage).load()

    def _known(self, key: Any) -> Any:
        if not isinstance(key, (str, int)) or key not in self.sizes:
            raise ValueError("its list of storages has one that nothing refers to")
        return key

    def storage(self, saved: tuple[Any, ...]) -> Storage:
        """The storage of ``saved``: its class, key, place and number of elements, and the part of it that is meant."""
        kind, key, _, count, part = saved
        if not isinstance(kind, Name) or not isinstance(key, (str, int)) or type(count) is not int or count < 0:
            raise ValueError("it refers to a storage that has no name")
        dtype, size = kind.storage
        if self.sizes.setdefault(key, (dtype, size, count)) != (dtype, size, count):
            raise ValueError(f"storage {key} is of two types or sizes")
        offset, length = (0, count) if part is None else part[1:]
        if not all(type(number) is int and number >= 0 for number in (offset, length)) or offset + length > count:
            raise ValueError(f"a part of storage {key} reaches beyond it")

        def fetch() -> memoryview:
            if key not in self.contents:
                raise ValueError(f"storage {key} is not in the file")
            return self.contents[key][offset * size : (offset + length) * size]

        return Storage(dtype, fetch)
