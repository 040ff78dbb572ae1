"""torch's container before version 1.6: several pickles, then the storages."""

from __future__ import annotations

import io
import struct
from typing import Any

from cnet_deploy.checkpoints.formats.base import Format
from cnet_deploy.checkpoints.tensor_pickle import TensorReader, storage_type
from cnet_deploy.checkpoints.tensors import Storage
from cnet_deploy.files.pickle_scan import is_legacy

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class _Legacy:
    """torch's container before 1.6: magic number, protocol, system, object and storage keys as pickles in a row; then for each key the
    number of elements and the elements."""

    def __init__(self, data: bytes) -> None:
        self.data, self.file = data, io.BytesIO(data)
        self.sizes: dict[Any, tuple[str | None, int, int]] = {}  # type, bytes of an element, elements
        self.contents: dict[Any, memoryview] = {}

    def read(self) -> Any:
        if self._next() != LEGACY_MAGIC or self._next() != LEGACY_PROTOCOL:
            raise ValueError("it does not begin as files of torch.save do")
        self._next()  # the system: only its byte order would matter, and torch always writes little-endian
        loaded, keys = self._next(), self._next()
        if not isinstance(keys, list) or len(set(map(self._known, keys))) != len(keys):
            raise ValueError("its list of storages is damaged")
        place = self.file.tell()
        for key in keys:
            _, size, count = self.sizes[key]
            (stored,) = struct.unpack_from("<q", self.data, place)
            place += 8
            if stored != count or place + count * size > len(self.data):
                raise ValueError(f"storage {key} has {stored} numbers in {len(self.data) - place} bytes; expected {count}")
            self.contents[key] = memoryview(self.data)[place : place + count * size]
            place += count * size
        return loaded

    def _next(self) -> Any:
        return TensorReader(self.file, self.storage).load()

    def _known(self, key: Any) -> Any:
        if not isinstance(key, (str, int)) or key not in self.sizes:
            raise ValueError("its list of storages has one that no tensor uses")
        return key

    def storage(self, saved: tuple[Any, ...]) -> Storage:
        """The storage for a persistent id: ``saved`` has its class, key, device, number of elements, and the part to take (or None)."""
        kind, key, _, count, part = saved
        if not isinstance(key, (str, int)) or type(count) is not int or count < 0:
            raise ValueError("it has a reference to a storage without a name")
        dtype, size = storage_type(kind)
        if self.sizes.setdefault(key, (dtype, size, count)) != (dtype, size, count):
            raise ValueError(f"storage {key} is used with two types or sizes")
        offset, length = (0, count) if part is None else part[1:]
        if not all(type(number) is int and number >= 0 for number in (offset, length)) or offset + length > count:
            raise ValueError(f"a part of storage {key} extends beyond its end")

        def fetch() -> memoryview:
            if key not in self.contents:
                raise ValueError(f"storage {key} is not in the file")
            return self.contents[key][offset * size : (offset + length) * size]

        return Storage(dtype, fetch)


FORMAT = Format("legacy pickle", is_legacy, lambda data: (_Legacy(data).read(), {}))
