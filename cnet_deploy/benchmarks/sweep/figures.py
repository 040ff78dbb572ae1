"""Figures of an artifact that no machine makes flicker: operators, multiply-adds, parameters, bytes, precision. They gate tightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.artifacts.pair import read_manifest
from cnet_deploy.errors import naming, printable
from cnet_deploy.exporters import module_of, target_by_suffix, target_of_file, targets
from cnet_deploy.exporters.base import Inside
from cnet_deploy.files import read_bytes
from cnet_deploy.files.kinds import kind_of
from cnet_deploy.files.strict_json import Whole, closed
from cnet_deploy.workflows.inspect import inspect

BYTES_TOLERANCE = 0.01  # metadata, and a compiler's small changes


@closed
@dataclass(frozen=True)
class Figures:
    """What was counted, None or empty where the file does not tell.

    ``multiply_adds`` and ``params`` of an ONNX file are counted in its graph, whatever its metadata say; of anything else they follow from
    the architecture. So only figures of one ``format`` (the suffix of such files) are compared. ``operators`` counts nodes of a graph, or
    layers of a native library, by kind.
    """

    format: str
    bytes: Whole
    multiply_adds: Whole | None = None
    params: Whole | None = None
    precision: str | None = None
    operators: Mapping[str, Whole] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; ``Figures(**values)`` is the inverse."""
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """A figure that differs: ``worse`` if that alone fails a gate."""

    what: str
    before: str
    after: str
    worse: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.before} -> {self.after}{' (worse)' if self.worse else ''}"


def figures_of(path: Path | str, weights: str | None = None) -> Figures:
    """The figures of an artifact or a model. ``weights``: see ``checkpoints.load``. Raises InputRefused for a file that can't be read."""
    path = Path(path)
    data = read_bytes(path)
    manifest = read_manifest(path, data) if manifest_path(path).exists() else None
    precision = manifest.precision if manifest else None
    target = target_of_file(path, kind_of(data))
    format = "checkpoint" if target_by_suffix(path.suffix) else path.suffix  # model.onnx may be one
    if target is not None:
        format = targets()[target].suffix
    if target is not None and (look := getattr(module_of(target), "inspect", None)):
        with naming(path):
            inside: Inside = look(data)
        precision = inside.precision or precision
        return Figures(format, len(data), inside.multiply_adds, inside.params, precision, dict(sorted(inside.operators.items())))
    inspection = inspect(path, weights=weights)
    cost = inspection.architecture.cost("training" if inspection.form == "training" else "group-conv") if inspection.architecture else None
    operators = {key: value for key, value in (inspection.details.get("operators") or {}).items() if isinstance(value, int)}
    return Figures(format, len(data), cost.macs if cost else None, cost.params if cost else None, precision, operators)


def other_precision(base: Figures, head: Figures) -> bool:
    """Whether both tell their precision and differ in it. Operators and weights are then of other kinds, and their numbers say nothing."""
    return bool(base.precision and head.precision and base.precision != head.precision)


def changes(base: Figures, head: Figures) -> list[Change]:
    """What differs, with before and after. Worse is what costs: more operators, multiply-adds, parameters, over 1 % more bytes, another
    precision. A figure that either side does not tell is not compared, and none is if the formats differ. Between two precisions only the
    bytes are."""
    changes: list[Change] = []
    if base.format != head.format:
        return changes
    figures = (
        ("multiply-adds", base.multiply_adds, head.multiply_adds, 0.0),
        ("parameters", base.params, head.params, 0.0),
        ("bytes", base.bytes, head.bytes, BYTES_TOLERANCE),
    )
    other = other_precision(base, head)
    for what, before, after, allowed in figures[2:] if other else figures:
        if before is not None and after is not None and before != after:
            changes.append(Change(what, f"{before:,}", f"{after:,}", after > before * (1 + allowed)))
    if other:
        changes.append(Change("precision", printable(base.precision), printable(head.precision), True))
    if not other and base.operators and head.operators and dict(base.operators) != dict(head.operators):
        before, after = sum(base.operators.values()), sum(head.operators.values())
        changes.append(Change("operators", f"{before:,}", f"{after:,}", after > before))
        for name in sorted({*base.operators, *head.operators}):
            counts = base.operators.get(name, 0), head.operators.get(name, 0)
            if counts[0] != counts[1]:
                changes.append(Change(f"operator {printable(name)}", f"{counts[0]:,}", f"{counts[1]:,}", False))
    return changes
