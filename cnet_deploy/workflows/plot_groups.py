"""Draw which inputs each learned group reads, layer by layer, as SVG; of CondenseNet V2 also which channels each group updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy import svg as drawing
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.checkpoints.recognise import architecture_of, infer_form, pruning_layers, updates
from cnet_deploy.checkpoints.tensors import Contents
from cnet_deploy.errors import InputRefused, PruningUnfinished, naming
from cnet_deploy.files import atomic_output
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.pruning import LayerPruning
from cnet_deploy.svg import COLOURS, QUIET

WIDTH, LEFT, RIGHT, HEADING = 960, 12, 12, 16
ROW, GAP = 5, 10  # pixels: height of a group, space between two layers
LEAST = 240  # pixels of a layer: those with few inputs are stretched
MAX_DASHES = 400_000  # CondenseNet-182 has some 100,000


@dataclass(frozen=True)
class Connections:
    """The inputs that each group of a 1x1 convolution reads: ``reads`` [G, in]; or, where it ``updates``, the outputs that it writes."""

    name: str
    reads: npt.NDArray[np.bool_]
    updates: bool = False

    @property
    def dashes(self) -> int:
        """Number of shapes to draw: a line for each group and a dash for each run of channels that it reads."""
        return len(self.reads) + int(self.reads[:, 0].sum()) + int((self.reads[:, 1:] & ~self.reads[:, :-1]).sum())

    @property
    def title(self) -> str:
        """One line of text: what the layer keeps."""
        kept = int(self.reads.sum())
        unread = int((~self.reads.any(axis=0)).sum())
        what, does = ("outputs", "writes") if self.updates else ("inputs", "reads")
        words = f"{self.name}: {kept:,} of {self.reads.size:,} {what} of groups kept ({kept / self.reads.size:.0%})"
        return words + (f", {unread} channels that no group {does}" if unread else "")


def plot(path: Path | str, output: Path | str, *, sha256: str | None = None, **overrides: Any) -> None:
    """Draw the groups of a checkpoint or a model into an SVG file: a line for each group, a dash where it reads a channel.

    The length of a line is the layer's number of inputs, which shows how a dense block grows; layers with few inputs are stretched to a
    length at which dashes can be told apart. ``overrides``: see ``checkpoints.load``.
    Raises InputRefused for a file that can't be read or has no learned groups, OutputRefused if the picture can't be written,
    Unavailable if matplotlib is missing.
    """
    read = read_tensors(path, sha256, weights=overrides.pop("weights", None))
    with naming(path):
        layers = list(connections(read, overrides))
    write(path, layers, output)


def write(path: Path | str, layers: list[Connections], output: Path | str) -> None:
    """Draw the ``layers`` of the file ``path``. Raises as ``plot`` does."""
    if not layers:
        raise InputRefused(f"{path}: has no learned groups to draw; expected a CondenseNet, or a DenseNet with learned group convolutions")
    if (dashes := sum(layer.dashes for layer in layers)) > MAX_DASHES:
        raise InputRefused(f"{path}: its groups take {dashes} lines and dashes to draw; expected at most {MAX_DASHES}")
    with atomic_output(output, source=path) as temporary:
        temporary.write_text(draw(Path(path).name, layers), encoding="utf-8")


def connections(read: Contents, overrides: dict[str, Any]) -> Iterator[Connections]:
    """The groups of every learned group convolution, in the order in which they run; unfinished pruning is shown as it is."""
    arch = None
    try:
        arch = architecture_of(read, **overrides)
    except PruningUnfinished:  # the masks can still be drawn
        if infer_form(read.tensors) != "training":
            raise
    return connections_of(read, arch, [*pruning_layers(read.tensors), *updates(read.tensors)])


def connections_of(read: Contents, arch: Architecture | None, pruning: list[LayerPruning]) -> Iterator[Connections]:
    """``connections`` of a file whose architecture and pruning are known; the architecture is None if pruning has not begun."""
    for layer in pruning:
        writes = layer.lost == "output"
        groups = layer.period if arch is None else arch.update_groups if writes else arch.group_1x1
        yield Connections(layer.name, layer.mask[:groups], writes)
    if not pruning and arch is not None and arch.learned:
        for conv in arch.pointwise_convs():
            yield Connections(conv.name, _named(read, conv.name, arch.group_1x1, conv.in_channels))
        for conv in arch.updating_convs():
            yield Connections(conv.name, _named(read, conv.name, arch.update_groups or 1, conv.out_channels), True)


def _named(read: Contents, name: str, groups: int, channels: int) -> npt.NDArray[np.bool_]:
    """[groups, channels]: those that the index of a converted layer names."""
    named = np.zeros((groups, channels), np.bool_)
    index = np.asarray(read.tensors[f"{name}.index"]).reshape(groups, -1)
    np.put_along_axis(named, index.astype(np.int64), True, axis=1)
    return named


def steps(layers: list[Connections]) -> list[float]:
    """Pixels of a channel in each layer: the same in all, but for those that would be shorter than ``LEAST``."""
    widths = [layer.reads.shape[1] for layer in layers]
    common = (WIDTH - LEFT - RIGHT) / max(widths)
    return [max(common, LEAST / width) for width in widths]


def draw(title: str, layers: list[Connections]) -> str:
    """The picture as SVG text."""
    scales = steps(layers)
    most = max(len(layer.reads) for layer in layers)
    groups_shown = min(most, len(COLOURS))
    names = {f"group {number + 1}": {"color": COLOURS[number], "marker": "s", "markersize": 9} for number in range(groups_shown)}
    with drawing.canvas("groups", WIDTH, 0) as canvas:
        top = canvas.legend(names)
        canvas.resize(top + 2 * HEADING + 12 + sum(len(layer.reads) * ROW + HEADING + GAP for layer in layers))
        what = "inputs that each group reads" + (", outputs that it updates" if any(layer.updates for layer in layers) else "")
        canvas.text(LEFT, top + HEADING, f"{title}: {what}")
        more = f" Colours begin anew after group {groups_shown}." if most > groups_shown else ""
        stretched = f" Layers that would be shorter than {LEAST} pixels are stretched." if len(set(scales)) > 1 else ""
        legend = f"A line for each group, from the layer's first input channel to its last. Coloured: read.{more}{stretched}"
        canvas.text(LEFT, top + 2 * HEADING, legend, color=QUIET, size=12)
        top += 2 * HEADING + 12.0
        rows, dashes = [], []  # from where to where in pixels, how far down in pixels, and the group
        for layer, step in zip(layers, scales, strict=True):
            canvas.text(LEFT, top + HEADING - 4, layer.title, color=QUIET, size=12)
            top += HEADING
            groups, channels = layer.reads.shape
            heights = top + (np.arange(groups) + 0.5) * ROW
            rows.append(np.stack([np.zeros(groups), np.full(groups, channels * step), heights], 1))
            group, edges = np.nonzero(np.diff(layer.reads, axis=1, prepend=False, append=False))
            dashes.append(np.stack([edges[::2] * step, edges[1::2] * step, heights[group[::2]], group[::2]], 1))
            top += groups * ROW + GAP
        lines, runs = np.concatenate(rows), np.concatenate(dashes)
        canvas.dashes(LEFT + lines[:, :2], lines[:, 2], ROW, "#88888822")
        for number, colour in enumerate(COLOURS):
            drawn = runs[runs[:, 3] % len(COLOURS) == number]
            canvas.dashes(LEFT + drawn[:, :2], drawn[:, 2], ROW - 1, colour)
        return canvas.to_string()
