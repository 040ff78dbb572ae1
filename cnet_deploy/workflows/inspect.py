"""Describe a file without running it: architecture, form, the state of pruning layer by layer, digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.artifacts.pair import Pair, read_pair
from cnet_deploy.checkpoints.tensors import FoundWeights, InertObject
from cnet_deploy.checkpoints.weights import companions_in_words
from cnet_deploy.errors import InputRefused, PruningUnfinished, naming, printable
from cnet_deploy.exporters import module_of, target_by_suffix, target_of_file, targets
from cnet_deploy.exporters.base import Inside
from cnet_deploy.files import digest
from cnet_deploy.files.kinds import EXPECTED, describe, kind_of_file
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture

SHOWN = 10  # sets of weights and inert objects that the text names; the JSON has all


@dataclass(frozen=True)
class LayerState:
    """One learned group convolution: the fewest and the most input channels that a group still reads, and the reference's counters."""

    name: str
    in_channels: int
    survivors: tuple[int, int]
    stage: int | None
    finished: bool | None


@dataclass(frozen=True)
class Inspection:
    """The description of a file. ``problem`` says why it can't be used as it is; None if it can.

    ``operators`` counts an artifact's nodes by operator; ``layers`` is empty for anything but the training form. ``weights`` and what
    follows is of checkpoints: see ``checkpoints.tensors.Contents``; ``dialect`` says whose names the tensors have.
    """

    path: str
    container: str
    bytes: int
    sha256: str
    form: str | None = None
    architecture: Architecture | None = None
    layers: tuple[LayerState, ...] = ()
    operators: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    weights: tuple[FoundWeights, ...] = ()
    why: str = ""
    dialect: str | None = None
    companions: tuple[str, ...] = ()
    inert: tuple[InertObject, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        values = {own.name: getattr(self, own.name) for own in fields(self)}
        for name in ("layers", "weights", "inert"):  # what asdict would copy besides is plain, and may be half a million numbers
            values[name] = [asdict(entry) for entry in values[name]]
        values["architecture"] = self.architecture and self.architecture.to_dict()
        if self.architecture:
            values["cost"] = asdict(self.architecture.cost())
        return values

    def summary(self) -> str:
        """Several lines of text."""
        lines = [f"{self.path}: {self.container}, {self.bytes:,} bytes, sha256 {self.sha256}"]
        lines.append(f"form: {self.form or 'not of the family'}")
        if self.architecture:
            lines.append(self.architecture.summary())
            lines += _costs(self.architecture, self.form)
        lines += self._reading()
        for key, value in self.details.items():
            if key == "manifest" and isinstance(value, dict):
                lines += _manifest(value)
            elif key == "quantization" and isinstance(value, Mapping):
                lines += _quantization(value)
            elif value is not None:
                lines.append(f"{key}: {_preparation(value) if key == 'preprocessing' else _in_text(value)}")
        if self.operators:
            lines.append("operators: " + ", ".join(f"{name} {count}" for name, count in self.operators.items()))
        for layer in self.layers:
            low, high = layer.survivors
            kept = str(low) if low == high else f"{low}-{high}"
            stage = "not recorded" if layer.stage is None else str(layer.stage)
            state = {True: "finished", False: "unfinished", None: "unknown"}[layer.finished]
            lines.append(f"  {layer.name}: {kept} of {layer.in_channels} channels per group, stage {stage}, {state}")
        if self.problem:
            lines.append(f"can't be used as it is: {self.problem}")
        return "\n".join(map(printable, lines))  # text from a file must not forge lines or control the terminal

    def _reading(self) -> list[str]:
        """How a checkpoint was read: its sets of weights, whose names they have, what was left out, what was left inert."""
        lines = [
            f"weights: {one.key}, {one.tensors} tensors, {one.bytes:,} bytes" + (f" - read: {self.why}" if one.chosen else "")
            for one in self.weights[:SHOWN]
        ]
        if more := len(self.weights) - SHOWN if len(self.weights) > SHOWN else 0:
            lines.append(f"weights: {more} other sets")
        if self.dialect:
            lines.append(f"dialect: {self.dialect}")
        if self.companions:
            lines.append(f"left out: {companions_in_words(self.companions)}")
        if self.inert:
            names = [one.name + (" (WOULD RUN CODE where pickles are loaded the usual way)" if one.runs_code else "") for one in self.inert]
            lines.append("left inert: " + ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""))
        return lines


def _costs(arch: Architecture, form: str | None) -> list[str]:
    """What the group-conv form costs; of a training checkpoint also what `convert` makes of it by default."""

    def line(what: str, keep: float) -> str:
        own = replace(arch, classifier_keep=keep)
        cost = own.cost()
        read = "whole" if keep == 1 else f"reads {own.kept_features} of {own.features} features"
        counts = f"{cost.flops / 1e6:,.2f} M FLOPs, {cost.macs / 1e6:,.2f} M multiply-adds, {cost.params:,} params"
        return f"{what}: {counts} (classifier {read})"

    if form != "training" or not arch.condenses_classifier:
        return [line("as group-conv form", arch.classifier_keep)]
    return [line("as group-conv form", 1.0), line("as `convert` makes it by default", arch.usual_keep)]


def _preparation(value: Any) -> str:
    """How images are prepared, in words; the value as it is where a file's own notes have something else under that name."""
    try:
        return Preprocessing.from_dict(value).summary()
    except InputRefused:
        return _in_text(value)


def _in_text(value: Any) -> str:
    """A value of JSON without brackets and quotation marks.

    >>> _in_text({"opset": 17, "classes": ["cat", "dog"]})
    'opset 17, classes cat, dog'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_in_text, value))
    return str(value)


def _quantization(values: Mapping[str, Any]) -> list[str]:
    """How an artifact came to int8, from its manifest, which may be a stranger's."""
    lines = [f"quantization: {_in_text({key: value for key, value in values.items() if key not in ('accuracy', 'kept', 'layers')})}"]
    if (kept := values.get("kept")) and isinstance(kept, Mapping):
        lines.append(f"kept in higher precision: {_in_text(kept)}")
    accuracy = values.get("accuracy")
    if isinstance(accuracy, Mapping) and all(_is_share(accuracy.get(key)) for key in ("fp32", "int8", "agreement")):
        int8, fp32, same = (float(accuracy[key]) for key in ("int8", "fp32", "agreement"))
        images, budget = accuracy.get("images"), accuracy.get("budget")
        lines.append(
            f"accuracy: top-1 {int8:.2%}, in fp32 {fp32:.2%}, {same:.2%} of answers the same, on {_in_text(images)} images "
            f"(budget {_in_text(budget)} points)"
        )
    elif accuracy is not None:
        lines.append(f"accuracy: {_in_text(accuracy)}")
    return lines


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _manifest(manifest: Mapping[str, Any]) -> list[str]:
    """What a manifest says of its artifact: the precision, and a line for each verification."""
    lines = [f"precision: {manifest['precision']}"]
    for entry in manifest["verification"]:
        error, scale, passed = entry.get("max_error"), entry.get("scale"), entry.get("passed")
        if isinstance(passed, bool) and isinstance(cosine := entry.get("cosine"), float) and "least_cosine" in entry:
            state = "run in int8" if entry.get("only_shown") else "verified in int8" if passed else "DIFFERS from its model"
            agreement = entry.get("agreement")
            same = f", {agreement:.2%} of answers the same" if isinstance(agreement, float) else ""
            lines.append(f"{state} on {entry.get('inputs')}: cosine {cosine:.5f}{same}")
            continue
        if isinstance(error, float) and isinstance(scale, float) and isinstance(passed, bool):
            state = "verified" if passed else "DIFFERS from its model"
            lines.append(f"{state} on {entry.get('inputs')}: max error {error:.2e} on logits up to {scale:.3g}")
        else:
            lines.append(f"verification: {_in_text(entry)}")
    return lines if manifest["verification"] else [*lines, "not verified yet"]


def inspect(path: Path | str, *, sha256: str | None = None, plot: Path | str | None = None, **overrides: Any) -> Inspection:
    """Describe a checkpoint, a model or an artifact. Nothing in it is executed and no network is built.

    ``plot`` is an SVG file to draw a checkpoint's groups into (see workflows/plot_groups.py). ``overrides``: see ``checkpoints.load``.
    Raises InputRefused for a file that can't be read, is damaged or not of the family. A checkpoint whose pruning is unfinished is
    described, with ``problem`` set.
    """
    path = Path(path)
    kind = kind_of_file(path)
    target = target_of_file(path, kind)
    if target is None:
        if kind is not None and kind.opened_by != "checkpoint":
            by_suffix = target_by_suffix(path.suffix)
            expected = EXPECTED.get(targets()[by_suffix].kind if by_suffix else "", "a checkpoint, a model or an artifact of `export`")
            raise InputRefused(f"{path}: {describe(kind, expected)}")
        return _inspect_checkpoint(path, {**overrides, "sha256": sha256}, plot)
    if plot is not None:
        raise InputRefused(f"{path}: is an artifact, which has no learned groups to draw; expected the checkpoint that it was made from")
    pair = read_pair(path, sha256)
    if look := getattr(module_of(target), "inspect", None):
        with naming(path):
            return _inspect_inside(pair, targets()[target].container, look(pair.data))
    return _inspect_by_manifest(pair)


def _inspect_checkpoint(path: Path, overrides: dict[str, Any], plot: Path | str | None) -> Inspection:
    from cnet_deploy.checkpoints.metadata import METADATA_KEY, class_names_of, preprocessing_of
    from cnet_deploy.checkpoints.read import read_tensors
    from cnet_deploy.checkpoints.recognise import architecture_of, infer_form, pruning_layers, updates
    from cnet_deploy.models.pruning import require_finished

    read = read_tensors(path, overrides.pop("sha256"), weights=overrides.pop("weights", None))
    details = {key: value for key, value in read.metadata.items() if key != METADATA_KEY}
    if own := read.metadata.get(METADATA_KEY):
        details.update({"preprocessing": own.preprocessing.to_dict(), "tool": own.tool})
        if own.source.sha256:  # a network that was trained from nothing has none
            details["source"] = asdict(own.source)
    architecture, problem = None, None
    try:
        pruning, form = pruning_layers(read.tensors), infer_form(read.tensors)
        updating = updates(read.tensors)
        architecture = architecture_of(read, **overrides, pruning=pruning)
        details["preprocessing"] = preprocessing_of(read, architecture).to_dict()
        details["class_names"] = list(class_names_of(read, architecture.classes)) or None
        if pruning:
            require_finished(pruning, architecture.group_1x1, architecture.condense_factor)
        if updating and (groups := architecture.update_groups):
            require_finished(updating, groups, groups)
    except PruningUnfinished as error:
        problem = str(error)
    except InputRefused as error:
        raise InputRefused(f"{path}: {error}") from None
    layers = []
    for layer in (*pruning, *updating):
        finished = None
        if architecture:
            groups, factor = architecture.group_1x1, architecture.condense_factor
            if layer.lost == "output":
                groups = factor = architecture.update_groups or 1
            try:
                require_finished([layer], groups, factor)
                finished = True
            except InputRefused:
                finished = False
        layers.append(LayerState(layer.name, layer.in_channels, layer.survivors, layer.stage, finished))
    if plot is not None:
        from cnet_deploy.workflows.plot_groups import connections_of, write

        write(path, list(connections_of(read, architecture, [*pruning, *updating])), plot)
    return Inspection(
        str(path), read.container, read.size, read.digest, form, architecture, tuple(layers), details=details, problem=problem,
        weights=read.weights, why=read.why, dialect=read.dialect.name if read.dialect else None,
        companions=read.companions, inert=read.inert,
    )  # fmt: skip


def _inspect_by_manifest(pair: Pair) -> Inspection:
    """Describe a library or an engine by its manifest alone, since looking inside would mean running it."""
    path, data, manifest = pair.path, pair.data, pair.manifest
    if manifest is None:
        raise InputRefused(f"{path}: has no manifest {manifest_path(path).name} beside it; expected the pair that `export` wrote")
    details: dict[str, Any] = {"source_sha256": manifest.source_sha256, **manifest.details}
    if manifest.preprocessing is not None:
        details["preprocessing"] = manifest.preprocessing.to_dict()
    if manifest.class_names:
        details["class_names"] = list(manifest.class_names)
    details["manifest"] = {"precision": manifest.precision, "verification": list(manifest.verification)}
    form = "group-conv" if manifest.architecture else None
    target = targets().get(manifest.target)
    container = target.container if target is not None and target.container else manifest.target
    return Inspection(str(path), container, len(data), manifest.sha256, form, manifest.architecture, details=details)


def _inspect_inside(pair: Pair, container: str, inside: Inside) -> Inspection:
    """Describe an artifact that can be read without being run."""
    details = dict(inside.details)
    if inside.precision is not None:
        details["weights"] = inside.precision  # of the file itself, whatever its manifest has
    if inside.class_names:
        details["class_names"] = list(inside.class_names)
    if inside.preprocessing is not None:
        details["preprocessing"] = inside.preprocessing.to_dict()
    manifest = pair.manifest
    details["manifest"] = None if manifest is None else {"precision": manifest.precision, "verification": list(manifest.verification)}
    if manifest is not None and "quantization" in manifest.details:
        details["quantization"] = manifest.details["quantization"]
    form = "group-conv" if inside.architecture else None
    return Inspection(
        str(pair.path), container, len(pair.data), digest(pair.data), form, inside.architecture, operators=dict(inside.operators),
        details=details,
    )  # fmt: skip
