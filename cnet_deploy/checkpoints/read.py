"""Read a checkpoint's tensors (as arrays) and metadata, without torch and without executing anything in it.

A pickle that asks for more than tensors and plain containers is refused; the message names what it asked for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cnet_deploy.checkpoints.formats import format_of
from cnet_deploy.checkpoints.metadata import METADATA_KEY, with_own
from cnet_deploy.checkpoints.tensors import Contents, StoredTensor
from cnet_deploy.errors import InputRefused, in_words
from cnet_deploy.files import digest, read_bytes, require_digest
from cnet_deploy.files.pickle_reader import OddKey
from cnet_deploy.files.pickle_scan import Findings, examine, is_torchscript

_KINDS = {
    "NoneType": "nothing", "bool": "a truth value", "int": "a number", "float": "a number", "str": "a text", "bytes": "bytes",
    "list": "a list", "tuple": "a list", "set": "a set", "frozenset": "a set", "dict": "a dictionary", "OrderedDict": "a dictionary",
    "Name": "a function or class",
}  # fmt: skip
MAX_PREFIXES = 4  # of DataParallel's "module.", which is added each time that a model is wrapped
MAX_TENSORS = 20_000  # the largest of the paper's networks have some 2,000
MAX_SHARED = 16 << 20  # bytes that all tensors may take beyond four times the file's size: many can be views of one storage


def read_tensors(path: Path | str, sha256: str | None = None, data: bytes | None = None) -> Contents:
    """The state dict of a checkpoint in any container: legacy pickle, zip, safetensors.

    Floating-point tensors become float32. ``sha256`` is the digest that the file must have; ``data`` its bytes if they were already read.
    Raises InputRefused for an unreadable file, for a pickle that asks for more than tensors (with the names), and for a file without a
    state dict.
    """
    path = Path(path)
    data = read_bytes(path) if data is None else data
    require_digest(path, data, sha256)
    if path.suffix == ".onnx":
        raise InputRefused(f"{path}: is an artifact; expected the checkpoint or model that it was made from")
    format, findings = format_of(data, path.suffix), Findings()
    try:
        if format.pickled:
            findings = examine(data)
            if findings.wanted or findings.problem:
                raise ValueError(findings.problem or "it asks for more than tensors")
        loaded, metadata = format.read(data)
        metadata = with_own(_plain_entries(loaded) if format.pickled else metadata)
        return Contents(_state_dict(loaded, len(data)), path.name, digest(data), len(data), format.name, metadata)
    except InputRefused as error:
        raise InputRefused(f"{path}: {error}") from None
    except Exception as error:  # a damaged or hostile file can make its reader raise anything
        if format.pickled:
            raise InputRefused(f"{path}: {_why_unreadable(error, data, findings)}") from None
        remedy = "get it again, or convert the checkpoint again"
        raise InputRefused(f"{path}: is no complete {format.name} file: {in_words(error).partition('. ')[0]}; {remedy}") from None


def _plain_entries(loaded: Any) -> dict[str, Any]:
    """The metadata of a checkpoint: its plain entries beside the tensors."""
    if not isinstance(loaded, dict):
        return {}
    entries = {key: loaded.get(key) for key in ("epoch", "best_prec1", "model", METADATA_KEY)}
    return {
        key: value
        for key, value in entries.items()
        if isinstance(value, (int, float, str)) and (not isinstance(value, float) or math.isfinite(value))
    }


def _why_unreadable(error: Exception, data: bytes, findings: Findings) -> str:
    if is_torchscript(data):
        return "is a TorchScript program, which is code; expected a state dict: torch.save(model.state_dict(), …)"
    text = not data[:4096].strip(b"\t\n\r\f\b" + bytes(range(32, 127)))
    if findings.wanted and (findings.whole or not text):  # a text may begin like a pickle
        whole = findings.wanted[0].startswith(("models.", "torch.nn.", "torchvision."))
        return (
            f"{'is a whole pickled module' if whole else 'holds more than weights'}: its pickle wants {', '.join(findings.wanted[:3])}, "
            "which can run code; expected tensors and plain containers only. "
            "If you trust its origin, open it there and torch.save(model.state_dict(), …)"
        )
    if text:
        return f"is text (it begins {data[:40].decode('ascii', 'replace')!r}); expected a checkpoint (.pth.tar, .pt, .safetensors)"
    if findings.problem and findings.whole:
        return f"is no checkpoint that can be opened safely: {findings.problem}; expected .pth.tar, .pt or .safetensors"
    reason = findings.problem or in_words(error).partition(". ")[0]
    return f"is truncated, damaged or no checkpoint at all ({reason}); expected .pth.tar, .pt or .safetensors"


def _state_dict(loaded: Any, size: int) -> dict[str, npt.NDArray[Any]]:
    entries = loaded
    for key in ("state_dict", "model"):
        if isinstance(entries, dict) and isinstance(entries.get(key), dict):
            entries = entries.get(key)
    if not isinstance(entries, dict) or not entries:
        raise InputRefused(f"holds {'nothing' if isinstance(entries, dict) else _kind(entries)}; expected a state dict")
    if len(entries) > MAX_TENSORS:
        raise InputRefused(f"holds {len(entries)} entries; expected a state dict of at most {MAX_TENSORS} tensors")
    tensors: dict[str, StoredTensor] = {}
    for key, value in entries.items():
        if not isinstance(key, str) or not isinstance(value, StoredTensor):
            what = f"entry {key!r}" if isinstance(key, str) else f"an entry whose key is {_kind(key)}"
            raise InputRefused(f"{what} holds {_kind(value)}; expected a state dict, which has only tensors by name")
        tensors[key] = value
    for _ in range(MAX_PREFIXES):
        if all(key.startswith("module.") for key in tensors):
            tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    left, arrays = 4 * size + MAX_SHARED, dict[str, npt.NDArray[Any]]()
    for name, tensor in tensors.items():
        left -= tensor.bytes_as_array(name)
        if left < 0 and tensor.shape:
            raise InputRefused(f"{name} has shape {tensor.shape} in a file of {size} bytes; expected weights of its own")
        arrays[name] = tensor.array(name)
    return arrays


def _kind(value: object) -> str:
    """A noun for a value's type, for messages."""
    if isinstance(value, StoredTensor):
        return "a tensor"
    name = value.type if isinstance(value, OddKey) else type(value).__name__
    return _KINDS.get(name, f"an object of type {name}")
