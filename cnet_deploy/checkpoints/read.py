"""Read a checkpoint's tensors (as arrays) and metadata, without torch and without executing anything in it.

Container -> sets of weights -> dialect -> the original's names. Objects beside the weights are left inert: see files/pickle_reader.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.checkpoints.formats import format_of, torch_legacy
from cnet_deploy.checkpoints.formats.archives import unpacked
from cnet_deploy.checkpoints.metadata import METADATA_KEY, with_own
from cnet_deploy.checkpoints.tensor_pickle import as_tensor
from cnet_deploy.checkpoints.tensors import Contents, FoundWeights, InertObject
from cnet_deploy.checkpoints.update_tables import with_update_tables
from cnet_deploy.checkpoints.weights import WeightSet, choose, companions_in_words, find, kind, tensors_of
from cnet_deploy.errors import InputRefused, in_words, printable
from cnet_deploy.files import digest, read_bytes, require_digest
from cnet_deploy.files.kinds import GZIP, ZIP, describe, kind_of
from cnet_deploy.files.pickle_reader import Inert
from cnet_deploy.files.pickle_scan import Findings, examine, runs_code

MAX_SHARED = 16 << 20  # bytes that all tensors may take beyond four times the file's size: many can be views of one storage
_EXPECTED = "a checkpoint (.pth.tar, .pt or .safetensors)"
_NAMES = ("class_to_idx", "classes", "class_names", "idx_to_class", "id2label", "label2id")  # entries that name the classes
_MOST = 1 << 63  # beyond it numbers say nothing, and may have more digits than Python prints
_WHOLE = ("models.", "torch.nn.", "torchvision.")  # the beginnings of classes of modules


@dataclass(frozen=True)
class _Opened:
    """A file's object, its tensors as StoredTensor, and what is known of it before that is looked at."""

    loaded: Any
    metadata: Mapping[str, Any]
    container: str
    size: int
    inert: tuple[InertObject, ...]


def read_tensors(path: Path | str, sha256: str | None = None, data: bytes | None = None, *, weights: str | None = None) -> Contents:
    """A set of weights of a checkpoint in any container: legacy pickle, zip, safetensors, or one of them in a zip archive or gzip file.

    Names are the original's, without what wraps a network; floating-point tensors become float32. ``weights`` is the key of the set to
    take, as `inspect` lists them; None takes the file's ``state_dict``, or the only set of the family. ``sha256`` is the digest that the
    file must have; ``data`` its bytes if they were already read. Raises InputRefused for an unreadable file, for one without weights, for
    one with several sets that fit equally, and for a set that holds anything but tensors.
    """
    path = Path(path)
    data = read_bytes(path) if data is None else data
    require_digest(path, data, sha256)
    try:
        opened = _open(data, path.suffix)
        sets = find(opened.loaded)
        if not sets:
            raise InputRefused(_without_weights(opened))
        chosen, why = choose(sets, weights)
        stored, companions = tensors_of(chosen)
        tensors = _arrays(stored, opened.size)
        if dialect := chosen.dialect:
            tensors = {name: np.ascontiguousarray(value.T) if dialect.transposes(name) else value for name, value in tensors.items()}
        tensors = with_update_tables(with_plain_classifier(tensors))
    except InputRefused as error:
        raise InputRefused(f"{path}: {error}") from None
    except Exception as error:  # a damaged or hostile file can make its reader raise anything
        raise InputRefused(f"{path}: {_why_unreadable(error, unpacked(data)[0], path.suffix)}") from None
    return Contents(
        tensors, path.name, digest(data), len(data), opened.container, dict(opened.metadata),
        weights=tuple(FoundWeights(one.place, len(one.names), one.bytes, one is chosen) for one in sets), why=why, dialect=chosen.dialect,
        companions=companions, inert=opened.inert, notes=tuple(_notes([] if weights else sets, chosen, why, companions)),
        named=_entries(opened.loaded, _NAMES),
    )  # fmt: skip


def _notes(sets: Sequence[WeightSet], chosen: WeightSet, why: str, companions: Sequence[str]) -> Iterator[str]:
    """What the owner of a file should know of how it was read."""
    others = [one for one in sets if one.dialect and one is not chosen]
    taken = f"takes the weights {printable(chosen.place, 60)} ({why})"
    if others:
        listed = ", ".join(printable(one.place, 60) for one in others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
        yield f"{taken}; --weights takes others: {listed}"
    elif chosen.dialect and any(one.key == "state_dict" and not one.dialect for one in sets):
        yield f"{taken}: its state_dict is that of another network"
    if companions:
        yield f"leaves out what lies beside the network: {companions_in_words(companions)}"


def open_pickled(data: bytes) -> Any:
    """The object of a checkpoint that torch.save wrote, its tensors as StoredTensor, objects of other classes inert.

    Raises ValueError for bytes that are not safe to read, and any other exception for a damaged file.
    """
    inner, _ = unpacked(data)
    if problem := examine(inner).problem:
        raise ValueError(problem)
    return format_of(inner).read(inner)[0]


def _open(data: bytes, suffix: str) -> _Opened:
    _require_kind(data)
    inner, archive = unpacked(data)
    if archive:
        try:
            _require_kind(inner, archives=False)
        except InputRefused as error:
            raise InputRefused(f"is a {archive}, whose content {error}") from None
    format, findings = format_of(inner, suffix), Findings()
    if format.pickled:
        findings = examine(inner)
        if findings.problem:
            raise ValueError(findings.problem)
    loaded, metadata = format.read(inner)
    metadata = with_own(_plain_entries(loaded) if format.pickled else metadata)
    inert = tuple(InertObject(name, runs_code(name)) for name in findings.wanted)
    return _Opened(loaded, metadata, f"{archive}: {format.name}" if archive else format.name, len(inner), inert)


def _require_kind(data: bytes, archives: bool = True) -> None:
    """Raise InputRefused for a file whose first bytes are those of something else, or of an archive if those are not expected."""
    kind = kind_of(data)
    if kind in (GZIP, ZIP) and not archives:
        raise InputRefused(describe(kind, "a checkpoint"))
    if kind is not None and kind.opened_by != "checkpoint":
        raise InputRefused(describe(kind, "the checkpoint that it was made from" if kind.opened_by else _EXPECTED))


def _plain_entries(loaded: Any) -> dict[str, Any]:
    """The metadata of a checkpoint: its plain entries beside the tensors."""
    return {
        key: value
        for key, value in _entries(loaded, ("epoch", "best_prec1", "model", METADATA_KEY)).items()
        if isinstance(value, str) or (isinstance(value, (int, float)) and -_MOST < value < _MOST)
    }


def _entries(loaded: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Those of some entries that a file has."""
    loaded = loaded.entries if isinstance(loaded, Inert) else loaded
    return {key: loaded[key] for key in keys if key in loaded} if isinstance(loaded, dict) else {}


def _without_weights(opened: _Opened) -> str:
    """Why a whole file has no weights."""
    loaded, inert = opened.loaded, opened.inert
    held = [loaded, *(loaded.values() if isinstance(loaded, dict) else ())]
    module = next((one.name for one in held if isinstance(one, Inert) and isinstance(one.state, dict) and "_modules" in one.state), None)
    if module or (isinstance(loaded, Inert) and loaded.name.startswith(_WHOLE)):
        return (
            f"is a whole pickled module ({module or loaded.name}), which is code: nothing of it is run; expected its weights: "
            "open it where it was made and torch.save(model.state_dict(), …)"
        )
    empty = isinstance(loaded, dict) and not loaded
    text = f"holds {'nothing' if empty else kind(loaded)}; expected a state dict, which has tensors by name"
    if runs := [one.name for one in inert if one.runs_code]:
        text += f" (it asks for {', '.join(runs[:3])}, which would run code where pickles are loaded the usual way; nothing of it was run)"
    elif inert:
        text += f" (it asks for {', '.join(one.name for one in inert[:3])}, which is left inert)"
    return text


def _why_unreadable(error: Exception, data: bytes, suffix: str) -> str:
    format = format_of(data, suffix)
    if not format.pickled:
        return f"is no complete {format.name} file: {in_words(error)}; get it again, or convert the checkpoint again"
    findings = examine(data)
    if findings.problem and findings.whole:
        return f"is no checkpoint that can be opened safely: {findings.problem}; expected {_EXPECTED}"
    known = kind_of(data)
    what = "is truncated or damaged" if known is not None else "is truncated, damaged or no checkpoint at all"
    if findings.whole and format is not torch_legacy.FORMAT:  # whose tensors follow behind the pickle
        what = "is damaged"
    return f"{what} ({in_words(error)}); expected {_EXPECTED}: get it again"


def _arrays(stored: Mapping[str, tuple[Any, Any]], size: int) -> dict[str, npt.NDArray[Any]]:
    left, arrays = 4 * size + MAX_SHARED, dict[str, npt.NDArray[Any]]()
    for name, (value, mask) in stored.items():
        parts = []
        for part in (value, mask):
            if part is None:
                continue
            tensor = as_tensor(part)
            left -= tensor.bytes_as_array(name)
            if left < 0 and tensor.shape:
                raise InputRefused(f"{name} has shape {tensor.shape} in a file of {size} bytes; expected weights of its own")
            parts.append(tensor.array(name))
        if len({part.shape for part in parts}) > 1:
            raise InputRefused(f"{name} has shape {parts[0].shape} and its mask {parts[1].shape}; expected the same")
        arrays[name] = parts[0] if len(parts) == 1 else parts[0] * parts[1].astype(np.float32)
    return arrays


def with_plain_classifier(tensors: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a converted network; where it has a plain classifier, as after transfer learning, that reads all features."""
    weight, features = tensors.get("classifier.weight"), tensors.get("features.norm_last.weight")
    if weight is None or features is None or weight.ndim != 2 or weight.shape[1:] != features.shape or "classifier.index" in tensors:
        return tensors
    if not any(name.endswith(".conv_1.index") for name in tensors):
        return tensors
    renamed = {f"classifier.linear.{name[11:]}" if name.startswith("classifier.") else name: value for name, value in tensors.items()}
    return renamed | {"classifier.index": np.arange(weight.shape[1])}
