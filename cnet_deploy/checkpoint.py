"""Reading any checkpoint of the family without executing anything in it, and writing models.

Files are read with ``weights_only=True``; whatever a pickle asks for beyond tensors and plain containers is refused by name.
"""

from __future__ import annotations

import io
import json
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from cnet_deploy import __version__
from cnet_deploy.architecture import Architecture
from cnet_deploy.errors import InputRefused, OutputRefused, naming
from cnet_deploy.files import atomic_output, digest, read_bytes, require_digest
from cnet_deploy.inference import infer_architecture, infer_form
from cnet_deploy.labels import checked_labels
from cnet_deploy.models import DenselyConnected, Source, build
from cnet_deploy.pickles import examine, is_torchscript
from cnet_deploy.preprocessing import Preprocessing

METADATA_KEY = "cnet_deploy"
METADATA_VERSION = 1
MAX_PREFIXES = 4  # of DataParallel's "module.", one for each time a model was wrapped
MAX_EXPANDED = 16 << 20  # bytes that a view may claim over a smaller storage
_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """A file's tensors (float32 or integers, on the CPU, ``module.`` stripped) and what else it says of itself."""

    tensors: dict[str, torch.Tensor]
    source: str
    digest: str
    size: int
    container: str
    metadata: dict[str, Any]


def read_tensors(path: Path | str, sha256: str | None = None) -> Contents:
    """The state dict of a checkpoint, whatever its container: legacy pickle, zip, safetensors.

    Floating-point tensors become float32. Raises InputRefused for anything unreadable, for a pickle that asks for more than
    tensors (naming what it wanted), and for a file that holds no state dict.
    """
    path = Path(path)
    data = read_bytes(path)
    require_digest(path, data, sha256)
    if path.suffix == ".onnx":
        raise InputRefused(f"{path}: is an artifact; expected the checkpoint or model that it was made from")
    metadata: dict[str, Any] = {}
    try:
        if path.suffix == ".safetensors" or _looks_like_safetensors(data):
            container, loaded, metadata = "safetensors", *_read_safetensors(data)
        else:
            container, loaded = "zip" if data[:4] == b"PK\x03\x04" else "legacy pickle", read_pickle(data)
            if isinstance(loaded, dict):
                found = {key: dict.get(loaded, key) for key in ("epoch", "best_prec1", "model", METADATA_KEY)}
                metadata = _with_own({key: value for key, value in found.items() if isinstance(value, (int, float, str))})
        return Contents(_state_dict(loaded), path.name, digest(data), len(data), container, metadata)
    except InputRefused as error:
        raise InputRefused(f"{path}: {error}") from None
    # What a damaged or hostile file makes its reader raise has no bound: any exception here means that it was not read.
    except Exception as error:
        raise InputRefused(f"{path}: {_why_unreadable(error, data)}") from None


def load(
    path: Path | str,
    *,
    groups: int | None = None,
    condense_factor: int | None = None,
    input_size: tuple[int, int] | None = None,
    stem_stride: int | None = None,
    sha256: str | None = None,
) -> DenselyConnected:
    """A model from a checkpoint of the family, in the form in which it is stored, ready to run.

    ``groups``, ``condense_factor``, ``input_size`` (height, width) and ``stem_stride``: see ``infer_architecture``.
    Raises InputRefused as ``read_tensors`` and ``infer_architecture`` do; the message begins with the file's name.
    """
    read = read_tensors(path, sha256)
    with naming(path):
        form = infer_form(read.tensors)
        arch = architecture_of(read, groups=groups, condense_factor=condense_factor, input_size=input_size, stem_stride=stem_stride)
        model = build(arch, form)
        own = read.metadata.get(METADATA_KEY)
        steps = Preprocessing.from_dict(own["preprocessing"]) if own else model.preprocessing
        if own and (names := own.get("class_names", own.get("training", {}).get("class_names"))):
            model.class_names = checked_labels(names, arch.classes)
    # Counters may be absent from old files, and are one number in any shape; everything else was checked name by name.
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.reshape(shapes[name]) for name, value in read.tensors.items()}, strict=False)
    model.source = Source(read.digest, read.source, form)
    if own and own["source"]["sha256"]:
        model.source = Source(own["source"]["sha256"], own["source"]["name"], own["source"]["form"])
    # Resizing belongs to the input size: where that was overridden, only the statistics are the file's.
    if steps.crop == arch.input_size:
        model.preprocessing = steps
    else:
        model.preprocessing = replace(model.preprocessing, statistics=steps.statistics, mean=steps.mean, std=steps.std)
    return model


def architecture_of(
    read: Contents,
    *,
    groups: int | None = None,
    condense_factor: int | None = None,
    input_size: tuple[int, int] | None = None,
    stem_stride: int | None = None,
) -> Architecture:
    """The Architecture of what was read, every tensor checked against it: our own metadata where there is any, else inferred.

    Raises InputRefused as ``infer_architecture`` does, and for metadata that the tensors belie.
    """
    own = read.metadata.get(METADATA_KEY)
    stored = Architecture.from_dict(own["architecture"]) if own else None
    if own and own.get("form") != infer_form(read.tensors):
        raise InputRefused(
            f"the metadata says that this is the form {own.get('form')!r}, but the tensors are in {infer_form(read.tensors)} form"
        )
    if stored:
        input_size, stem_stride = input_size or stored.input_size, stem_stride or stored.stem_stride
    if stored and infer_form(read.tensors) == "training":
        groups, condense_factor = groups or stored.group_1x1, condense_factor or stored.condense_factor
    arch = infer_architecture(read.tensors, groups=groups, condense_factor=condense_factor, input_size=input_size, stem_stride=stem_stride)
    if stored and replace(stored, input_size=arch.input_size, stem_stride=arch.stem_stride, classifier_keep=arch.classifier_keep) != arch:
        raise InputRefused(f"the metadata says {stored.summary()}, but the tensors are those of {arch.summary()}")
    return arch


def save(model: DenselyConnected, path: Path | str, *, source: Path | str | None = None) -> None:
    """Write a model: ``.safetensors`` (ours) or ``.pth.tar`` (the reference's converted format), by the suffix of ``path``.

    ``source`` is the file it was made from, which is never overwritten. Raises OutputRefused for another suffix, for a model that
    the reference's ``--evaluate-from`` could not read back (``.pth.tar`` only), and where the place can't be written to.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".tar", ".pth"):
        raise OutputRefused(f"{path}: unknown suffix; expected .safetensors, or .pth.tar for the reference's converted format")
    if path.suffix != ".safetensors" and (reasons := reference_cannot_read(model)):
        raise OutputRefused(f"{path}: the reference can't read {'; nor '.join(reasons)}; write .safetensors instead")
    with atomic_output(path, source=source) as temporary:
        temporary.write_bytes(_safetensors_bytes(model) if path.suffix == ".safetensors" else _reference_bytes(model))


def reference_cannot_read(model: DenselyConnected) -> list[str]:
    """Why the reference's ``condensenet_converted`` can't hold this model; empty if it can (reference: models/, main.py)."""
    arch = model.architecture
    reasons = []
    if arch.kind != "condensenet" or model.form != "group-conv":
        reasons.append(f"a {arch.kind} in {model.form} form (only CondenseNet in group-conv form)")
    if arch.condense_factor != arch.group_1x1:
        reasons.append(f"C={arch.condense_factor} with G={arch.group_1x1} (only C = G)")
    if model.form == "group-conv" and arch.kept_features != int(arch.features * 0.5):
        reasons.append(f"a classifier keep of {arch.classifier_keep:g} (only 0.5)")
    if arch.classes not in (10, 100, 1000):
        reasons.append(f"{arch.classes} classes (only 10, 100 and 1000)")
    stride, final = (2, 7) if arch.classes == 1000 else (1, 8)
    if arch.stem_stride != stride or arch.final_size != (final, final):
        reasons.append(
            f"{arch.classes} classes with stem stride {arch.stem_stride} and a last map of {arch.final_size[0]}x{arch.final_size[1]} "
            f"(only {stride} and {final}x{final})"
        )
    return reasons


def _safetensors_bytes(model: DenselyConnected) -> bytes:
    # One entry, since the library writes several in an order of its own and the file would differ from run to run.
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    return safetensors.torch.save(tensors, {METADATA_KEY: own_metadata(model)})


def own_metadata(model: DenselyConnected, **more: Any) -> str:
    """What a file of ours says of its model beyond the tensors, as JSON; ``more`` are further entries."""
    source = model.source
    metadata = {
        "version": METADATA_VERSION,
        "tool": f"cnet-deploy {__version__}",
        "form": model.form,
        "architecture": model.architecture.to_dict(),
        "preprocessing": model.preprocessing.to_dict(),
        "source": {"sha256": source.digest if source else "", "name": source.name if source else "", "form": (source or model).form},
    }
    if model.class_names:
        metadata["class_names"] = list(model.class_names)
    return json.dumps({**metadata, **more}, sort_keys=True)


def _reference_bytes(model: DenselyConnected) -> bytes:
    state = OrderedDict((f"module.{name}", value.clone()) for name, value in model.state_dict().items())
    buffer = io.BytesIO()
    # The legacy container: the torch of the reference's day (1.1) reads no other.
    torch.save({"state_dict": state}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _looks_like_safetensors(data: bytes) -> bool:
    return len(data) >= 10 and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8 and data[8:9] == b"{"


def _read_safetensors(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = _with_own(dict(header.get("__metadata__") or {}))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputRefused(f"is no whole safetensors file: {_first_line(error)}") from None
    return tensors, metadata


def _with_own(metadata: dict[str, Any]) -> dict[str, Any]:
    """A file's metadata with what this tool wrote of itself parsed and checked."""
    if METADATA_KEY in metadata:
        own = json.loads(metadata[METADATA_KEY])
        if not isinstance(own, dict) or own.get("version") != METADATA_VERSION:
            raise InputRefused(f"was written by another version of cnet-deploy; expected metadata version {METADATA_VERSION}")
        _check_metadata(own)
        metadata[METADATA_KEY] = own
    return metadata


def _check_metadata(own: Mapping[str, Any]) -> None:
    for part in ("architecture", "preprocessing", "source"):
        if not isinstance(own.get(part), dict):
            raise ValueError(f"metadata has no {part}")
    source = own["source"]
    if not all(isinstance(source.get(key), str) for key in ("sha256", "name", "form")) or source["form"] not in (
        "training",
        "group-conv",
    ):
        raise ValueError("metadata has no whole source (sha256, name, form)")


def read_pickle(data: bytes) -> Any:
    """What torch.save wrote, if it is tensors and plain containers. Raises whatever its readers do for anything else."""
    findings = examine(data)
    if findings.wanted or findings.problem:
        raise ValueError(findings.problem or "it asks for more than tensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _why_unreadable(error: Exception, data: bytes) -> str:
    if is_torchscript(data):
        return "is a TorchScript program, which is code; expected a state dict: torch.save(model.state_dict(), …)"
    findings = examine(data)
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
    # torch's own words on such files advise to load them with all guards off: they must not reach the user.
    reason = findings.problem or f"{type(error).__name__}: {error}"
    reason = type(error).__name__ if "weights_only" in reason else _first_line(reason)
    return f"is truncated, damaged or no checkpoint at all ({reason}); expected .pth.tar, .pt or .safetensors"


def _state_dict(loaded: Any) -> dict[str, torch.Tensor]:
    # Methods are taken from the types: a pickle can hide an instance's own behind attributes.
    found = loaded
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(dict.get(found, key), dict):
            found = dict.get(found, key)
    if not isinstance(found, dict) or not found:
        what = "nothing" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise InputRefused(f"holds {what}; expected a state dict")
    tensors: dict[str, torch.Tensor] = {}
    for key, value in dict.items(found):
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            what = repr(key) if isinstance(key, str) else f"with a key of type {type(key).__name__}"
            raise InputRefused(f"entry {what} is of type {type(value).__name__}; expected a state dict: names of tensors and nothing else")
        tensors[key] = value
    for _ in range(MAX_PREFIXES):
        if all(key.startswith("module.") for key in tensors):
            tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {name: _plain(name, value) for name, value in tensors.items()}


def _plain(name: str, value: torch.Tensor) -> torch.Tensor:
    """A dense tensor on the CPU that owns its numbers; floating-point ones in float32."""
    if value.is_nested or value.layout != torch.strided or value.is_quantized or value.is_meta or value.dtype not in _DTYPES:
        raise InputRefused(f"{name} is a tensor of {value.dtype} and layout {value.layout}; expected a dense one of real numbers")
    # A view can claim any size over a storage of one number.
    if value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), MAX_EXPANDED):
        raise InputRefused(
            f"{name} has shape {tuple(value.shape)} over {value.untyped_storage().nbytes()} bytes; expected weights of its own"
        )
    plain = torch.Tensor.detach(value).resolve_neg()
    return plain.to(torch.float32 if plain.is_floating_point() else plain.dtype).contiguous()


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0].partition(". ")[0][:200]
