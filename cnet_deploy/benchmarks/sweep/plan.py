"""A sweep: models on backends, with numbers of threads and sizes of batches; planned, prepared, measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cnet_deploy.artifacts import manifest
from cnet_deploy.artifacts.pair import read_manifest
from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.environment import cores, differences, environment, fingerprint
from cnet_deploy.benchmarks.measure.estimate import EXPORTING, calibrating, estimate, in_words
from cnet_deploy.benchmarks.measure.rounds import Result, Settings, proceed, rounds_of, steps
from cnet_deploy.benchmarks.measure.worker import NAMED
from cnet_deploy.benchmarks.sweep.figures import figures_of
from cnet_deploy.benchmarks.sweep.paper import PAPER, counted, paper_row
from cnet_deploy.benchmarks.sweep.ranges import PRECISION, Ranges
from cnet_deploy.benchmarks.sweep.results import Group, Keep, Report, Row
from cnet_deploy.errors import CnetDeployError, InputRefused, Unavailable, printable
from cnet_deploy.exporters import target_by_suffix, targets
from cnet_deploy.files import check_input, digest, exists, read_bytes, temporary_folder
from cnet_deploy.hardware.cuda import why_no_device
from cnet_deploy.models.architecture import NAMED as ARCHITECTURES
from cnet_deploy.models.baselines import BASELINES
from cnet_deploy.models.build import NAMES
from cnet_deploy.sessions import DEVICES, backend_of, backends, holds_weights, names, opens, resolve_backend
from cnet_deploy.sessions.base import Backend
from cnet_deploy.sessions.native import MAX_THREADS
from cnet_deploy.text import whole_text
from cnet_deploy.workflows.export import export


def default_backends(device: str) -> tuple[str, ...]:
    """What networks are measured on where nothing else is asked for: each backend with its own parts, ours last."""
    chosen = [(name, part) for name in reversed(names()) for part in backends()[name].table.get(device, ())]
    return tuple(f"{name}.{part}" if part else name for name, part in chosen)


def described(backend: str) -> Backend:
    """The description of a backend, by a name that parts may follow."""
    return backends()[resolve_backend(backend).backend]


def default_threads() -> int:
    """All cores, as far as every backend takes them."""
    return min(cores(), MAX_THREADS)


def bench(
    models: Sequence[str] = (), *, backends: Sequence[str] = (), threads: Sequence[int] = (), batches: Sequence[int] = (1,),
    device: str = "cpu", settings: Settings | None = None, progress: Callable[[str], None] = lambda _: None,
    total: Callable[[int], None] = lambda _: None, keep: Keep = lambda _: None, earlier: Report | None = None,
    input_size: tuple[int, int] | None = None, weights: str | None = None, calibrate: Path | str | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Measure the paper's table, or any files and named networks, with every number of ``threads`` and every batch size.

    A named network runs with random weights on every backend of ``backends`` (``default_backends`` of the ``device``, if none is given),
    and so does a file: a model is exported for those that don't open it, an artifact runs on those that do. ``notify`` hears how long it
    will take, ``progress`` what is being done, ``total`` how many steps there will be, ``keep`` gets the report as it grows. ``earlier`` is
    the report of the same sweep that was interrupted: what it holds is not measured again. ``input_size`` (height, width) is that of files
    which don't tell it: checkpoints, and ONNX files that leave it free. ``weights`` is the key of a set of weights, for checkpoints that
    hold several. ``calibrate`` are the images (see ``export``) with which int8 networks are calibrated; None: images of random bytes.
    Raises InputRefused for what can't be measured before anything is.
    """
    settings = settings or Settings()
    if device not in DEVICES:
        raise InputRefused(f"no device is called {device!r}; expected one of {', '.join(DEVICES)}")
    for name in backends:
        resolve_backend(name)
    groups = [(count, batch) for count in threads or [default_threads()] for batch in batches]
    names = list(dict.fromkeys(models)) or [row.model for row in PAPER]
    if input_size is not None and (named := next(filter(is_named, names), None)):
        raise InputRefused(f"{named}: is the name of a network, whose input size is fixed; expected no input size")
    plan = {name: backends_of(name, backends, device) for name in names}
    if weights is not None and not any(not is_named(name) and holds_weights(name) for name in names):
        raise InputRefused(f"weights {printable(weights, 60)!r}: no file that is measured is a checkpoint; leave them out")
    told = {"input_size": None if input_size is None else list(input_size), "weights": weights}
    opening = {key: value for key, value in told.items() if value is not None}
    report = Report([_row(name, plan[name], groups, device, opening, fresh=settings.fresh) for name in names], settings)
    calibrated = any(is_calibrated(result.cell.backend, result.cell.label) for result in report.results)
    ranges = Ranges(calibrate)
    ranges.require_use(used=calibrated)
    report.notes = [ranges.note()] if calibrated else []
    if earlier is not None:
        _continue(report, earlier)
        if report.after is not None:
            return report
    parts = _parts(report)
    notify(_announcement(report, parts, ranges.count))
    total(len(names) + sum(steps(len(part), settings, rounds_of(part, settings)) for part in parts))
    with temporary_folder("bench") as folder:
        for row in report.rows:
            progress(f"prepare {row.label}")
            for result in row.results:
                prepare(result, folder, opening, fresh=settings.fresh, ranges=ranges)
        for part in parts:
            proceed(part, settings, progress, keep=lambda: keep(report))
    report.after = environment()
    return report


def _announcement(report: Report, parts: Sequence[Sequence[Result]], images: int) -> str:
    """How long the sweep will take, by a guess; ``images`` are those of a calibration."""
    settings = report.settings
    exported = {
        (result.cell.label, result.cell.backend, result.cell.batch if described(result.cell.backend).per_batch else 0)
        for result in report.results
        if target_for(result.cell.backend, result.cell.label) is not None
    }
    flops_of = {
        (row.label, r.cell.backend): row.flops for row in report.rows for r in row.results if is_calibrated(r.cell.backend, row.label)
    }
    seconds = EXPORTING * len(exported) + sum(calibrating(images, flops) for flops in flops_of.values())
    seconds += sum(estimate(len(part), settings, rounds_of(part, settings)) for part in parts)
    cells = sum(1 for _ in report.results)
    what = f"{cells} cell{'s' * (cells != 1)}, {settings.rounds} round{'s' * (settings.rounds > 1)}"
    return f"{what}: this takes about {in_words(seconds)}"


def backends_of(name: str, wanted: Sequence[str], device: str = "cpu") -> tuple[str, ...]:
    """The backends that a file or a named network is measured on. Raises InputRefused where it is neither, or none fits."""
    if is_named(name):
        known = tuple(wanted) or default_backends(device)
        # If no backend runs it, all the same: for the reason to be shown.
        return (
            tuple(b for b in known if not (name in BASELINES and _family_only(b)) and (_has_int8(name) or not is_calibrated(b, name)))
            or known
        )
    if not exists(name):
        raise InputRefused(f"{name}: no such file, and no network of that name; expected a file or one of {', '.join(NAMES)}")
    check_input(name)
    own = backend_of(name)
    a_model = backends()[own].opens_models  # can be exported for any backend
    # What was exported already has the precision that it has.
    fitting = tuple(
        backend
        for backend in wanted or default_backends(device)
        if a_model or (opens(described(backend), name) and not resolve_backend(backend).export)
    )
    if not fitting and not wanted:
        return (own,)
    if not fitting:
        raise InputRefused(
            f"{name}: runs on {own}, which is not among {', '.join(wanted)}; give its model for what has to be exported anew"
        )
    return fitting


def is_named(model: str) -> bool:
    """Whether this is the name of a network, and no file."""
    return model in NAMES and not exists(model)


def copied(path: Path | str, folder: Path) -> Path:
    """A copy of an artifact or a model in a folder of its own, its manifest beside it. Made once."""
    source, copy = Path(path), folder / Path(path).name
    if not copy.exists():
        data = read_bytes(source)
        try:
            folder.mkdir(exist_ok=True)
            copy.write_bytes(data)
            if exists(manifest.manifest_path(source)):
                shutil.copyfile(manifest.manifest_path(source), manifest.manifest_path(copy))
        except OSError as error:
            copy.unlink(missing_ok=True)
            raise Unavailable(f"{folder}: can't be written: {error.strerror}; set TMPDIR") from None
    return copy


def target_for(backend: str, model: str) -> str | None:
    """What a model has to be exported to for a backend; None if it runs as it is."""
    return None if not is_named(model) and opens(described(backend), model) else _target_of(backend)


def export_options(backend: str, batch: int) -> dict[str, Any]:
    """The options of the export for a backend, for a batch of this size."""
    variant = resolve_backend(backend)
    return {**variant.export, **({"batch": (batch, batch, batch)} if backends()[variant.backend].per_batch else {})}


def is_calibrated(backend: str, model: str) -> bool:
    """Whether a model is exported for a backend in a precision that needs ranges of its values."""
    return resolve_backend(backend).export.get("precision") == PRECISION and target_for(backend, model) is not None


def _target_of(backend: str) -> str | None:
    """What networks are exported to for a backend; None for one that runs them itself."""
    return next((target for suffix in described(backend).suffixes if (target := target_by_suffix(suffix))), None)


def _family_only(backend: str) -> bool:
    """Whether what a backend runs is made from a Program alone."""
    target = _target_of(backend)
    return target is not None and targets()[target].family_only


def _has_int8(name: str) -> bool:
    """Whether a named network can be exported in int8: not those of other families, and not CondenseNet V2."""
    return name not in BASELINES and not ARCHITECTURES[name].updates


def _parts(report: Report) -> list[list[Result]]:
    """The cells that take turns: a group of them; on a device, whose memory does not hold a whole table, those of one model in it."""
    alone = report.device != "cpu"
    return [
        [result for row in rows for result in row.results if (result.cell.threads, result.cell.batch) == group]
        for group in report.groups
        for rows in ([[row] for row in report.rows] if alone else [report.rows])
    ]


def _row(
    name: str, backends: Sequence[str], groups: Sequence[Group], device: str, opening: Mapping[str, Any], *, fresh: bool
) -> Row:  # fmt: skip
    results = [
        Result(Cell(name, name, backend, *group, options=_options(name, backend, opening), device=device), batch=group[1])
        for group in groups
        for backend in backends
    ]
    if is_named(name):
        paper = paper_row(name)
        flops, params = counted(name)
        return Row(name, flops, params, None, paper.top1_error if paper else None, results)
    data = read_bytes(name)
    as_it_is, exported = counted_file(name, opening), counted_file(name, opening, exported=True)
    direct = [result for result in results if target_for(result.cell.backend, name) is None]
    costs = as_it_is if len(direct) == len(results) else exported
    for result in direct:  # the training form, beside exports of the group-conv form
        if as_it_is != costs:
            result.flops, result.params = as_it_is
    counts = figures_of(name, opening.get("weights")).to_dict() if fresh else None
    return Row(name, *costs, digest(data), _top1_error(name, data), results, counts)


def _options(name: str, backend: str, opening: Mapping[str, Any]) -> dict[str, Any]:
    """What a session takes of ``opening``; what is exported first takes it then."""
    if is_named(name) or target_for(backend, name) is not None:
        return {}
    spec = described(backend)
    return {key: value for key, value in opening.items() if spec.opens_models or key in spec.takes}


def _overrides(opening: Mapping[str, Any]) -> dict[str, Any]:
    """The same for ``checkpoints.load``."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in opening.items()}


def _top1_error(path: str, data: bytes) -> float | None:
    """In per cent, of the images that an artifact was verified on; None where its manifest does not tell."""
    try:
        manifest = read_manifest(path, data)
    except InputRefused:
        return None  # its cell reports why, since it can't be opened then
    known = [
        entry["top1"]
        for entry in (manifest.verification if manifest else ())
        if isinstance(entry.get("top1"), float) and 0 <= entry["top1"] <= 1
    ]
    return 100 * (1 - known[-1]) if known else None


def prepare(
    result: Result, folder: Path, opening: Mapping[str, Any], *, fresh: bool = False, source: str | None = None,
    ranges: Ranges | None = None,
) -> None:  # fmt: skip
    """Put the path of the artifact into a cell, or the error that kept it from being made: a missing backend is shown in its own cell.

    What has to be exported is written to ``folder``, once for all cells that run the same. ``source`` is the file or named network that is
    exported and run, if it is another than the cell's label; ``opening`` are the options with which a checkpoint is loaded. ``fresh``: the
    cell is opened again for every turn. ``ranges`` are for int8.
    """
    cell, model = result.cell, source or result.cell.label
    target = target_for(cell.backend, model)
    path = str(Path(model).absolute())
    if target is not None:
        options = export_options(cell.backend, cell.batch)
        path = str(folder / f"{_digest_of(model, options)}{targets()[target].suffix}")
        try:
            if result.error is None and not Path(path).exists():  # else it was made for another cell
                _require_device(cell)
                ranges, overrides = ranges or Ranges(), _overrides(opening)
                if is_calibrated(cell.backend, model):
                    options |= ranges.options(model, folder, overrides)
                done = export(model, target, path, overrides=overrides, **options)
                if done.calibration is not None:
                    ranges.known[model] = done.calibration
        except CnetDeployError as error:
            message = str(error).replace(path, cell.label).replace(model, cell.label)
            result.error, result.exit_code = message, error.exit_code
        except Exception as error:  # of a library's exporter; one network's, and no reason to end the run
            result.error, result.exit_code = f"{type(error).__name__}: {error}"[:500], Unavailable.exit_code
    elif is_named(model):
        path = NAMED + model
    elif fresh:  # opened again for every turn, and must not be another file then
        path = str(copied(path, folder / _digest_of(model, {})))
    result.cell = replace(cell, model=path)


def _digest_of(label: str, options: Mapping[str, Any]) -> str:
    return digest(repr((label, sorted(options.items()))).encode())[:16]


def _require_device(cell: Cell) -> None:
    """Raise Unavailable before minutes are spent on an artifact that nothing here can run."""
    if "cpu" not in described(cell.backend).devices:
        if cell.device == "cpu":
            raise Unavailable(f"{cell.backend} runs on no CPU; measure it with --device cuda")
        if reason := why_no_device():
            raise Unavailable(reason)


def _continue(report: Report, earlier: Report) -> None:
    """Put an interrupted run's results into the same sweep's report. Raises InputRefused if it is another sweep, or another machine."""
    if changes := differences(_outline(report), _outline(earlier)):
        raise InputRefused(
            f"the results are of another sweep ({'; '.join(changes)}); repeat the command that was interrupted, or measure anew without "
            "--resume"
        )
    if earlier.after is None and (changes := differences(fingerprint(report.environment), fingerprint(earlier.environment))):
        raise InputRefused(f"the results were measured elsewhere ({'; '.join(changes)}); measure anew without --resume")
    for row, old in zip(report.rows, earlier.rows, strict=True):
        # The cells are the plan's own: a file must not choose what is opened.
        row.results = [replace(done, cell=result.cell) for result, done in zip(row.results, old.results, strict=True)]
    report.environment, report.after = earlier.environment, earlier.after


def _outline(report: Report) -> dict[str, object]:
    """What makes two sweeps one, in words."""
    cells = [result.cell for result in report.results]
    return {
        "models": [f"{whole_text(row.label)} ({row.sha256[:12] if row.sha256 else 'random weights'})" for row in report.rows],
        "digests": [row.sha256 for row in report.rows],
        "device": report.device,
        "cells": [f"{cell.backend} with {cell.threads} threads and batch {cell.batch}" for cell in cells],
        "options": [" and ".join(f"{key} {value}" for key, value in cell.options.items()) for cell in cells],
        "settings": asdict(report.settings),
    }


def counted_file(path: str, opening: Mapping[str, Any], *, exported: bool = False) -> tuple[int | None, int | None]:
    """FLOPs and parameters of a file by its architecture, in the form that it has, or in the form in which it is ``exported``; None for
    one that is not of the family."""
    from cnet_deploy.workflows.inspect import inspect

    try:
        inspection = inspect(path, **_overrides(opening))
    except InputRefused:
        return None, None  # not of the family: it can be measured all the same
    architecture = inspection.architecture
    if architecture is None or inspection.form is None:
        return None, None
    if inspection.form == "training" and not exported:
        cost = architecture.cost("training")
    else:
        cost = (replace(architecture, classifier_keep=architecture.usual_keep) if inspection.form == "training" else architecture).cost(
            "group-conv"
        )
    return cost.flops, cost.params
