"""torch's container before 1.6: a row of pickles, then the storages."""

from __future__ import annotations

import io
import struct
from typing import Any

from cnet_deploy.checkpoints.formats.base import Format
from cnet_deploy.checkpoints.tensor_pickle import TensorReader, storage_type
from cnet_deploy.checkpoints.tensors import Storage

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


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
        return TensorReader(self.file, self.storage).load()

    def _known(self, key: Any) -> Any:
        if not isinstance(key, (str, int)) or key not in self.sizes:
            raise ValueError("its list of storages has one that nothing refers to")
        return key

    def storage(self, saved: tuple[Any, ...]) -> Storage:
        """The storage of ``saved``: its class, key, place and number of elements, and the part of it that is meant."""
        kind, key, _, count, part = saved
        if not isinstance(key, (str, int)) or type(count) is not int or count < 0:
            raise ValueError("it refers to a storage that has no name")
        dtype, size = storage_type(kind)
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


# A pickle may begin with nearly anything: what no other container recognises is tried as this one.
FORMAT = Format("legacy pickle", bool, lambda data: (_Legacy(data).read(), {}))
