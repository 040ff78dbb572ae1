"""Checkpoints of a training run in the reference's format and folders (reference: main.py, save_checkpoint, load_checkpoint).

    SAVEDIR/save_models/checkpoint_NNN.pth.tar   epoch, model, state_dict, best_prec1, optimizer, and this tool's metadata as JSON
    SAVEDIR/save_models/latest.txt               the path of the last one
    SAVEDIR/save_models/model_best.pth.tar       a copy of the best one

Files are written atomically. ``best_prec1`` is the best top-1 accuracy in percent (the reference stores the largest error there, by
mistake). The JSON has what tensors don't tell, and a digest that detects damage even if the file can be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from cnet_deploy.checkpoints.metadata import METADATA_KEY, own_metadata
from cnet_deploy.checkpoints.read import open_pickled
from cnet_deploy.checkpoints.tensor_pickle import as_tensor
from cnet_deploy.checkpoints.tensors import StoredTensor
from cnet_deploy.checkpoints.weights import choose, find, inert_in, kind, tensors_of
from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused, in_words, naming
from cnet_deploy.files import atomic_output, check_output, read_bytes
from cnet_deploy.files.pickle_arrays import StoredArray
from cnet_deploy.files.strict_json import Whole, convert, parse_json, shown
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.training.recipe import MODELS

_NAME = re.compile(r"checkpoint_(\d{3,6})\.pth\.tar")
MOST_VALUES = 200_000  # in an optimiser's state: a small pickle could hold one list very often
KEPT = 2  # checkpoints kept with ``no_save_model``


@dataclass(frozen=True)
class State:
    """The contents of a checkpoint: the last epoch done (from 0), tensors by name, the optimiser's state, and ``training``, the metadata
    of the run."""

    path: Path
    epoch: int
    best_prec1: float
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True)
class DataDigest:
    """The images of a part of the data: how many, and the digest of their labels (see ``Dataset.labels_sha256``)."""

    images: Whole
    labels_sha256: str


@dataclass(frozen=True)
class Recorded:
    """The part of a run's metadata that is compared with the data when it is resumed. Missing in the reference's checkpoints, and
    ``data`` in those of version 0.1.0."""

    class_names: tuple[str, ...] = ()
    data: dict[str, DataDigest] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run in ``savedir``. ``no_save_model``: keep only the best and the last two."""

    def __init__(self, savedir: Path, no_save_model: bool = False) -> None:
        self.folder, self.no_save_model = savedir / "save_models", no_save_model

    def prepare(self) -> None:
        """Create the folder. Raises OutputRefused if that fails, or if its files can't be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputRefused(f"{self.folder}: can't be made: {error.strerror}") from None
        for name in ("latest.txt", "model_best.pth.tar"):
            check_output(self.folder / name)

    def save(
        self,
        model: DenselyConnected,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        best_prec1: float,
        is_best: bool,
        training: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint, its path into latest.txt, and a copy if it is the best so far.

        Raises CheckFailed, and writes nothing, where a weight, a buffer or a momentum is not finite.
        """
        require_finite(model, optimizer, epoch)
        path = self.folder / f"checkpoint_{epoch:03d}.pth.tar"
        tensors = OrderedDict((name, value.detach().cpu().contiguous()) for name, value in model.state_dict().items())
        state = {
            "epoch": epoch,
            "model": next(name for name, kind in MODELS.items() if kind == model.architecture.kind),
            "state_dict": OrderedDict((f"module.{name}", value) for name, value in tensors.items()),
            "best_prec1": best_prec1,
            "optimizer": _on_cpu(optimizer.state_dict()),
        }
        if model.architecture.updates:
            # To the code of CondenseNet V2: ``epoch`` is the last one done (timm/models/helpers.py there, resume_checkpoint).
            state["version"] = 2
        for group in state["optimizer"]["param_groups"]:
            group["fused"] = None  # the reader of the checkpoint chooses for itself
        own = json.loads(own_metadata(model, training=dict(training), tensors_sha256=_digest(tensors, state["optimizer"])))
        buffer = io.BytesIO()
        # The legacy container, the only one that the reference's torch reads.
        torch.save({**state, METADATA_KEY: json.dumps(own, sort_keys=True)}, buffer, _use_new_zipfile_serialization=False)
        _write(path, buffer.getvalue())
        _write(self.folder / "latest.txt", os.fsencode(path))
        if is_best:
            _write(self.folder / "model_best.pth.tar", buffer.getvalue())
        if self.no_save_model:
            for old in self.numbered()[KEPT:]:
                old.unlink(missing_ok=True)
        return path

    def numbered(self) -> list[Path]:
        """All numbered checkpoints, the latest first."""
        if not self.folder.is_dir():
            return []
        entries = [(int(match[1]), entry) for entry in self.folder.iterdir() if (match := _NAME.fullmatch(entry.name))]
        return [entry for _, entry in sorted(entries, reverse=True)]

    def latest(self, model: str, notify: Callable[[str], None]) -> State | None:
        """The latest valid checkpoint; None if there are no checkpoints. ``notify`` gets a line for each damaged one that is skipped.

        Raises InputRefused if all are damaged, and for a checkpoint of another model.
        """
        candidates = self.numbered()
        pointer = self.folder / "latest.txt"
        with contextlib.suppress(InputRefused):  # the pointer is only a hint
            words = os.fsdecode(read_bytes(pointer, 1 << 16)).splitlines()[-1:]  # a folder's name may have several lines
            named = self.folder / Path(words[0]).name if words else pointer
            candidates.sort(key=lambda path: path != named)
        refused = ""
        for path in candidates:
            try:
                state = read(path)
            except InputRefused as error:
                notify(f"{error}; falling back to the checkpoint before it")
                refused = str(error)
                continue
            stored = state.training.get("model")
            if stored != model and stored is not None:
                of = repr(stored) if isinstance(stored, str) else "of an unknown kind"
                raise InputRefused(f"{path}: is of model {of}; expected {model!r}: give another --savedir, or train that model")
            return state
        if candidates:
            raise InputRefused(
                f"{self.folder}: none of its {len(candidates)} checkpoints can be resumed from ({refused}); move them away to start anew"
            )
        return None


def read(path: Path) -> State:
    """Read a checkpoint to resume from, the reference's or this tool's. Nothing in it is executed; objects beside the weights are ignored.

    Raises InputRefused if it is damaged, and for a whole file that is no checkpoint to resume from; the message says which.
    """
    data = read_bytes(path)
    try:
        loaded = open_pickled(data)
    except InputRefused as error:
        raise InputRefused(f"{path}: {error}") from None
    except Exception as error:  # a damaged file can raise anything
        raise InputRefused(f"{path}: is damaged ({in_words(error)})") from None
    with naming(path):
        return _state(path, loaded)


def _state(path: Path, loaded: Any) -> State:
    """The state in a whole file. Raises InputRefused where something that training needs is missing, or is not what was saved."""
    if not isinstance(loaded, dict) or (missing := [key for key in ("epoch", "state_dict", "optimizer") if key not in loaded]):
        lacks = f"it has no {' and no '.join(missing)}" if isinstance(loaded, dict) else f"it holds {kind(loaded)}"
        raise InputRefused(f"is no checkpoint to resume from: {lacks}; expected epoch, state_dict and optimizer, as training saves them")
    epoch, optimizer = loaded["epoch"], loaded["optimizer"]
    if type(epoch) is not int or epoch < 0:
        raise InputRefused(f"is no checkpoint to resume from: its epoch is {kind(epoch)}; expected a number from 0")
    if not isinstance(optimizer, dict) or (inert := inert_in(optimizer)) is not None:
        holds = kind(optimizer) if not isinstance(optimizer, dict) else f"a dictionary with the object {inert}"
        raise InputRefused(f"is no checkpoint to resume from: its optimizer is {holds}; expected optimizer.state_dict()")
    chosen, _ = choose(find(loaded), "state_dict")
    if chosen.dialect is None or chosen.dialect.table:
        names = chosen.dialect.name if chosen.dialect else "another network"
        raise InputRefused(f"is no checkpoint to resume from: its tensors have the names of {names}; expected the reference's")
    stored, _ = tensors_of(chosen)
    if any(mask is not None for _, mask in stored.values()):
        raise InputRefused("is no checkpoint to resume from: its weights have masks of torch.nn.utils.prune; expected those of training")
    try:
        tensors = {name: _as_torch(value, name) for name, (value, _) in stored.items()}
        momenta = _as_torch(optimizer)
    except InputRefused:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise InputRefused(f"is damaged ({in_words(error)})") from None
    training = _own_training(loaded, tensors, momenta)
    if name := _not_finite(tensors, momenta):
        raise InputRefused(f"is of a run that had failed: {name} holds NaN or infinite values; expected finite weights and momenta")
    return State(path, epoch, _accuracy(loaded.get("best_prec1")), tensors, momenta, {**training, "model": loaded.get("model")})


def _own_training(loaded: Mapping[str, Any], tensors: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """What this tool wrote of the run; empty for the reference's checkpoints. Raises InputRefused if the tensors are not those saved."""
    if METADATA_KEY not in loaded:
        return {}
    try:
        own = parse_json(loaded[METADATA_KEY])
        training, sha256 = dict(own["training"]), own["tensors_sha256"]
        same = sha256 == _digest(tensors, optimizer)
    except Exception:  # damaged text can raise anything
        raise InputRefused("is damaged (its metadata can't be read)") from None
    if not same:
        raise InputRefused("is damaged (its tensors are not those that were saved)")
    for name in ("recipe", "conditions"):
        if not isinstance(training.get(name, {}), Mapping):
            raise InputRefused(f"is damaged (the {name} in its metadata is {shown(training[name])}; expected an object)")
    with naming("is damaged"):
        convert(training, Recorded)
    return training


def require_finite(model: DenselyConnected, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Raise CheckFailed where a weight, a buffer or a momentum is NaN or infinite after an epoch."""
    if name := _not_finite(model.state_dict(), optimizer.state_dict()):
        raise CheckFailed(
            f"{name} is no longer finite after epoch {epoch}, which was not saved; lower --lr, and --resume from the last checkpoint"
        )


def _not_finite(tensors: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> str:
    """The first tensor with a value that is not finite; empty where there is none."""
    entries = optimizer.get("state")
    momenta = {f"momentum {number}": entry.get("momentum_buffer") for number, entry in entries.items()} if _of_entries(entries) else {}
    return next((name for name, value in {**tensors, **momenta}.items() if _is_bad(value)), "")


def _of_entries(entries: object) -> TypeGuard[Mapping[Any, Mapping[str, Any]]]:
    return isinstance(entries, Mapping) and all(isinstance(entry, Mapping) for entry in entries.values())


def _is_bad(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all())


def _accuracy(best: Any) -> float:
    """``best_prec1``, which was stored as a number, a number of numpy or a tensor; 0 where it is something else, which a run soon beats."""
    if isinstance(best, (StoredTensor, StoredArray)):
        best = as_tensor(best).array("best_prec1")
        best = float(best.reshape(-1)[0]) if best.size == 1 else None
    return float(best) if isinstance(best, (int, float)) and math.isfinite(best) else 0.0


def _write(path: Path, data: bytes) -> None:
    with atomic_output(path) as temporary:
        temporary.write_bytes(data)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(entry) for key, entry in value.items()}
    return [_on_cpu(entry) for entry in value] if isinstance(value, list) else value


def _as_torch(value: Any, name: str = "a tensor", left: Iterator[int] | None = None) -> Any:
    """``value`` with stored tensors and arrays replaced by torch tensors, equal to the bit. ``left`` ends after as many values as may be
    there."""
    left = iter(range(MOST_VALUES)) if left is None else left
    if next(left, None) is None:
        raise ValueError(f"it holds more than {MOST_VALUES} values")
    if isinstance(value, (StoredTensor, StoredArray)):
        value = as_tensor(value)
        numbers = torch.from_numpy(value.bits(name)).view(getattr(torch, value.dtype))
        # In torch's own memory and with the stored strides: the rounding of kernels depends on both.
        made = torch.empty_strided(value.shape, value.strides, dtype=numbers.dtype) if value.dense else torch.empty_like(numbers)
        return made.copy_(numbers)
    if isinstance(value, dict):
        return type(value)((key, _as_torch(entry, f"{key}", left)) for key, entry in value.items())
    return [_as_torch(entry, name, left) for entry in value] if isinstance(value, list) else value


def _digest(tensors: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> str:
    """SHA-256 of the weights, buffers and momenta, in order."""
    sha256 = hashlib.sha256()
    momenta = [entry.get("momentum_buffer") for _, entry in sorted(optimizer.get("state", {}).items())]
    for tensor in (*tensors.values(), *momenta):
        if tensor is not None:
            sha256.update(tensor.contiguous().numpy().tobytes())
    return sha256.hexdigest()
