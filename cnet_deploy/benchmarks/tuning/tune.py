"""Which form of each dense block (see rewriting.py) is quickest: measured on the backend and device that the artifact is for.

A first run measures the network as lowered, with each block alone in each other form, and whole in each. A form is taken for a block only
if it is surely quicker, by the gate's own rule (rule.py) without tolerance. Blocks that are quicker alone need not be so together, and the
best of many looks better than it is: so a second run measures what was taken beside the others, and what is surely quicker there is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.artifacts.pair import describe
from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Settings, measure, steps
from cnet_deploy.benchmarks.sweep.plan import default_threads
from cnet_deploy.benchmarks.tuning.choice import (
    COMBINED,
    FORMAT,
    PLAIN,
    Choice,
    Forms,
    Rounds,
    choice_path,
    decide_forms,
    earlier_path,
    label_of,
    plain,
    program_digest,
    quickest,
    read,
)
from cnet_deploy.errors import InputRefused, Unavailable, printable
from cnet_deploy.exporters import exporter, module_of, target_of, targets
from cnet_deploy.files import check_output, exists, temporary_folder, write_text
from cnet_deploy.files.replacing import key_of
from cnet_deploy.hardware.cuda import why_no_device
from cnet_deploy.program.forms import FORMS, blocks, rewrite
from cnet_deploy.program.program import Program
from cnet_deploy.sessions import DEVICES, backend_by_suffix, backends

SETTINGS = Settings(rounds=12, seconds=0.1)

Notify = Callable[[str], None]
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
    with temporary_folder("forms") as folder:
        bench = _Bench(program, folder, target, options, settings, progress)
        cell = Cell("", "", _measured_by(target)[0], threads, batch, device=device)
        alone = bench.run({PLAIN: whole[PLAIN], **single, **whole}, cell, 0.0, 0.75)
        plans = {PLAIN: whole[PLAIN], COMBINED: decide_forms(names, alone), **whole}
        together = bench.run(plans, cell, 0.75, 1.0)
    winner = quickest(together, [label for label in plans if label != PLAIN])
    return Choice(
        plans[winner], winner, alone, together, settings, here, target, device, threads, batch, plain(target, options),
        program_digest(program), program.source_digest,
    )  # fmt: skip


class _Bench:
    """Artifacts of one network's forms in a folder, each made once."""

    def __init__(
        self, program: Program, folder: Path, target: str, options: dict[str, Any], settings: Settings, progress: Progress
    ) -> None:
        self._program, self._folder, self._target, self._settings, self._progress = program, folder, target, settings, progress
        self._write = exporter(target)
        # What is the same in two networks must be the same in their artifacts, or builds are compared instead of forms.
        alike = getattr(module_of(target), "comparable", None)
        self._options = options if alike is None else alike(options, folder)

    def run(self, plans: Mapping[str, Forms], cell: Cell, start: float, end: float) -> Rounds:
        """Rounds of each network, measured in turn; of those that are the same only the first. Empty where all are."""
        networks = {label: rewrite(self._program, forms) for label, forms in plans.items()}
        digests = {label: program_digest(network) for label, network in networks.items()}
        unique = [label for number, label in enumerate(plans) if digests[label] not in [digests[other] for other in [*plans][:number]]]
        if unique == [PLAIN]:
            return {}
        total, done = len(unique) + steps(len(unique), self._settings), 0

        def begin(text: str) -> None:
            nonlocal done
            self._progress(text, start + (end - start) * done / total)
            done += 1

        cells = []
        for label in unique:
            begin(f"write {label}")
            path = self._folder / f"{digests[label]}{target_of(self._target).suffix}"
            if not path.exists():
                self._make(networks[label], path)
            cells.append(Cell(label, str(path), cell.backend, cell.threads, cell.batch, device=cell.device))
        results = measure(cells, self._settings, begin)
        if failed := next((result for result in results if result.error is not None), None):
            raise Unavailable(f"no form can be chosen: the form '{failed.cell.label}' can't be measured: {failed.error}")
        return {result.cell.label: result.rounds for result in results}

    def _make(self, network: Program, path: Path) -> None:
        """The artifact, with the manifest that it is opened by: nothing verifies it, since nothing but its time is wanted."""
        written = self._write(network, path, **self._options)
        manifest = describe(
            path, self._target, written.precision, details=written.details, libraries=written.libraries,
            source_sha256=network.source_digest, architecture=network.architecture, preprocessing=network.preprocessing,
        )  # fmt: skip
        manifest_path(path).write_text(manifest.to_json(), encoding="utf-8")


def choose_beside(artifact: Path | str, program: Program, *, notify: Notify = lambda _: None, settings: Settings | None = None,
                  progress: Progress = lambda *_: None, **facts: Any) -> Choice:  # fmt: skip
    """``choose``, unless the measurement that is kept beside the artifact was made for the same on this machine; keeps a new one there.

    ``facts`` are target, device, threads, batch, options. ``notify`` is given a line on which it is, and on what was
    chosen. Raises OutputRefused where nothing can be kept, before anything is measured, and what ``choose`` raises.
    """
    path = choice_path(artifact)
    check_output(path, like=key_of(FORMAT))
    if (kept := next((place for place in (path, earlier_path(artifact)) if exists(place)), None)) is not None:
        try:
            stored = read(kept)
            reason = stored.fits(program, **facts)
            if reason is None:
                notify(f"{stored.summary()} (measured {stored.environment['time']}, kept in {kept.name})")
                return stored
            notify(f"{kept.name} was measured for something else ({printable(reason, 300)}): measuring anew")
        except InputRefused as error:
            notify(f"{error}: measuring anew")
    choice = choose(program, settings=settings, progress=progress, **facts)
    write_text(path, choice.to_json(), reader=read)
    notify(f"{choice.summary()} (kept in {path.name})")
    return choice


def chooser(
    artifact: Path, *, source: Path | str, target: str, options: Mapping[str, Any], notify: Notify = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Callable[[Program], Forms]:  # fmt: skip
    """What chooses the forms of a Program that is exported to ``artifact``: give it to ``workflows.export.export`` as ``form``.

    The measurement is kept beside the artifact (see ``choose_beside``). An artifact is measured by the first backend that opens it, on the
    device that this prefers, with all cores, and with the batch that it is best for: its fixed one, else 1. Raises OutputRefused for a
    place that can't be written to, InputRefused for a target without forms, Unavailable where the device is missing.
    """
    check_output(artifact, source=source, like=target_of(target).kind)
    device = _measured_by(target)[1]
    _require(target, device)
    batch = options.get("batch") or 1
    size = batch if isinstance(batch, int) else batch[1]

    def choose_forms(program: Program) -> Forms:
        return choose_beside(
            artifact, program, notify=notify, progress=progress, target=target, device=device, threads=default_threads(), batch=size,
            options=options,
        ).forms  # fmt: skip

    return choose_forms


def _measured_by(target: str) -> tuple[str, str]:
    """The backend that measures a target's artifacts, and the device that it prefers."""
    backend = backend_by_suffix(target_of(target).suffix)
    return backend, backends()[backend].devices[0]


def _require(target: str, device: str) -> None:
    if not target_of(target).forms:
        known = ", ".join(name for name, described in targets().items() if described.forms)
        raise InputRefused(f"the target {target!r} has no forms to choose from; expected one of {known}")
    if device.partition(":")[0] not in DEVICES:
        raise InputRefused(f"no device is called {device!r}; expected one of {', '.join(DEVICES)}")
    backend, _ = _measured_by(target)
    if device.partition(":")[0] not in backends()[backend].devices:
        raise Unavailable(f"{backend} does not run on {device}, so nothing can be measured there; give a form with --form instead")
    if device != "cpu" and (reason := why_no_device()):
        raise Unavailable(f"forms are measured on the device that they are for, and {reason}; give a form with --form instead")
