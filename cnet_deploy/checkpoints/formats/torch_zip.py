"""torch's container since version 1.6: a zip archive with a pickle and one file per storage."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

from cnet_deploy.checkpoints.formats.base import Format
from cnet_deploy.checkpoints.tensor_pickle import TensorReader, storage_type
from cnet_deploy.checkpoints.tensors import Storage
from cnet_deploy.errors import InputRefused
from cnet_deploy.files.pickle_scan import open_zip

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


def _recognises(data: bytes) -> bool:
    """Whether it begins as torch's zip container does."""
    return data[:2] == b"PK"


class _Zip:
    """torch's zip container: ``ROOT/data.pkl`` and one file per storage, ``ROOT/data/KEY``, all uncompressed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.storages = data, dict[str, Storage]()
        with open_zip(data) as archive:
            entries = archive.infolist()
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) != len(entries):
            raise ValueError("the archive has several entries with the same name")
        self.pickle = next(name for name in self.entries if name.rpartition("/")[2] == "data.pkl")
        self.root = self.pickle.removesuffix("data.pkl")

    def read(self) -> Any:
        order = f"{self.root}byteorder"
        if order in self.entries and bytes(self.content(order)) != b"little":
            raise InputRefused("is in big-endian byte order; expected little-endian: load it and save it with torch on another machine")
        return TensorReader(io.BytesIO(self.content(self.pickle)), self.storage).load()

    def storage(self, saved: tuple[Any, ...]) -> Storage:
        """The storage for a persistent id: ``saved`` has its class, key, device and number of elements."""
        kind, key, _, count = saved
        if not isinstance(key, str) or type(count) is not int:
            raise ValueError("it has a reference to a storage without a name")
        dtype, size = storage_type(kind)
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
            raise ValueError(f"{name} is truncated")
        return memoryview(self.data)[begin : begin + entry.file_size]


FORMAT = Format("zip", _recognises, lambda data: (_Zip(data).read(), {}))
