"""A pickle by itself, as pickle.dump writes it: arrays of numpy, and tensors whose storages are small files of torch.save within."""

from __future__ import annotations

import io
import itertools
import pickle
from typing import Any

from cnet_deploy.checkpoints.formats import torch_legacy, torch_zip
from cnet_deploy.checkpoints.formats.base import Format
from cnet_deploy.checkpoints.tensor_pickle import TensorReader
from cnet_deploy.checkpoints.tensors import Storage
from cnet_deploy.files.pickle_reader import Name
from cnet_deploy.files.pickle_scan import examine_within


class _Bare(TensorReader):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), _no_storage)
        self.instructions = itertools.count(1)  # of all storages together
        self.storages: dict[bytes, Storage] = {}

    def called(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        if str(name) != "torch.storage._load_from_bytes":
            return super().called(name, arguments)
        (data,) = arguments
        if not isinstance(data, bytes):
            raise ValueError("a storage is read from something other than bytes")
        if data in self.storages:
            return self.storages[data]
        if problem := examine_within(data, self.instructions).problem:
            raise ValueError(problem)
        inner = next((known for known in (torch_zip.FORMAT, torch_legacy.FORMAT) if known.recognises(data)), None)
        storage = inner.read(data)[0] if inner else None
        if not isinstance(storage, Storage):
            raise ValueError("a storage is not what torch.save writes")
        self.storages[data] = storage
        return storage


def _no_storage(_: tuple[Any, ...]) -> Storage:
    raise pickle.UnpicklingError("it refers to storages, which only files of torch.save have")


# A pickle has no fixed first bytes, so this format recognises any file.
FORMAT = Format("pickle", bool, lambda data: (_Bare(data).load(), {}))
