"""Which form of each dense block (see rewriting.py) is quickest: measured on the backend and device that the artifact is for.

A first run measures the network as lowered, with each block alone in each other form, and whole in each. A form is taken for a block only
if it is surely quicker, by the gate's own rule (rule.py) without tolerance. Blocks that are quicker alone need not be so together, and the
best of many looks better than it is: so a second run measures what was taken beside the others, and what is surely quicker there is chosen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Settings, measure, steps
from cnet_deploy.benchmarks.sweep.plan import default_threads
from cnet_deploy.benchmarks.tuning.choice import (
    COMBINED,
    PLAIN,
    Choice,
    Forms,
    Rounds,
    decide_forms,
    label_of,
    lowering_path,
    plain,
    program_digest,
    quickest,
    read,
)
from cnet_deploy.checkpoints.load import load
from cnet_deploy.errors import InputRefused, Unavailable, printable
from cnet_deploy.exporters import SUFFIXES, exporter, options_of
from cnet_deploy.files import check_output, digest, exists, write_text
from cnet_deploy.hardware import tensorrt as tensorrt_flavours
from cnet_deploy.hardware.cuda import why_no_device
from cnet_deploy.models.build import NAMES, build_named
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.convert import DEFAULT_KEEP, convert
from cnet_deploy.program.forms import FORMS, blocks, rewrite
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import Program
from cnet_deploy.sessions import DEVICES, GPU_ONLY
from cnet_deploy.workflows.prepare import output_of

__all__ = ["BACKENDS", "SETTINGS", "Choice", "choose", "choose_beside", "choose_for_file", "decide_forms", "lowering_path", "read"]

SETTINGS = Settings(rounds=12, seconds=0.1)
BACKENDS = {"onnx": "onnxruntime", "tensorrt": "tensorrt"}  # of a target: what its artifacts are measured on

Say = Callable[[str], None]
Progress = Callable[[str, float], None]


def choose(
    program: Program, *, target: str, device: str, threads: int, batch: int, options: Mapping[str, Any] | None = None,
    settings: Settings | None = None, progress: Progress = lambda *_: None,
) -> Choice:  # fmt: skip
    """Measure, and choose. ``options`` are the target's own; ``progress`` hears what is being done and how much of all, 0 to 1.

    Takes about ``rounds * seconds`` for each of some four forms a block, and the building of as many artifacts. Raises InputRefused for
    a target that has no forms to choose from, Unavailable where the device is missing or an artifact can't be run there.
    """
    options, settings, names = dict(options or {}), settings or SETTINGS, blocks(program)
    _require(target, device)
    here = environment()
    whole = {form: dict.fromkeys(names, form) for form in FORMS}
    single = {label_of(name, form): {**whole[PLAIN], name: form} for name in names for form in FORMS[1:]}
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-lowerings-") as folder:
        bench = _Bench(program, Path(folder), target, options, settings, progress)
        cell = Cell("", "", BACKENDS[target], threads, batch, device=device)
        alone = bench.run({PLAIN: whole[PLAIN], **single, **whole}, cell, 0.0, 0.75)
        plans = {PLAIN: whole[PLAIN], COMBINED: decide_forms(names, alone), **whole}
        together = bench.run(plans, cell, 0.75, 1.0)
    winner = quickest(together, [label for label in plans if label != PLAIN])
    return Choice(
        plans[winner], winner, alone, together, settings, here, target, device, threads, batch, plain(options),
        program_digest(program), program.source_digest,
    )  # fmt: skip


class _Bench:
    """Artifacts of one network's forms in a folder, each made once."""

    def __init__(
        self, program: Program, folder: Path, target: str, options: dict[str, Any], settings: Settings, progress: Progress
    ) -> None:
        self._program, self._folder, self._target, self._settings, self._progress = program, folder, target, settings, progress
        self._options, self._write = options, exporter(target)
        # What is the same in two networks must be the same in their engines, or builds are compared instead of forms.
        if "timing_cache" in options_of(target) - set(options) and tensorrt_flavours.find(options.get("flavour")).has_timing_cache:
            self._options = {**options, "timing_cache": folder / "timing.cache"}

    def run(self, plans: Mapping[str, Forms], cell: Cell, start: float, end: float) -> Rounds:
        """Rounds of each network, measured in turn; of those that are the same only the first. Empty where all are."""
        networks = {label: rewrite(self._program, forms) for label, forms in plans.items()}
        digests = {label: program_digest(network) for label, network in networks.items()}
        unique = [label for number, label in enumerate(plans) if digests[label] not in [digests[other] for other in [*plans][:number]]]
        if unique == [PLAIN]:
            return {}
        total, done = len(unique) + steps(len(unique), self._settings), 0

        def told(text: str) -> None:
            nonlocal done
            self._progress(text, start + (end - start) * done / total)
            done += 1

        cells = []
        for label in unique:
            told(f"write {label}")
            path = self._folder / f"{digests[label]}{SUFFIXES[self._target]}"
            if not path.exists():
                self._make(networks[label], path)
            cells.append(Cell(label, str(path), cell.backend, cell.threads, cell.batch, device=cell.device))
        results = measure(cells, self._settings, told)
        if failed := next((result for result in results if result.error is not None), None):
            raise Unavailable(f"no lowering can be chosen: the form '{failed.cell.label}' can't be measured: {failed.error}")
        return {result.cell.label: result.rounds for result in results}

    def _make(self, network: Program, path: Path) -> None:
        """The artifact, with the manifest that it is opened by: nothing verifies it, since nothing but its time is wanted."""
        written = self._write(network, path, **self._options)
        content = path.read_bytes()
        found = Manifest(
            self._target, digest(content), len(content), written.precision, network.source_digest, network.architecture,
            network.preprocessing, written.details, written.libraries,
        )  # fmt: skip
        manifest_path(path).write_text(found.to_json(), encoding="utf-8")


def choose_beside(artifact: Path | str, program: Program, *, say: Say = lambda _: None, settings: Settings | None = None,
                  progress: Progress = lambda *_: None, **facts: Any) -> Choice:  # fmt: skip
    """``choose``, unless the measurement that is kept beside the artifact was made for the same on this machine; keeps a new one there.

    ``facts`` are target, device, threads, batch, options. ``say`` is told which it is, and what was chosen. Raises OutputRefused where
    nothing can be kept, before anything is measured, and what ``choose`` raises.
    """
    path = lowering_path(artifact)
    check_output(path)
    if exists(path):
        try:
            stored = read(path)
            reason = stored.fits(program, **facts)
            if reason is None:
                say(f"{stored.summary()} (measured {stored.environment['time']}, kept in {path.name})")
                return stored
            say(f"{path.name} was measured for something else ({printable(reason, 300)}): measuring anew")
        except InputRefused as error:
            say(f"{error}: measuring anew")
    found = choose(program, settings=settings, progress=progress, **facts)
    write_text(path, found.to_json())
    say(f"{found.summary()} (kept in {path.name})")
    return found


def choose_for_file(
    model: Path | str, target: str, out: Path | str | None = None, *, options: Mapping[str, Any], classifier_keep: float | None = None,
    overrides: Mapping[str, Any] | None = None, sha256: str | None = None, say: Say = lambda _: None,
    progress: Progress = lambda *_: None, **_others: Any,
) -> Forms:  # fmt: skip
    """``choose_beside`` for what ``deployment.export`` would write: the forms to give it. Its other options decide nothing here.

    Engines are measured on "cuda" and with the batch that they are best for, ONNX files on the processor with all cores and a batch of 1
    unless theirs is fixed. Raises InputRefused for a network that has no forms, and as ``checkpoint.load`` and ``choose_beside`` do.
    """
    device = "cuda" if target == "tensorrt" else "cpu"
    _require(target, device)
    out = output_of(Path(model), target, out)
    check_output(out, source=model)
    named = str(model) in NAMES and not exists(model)
    network = build_named(str(model)) if named else load(model, sha256=sha256, **(overrides or {}))
    if not isinstance(network, DenselyConnected):
        raise InputRefused("only CondenseNet, DenseNet and their kin have lowerings to choose from; leave --lowering out")
    if network.form == "training":
        network = convert(network, classifier_keep=DEFAULT_KEEP if classifier_keep is None else classifier_keep)
    batch = options.get("batch") or 1
    size = batch if isinstance(batch, int) else batch[1]
    return choose_beside(
        out, lower(network), say=say, progress=progress, target=target, device=device, threads=default_threads(), batch=size,
        options=options,
    ).forms  # fmt: skip


def _require(target: str, device: str) -> None:
    if target not in BACKENDS:
        raise InputRefused(f"the target {target!r} has no lowerings to choose from; expected one of {', '.join(BACKENDS)}")
    if device.partition(":")[0] not in DEVICES:
        raise InputRefused(f"no device is called {device!r}; expected one of {', '.join(DEVICES)}")
    if device == "cpu" and BACKENDS[target] in GPU_ONLY:
        raise Unavailable(f"{BACKENDS[target]} runs on no CPU, so nothing can be measured there; give a form with --lowering instead")
    if device != "cpu" and (reason := why_no_device()):
        raise Unavailable(f"lowerings are measured on the device that they are for, and {reason}; give a form with --lowering instead")
