"""Compare the variants of one model: export it for every backend and precision, evaluate all on the same images, measure them in turns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnet_deploy.benchmarks.compare.results import FULL, Accuracy, Images, ModelComparison, Variant
from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.estimate import EXPORTING, calibrating, estimate, in_words
from cnet_deploy.benchmarks.measure.rounds import Result, Settings, proceed, steps
from cnet_deploy.benchmarks.measure.worker import NAMED
from cnet_deploy.benchmarks.sweep.paper import counted, paper_row
from cnet_deploy.benchmarks.sweep.plan import (
    backends_of,
    copied,
    counted_file,
    default_threads,
    described,
    is_calibrated,
    is_named,
    prepare,
    target_for,
)
from cnet_deploy.benchmarks.sweep.ranges import Ranges
from cnet_deploy.benchmarks.sweep.results import Report, Row
from cnet_deploy.errors import CnetDeployError, InputRefused, Unavailable, naming, printable
from cnet_deploy.files import digest, read_bytes, temporary_folder
from cnet_deploy.files.kinds import ONNX, kind_of
from cnet_deploy.files.onnx_weights import weights_precision
from cnet_deploy.images.datasets import Dataset, Split, open_dataset, split_for_calibration
from cnet_deploy.images.preprocessing import NO_OVERRIDES, Overrides
from cnet_deploy.sessions import DEVICES, PRECISIONS, backends, holds_weights, names, open_session, resolve_backend
from cnet_deploy.workflows.evaluate import Evaluation, evaluate, spread

log = logging.getLogger(__name__)
Notify = Callable[[str], None]  # gets lines of text
Progress = Callable[[str, float], None]  # a line of text, and the share of the work that is done (0 to 1)


def variants_of(device: str, chosen: Sequence[str] = (), precisions: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of what a comparison measures: every backend of ``device`` in every precision that its declaration has.

    ``chosen`` are backends instead of all; one with a precision in its name is measured in that alone. ``precisions`` are those to measure
    instead of all. TF32 is of GPUs. Raises InputRefused for unknown names, and if nothing is left.
    """
    if unknown := [precision for precision in precisions if precision not in PRECISIONS]:
        raise InputRefused(f"no precision is called {printable(unknown[0], 60)!r}; expected some of {', '.join(PRECISIONS)}")
    known: list[str] = []
    for name in chosen or [name for name in reversed(names()) if device in backends()[name].devices]:
        spec = backends()[resolve_backend(name).backend]
        known.append(name)
        if not any(part in PRECISIONS for part in name.split(".")):
            fitting = (p for p in PRECISIONS if p in spec.parts and p != FULL and (device != "cpu" or not spec.parts[p].rounds_to_tf32))
            known += [f"{name}.{precision}" for precision in fitting]
    kept = tuple(dict.fromkeys(name for name in known if not precisions or precision_of(name) in precisions))
    if not kept:
        raise InputRefused(
            f"{', '.join(chosen) or 'no backend'}: not in {', '.join(precisions)}; expected another --precision or --backend"
        )
    return kept


def precision_of(backend: str) -> str:
    """The precision in a backend's name; fp32 where it has none."""
    return next((part for part in backend.split(".") if part in PRECISIONS), FULL)


def compare(
    model: Path | str,
    *,
    data: Path | str | None = None,
    calibrate: Path | str | None = None,
    split: Split = "val",
    limit: int | None = None,
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    batch: int = 1,
    settings: Settings | None = None,
    classifier_keep: float | None = None,
    preprocessing: Overrides = NO_OVERRIDES,
    workers: int | None = None,
    skip_corrupt: int = 0,
    exif: bool = False,
    notify: Notify = lambda _: None,
    progress: Progress = lambda text, share: None,  # noqa: ARG005
    **overrides: Any,
) -> ModelComparison:
    """Compare one model on every backend and in every precision: latency, top-1 error and agreement with fp32, file size.

    ``model`` is a checkpoint or a model, which is converted (keeping ``classifier_keep`` of the classifier's inputs) and exported for each
    backend and precision into a temporary folder; or an artifact, which every backend that opens it runs; or the name of a network, which
    has random weights and so takes no ``data``. ``data`` is a labelled dataset (see ``images.datasets.open_dataset``), of whose ``split``
    at most ``limit`` images are used, evenly spread; None: only latency and size. ``backends`` and ``precisions`` choose (see
    ``variants_of``). Latency is that of ``batch`` images with ``threads`` threads (None: all cores), measured in turns (``settings``).
    ``calibrate`` are the images with which int8 networks are calibrated (None: those of ``data``, or random ones without it).
    ``preprocessing``, ``workers``, ``skip_corrupt``, ``exif``: see ``evaluate``; ``overrides``: see ``checkpoints.load``. ``notify`` gets
    lines of text, among them how long it will take; ``progress`` a line and the share that is done.

    A variant that can't be made or run keeps the reason (``Variant.result.error``), and the others go on. Raises InputRefused for a model
    or data that can't be used, and Unavailable or InputRefused if no variant could be measured.
    """
    settings = settings or Settings()
    overrides = {key: value for key, value in overrides.items() if value is not None}
    if device not in DEVICES:
        raise InputRefused(f"no device is called {device!r}; expected one of {', '.join(DEVICES)}")
    if limit is not None and limit < 1:
        raise InputRefused(f"the limit is {limit} images; expected 1 or more")
    chosen = backends_of(str(model), variants_of(device, backends, precisions), device)
    threads = threads or default_threads()
    with temporary_folder("compare") as folder:
        source = _source(str(model), folder, chosen, data, preprocessing, classifier_keep, notify, overrides)
        dataset = None if data is None else open_dataset(data, split, source.classes, upright=exif)
        report = Report([_row(str(model), source, chosen, threads, batch, device)], settings)
        results = report.rows[0].results
        calibrated = any(is_calibrated(result.cell.backend, source.path) for result in results)
        Ranges(calibrate).require_use(used=calibrated)
        ranges = Ranges(data if calibrate is None else calibrate)
        report.notes = [ranges.note(judged=_overlaps(ranges.images, data, split))] if calibrated else []
        count = 0 if dataset is None else len(spread(len(dataset), limit))
        shares = _shares(report, count, source, settings, ranges.count)
        notify(_announcement(report, count, settings, sum(shares)))
        parts = _Parts(progress, sum(shares))
        for result in results:
            with parts.step(f"prepare {result.cell.backend}", EXPORTING):
                prepare(result, folder, source.opening, source=source.path, ranges=ranges)
        precisions_found = {result.cell.backend: _open_once(result, source) for result in results}
        if source.weights not in (None, FULL) and FULL in precisions_found.values():
            log.warning("%s: has its weights in %s; what is called %s here computes in it with these weights", model, source.weights, FULL)
        answers: dict[str, Accuracy] = {}
        answered = None
        usable = [result for result in results if result.error is None]
        if data is not None and usable:
            evaluation = _evaluated(usable, source, data, split, limit, preprocessing, workers, skip_corrupt, exif, parts, count, overrides)
            answered, answers = _counts(dataset, evaluation, usable, precisions_found)
        turn = parts.turns(len(usable), settings)
        proceed(results, settings, turn)
        report.after = environment()
        variants = tuple(
            Variant(
                result.cell.backend, precisions_found[result.cell.backend], _size(result), result, answers.get(result.cell.backend)
            )
            for result in results
        )  # fmt: skip
    if not any(result.rounds for result in results):
        refused = all(result.exit_code == InputRefused.exit_code for result in results)
        raise (InputRefused if refused else Unavailable)(f"{model}: no variant could be measured: {results[0].error}")
    return ModelComparison(report, variants, answered)


# ---- what is compared --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What all variants are made of: a file or a named network, and how a checkpoint or an artifact is opened.

    ``classes`` is None if only the open artifact tells it; ``weights`` the precision of an ONNX file's.
    """

    path: str
    flops: int | None
    params: int | None
    sha256: str | None
    opening: Mapping[str, Any]
    classes: int | None = None
    weights: str | None = None


def _source(
    model: str, folder: Path, chosen: Sequence[str], data: Path | str | None, preprocessing: Overrides, keep: float | None, notify: Notify,
    overrides: dict[str, Any],
) -> _Source:  # fmt: skip
    if is_named(model):
        if data is not None:
            raise InputRefused(f"{model}: is the name of a network, whose weights are random; expected a trained model, or no --data")
        if overrides:
            raise InputRefused(f"{model}: is the name of a network, which is complete; expected no {', '.join(overrides)}")
        return _Source(model, *counted(model), None, {})
    content = read_bytes(model)
    if holds_weights(model):
        return replace(_converted(model, folder, preprocessing, keep, notify, overrides), sha256=digest(content))
    if keep is not None:
        raise InputRefused(f"{model}: is an artifact, whose classifier is fixed; expected no --classifier-keep")
    takes = {key for name in chosen for key in described(name).takes}
    if foreign := [key for key in overrides if key not in takes]:
        raise InputRefused(f"{model}: is an artifact, whose architecture is fixed; expected no {', '.join(foreign)}")
    copy = copied(model, folder / "given")  # it is opened many times, and may change meanwhile
    weights = weights_precision(content) if kind_of(content) is ONNX else None
    return _Source(str(copy), *counted_file(str(copy), overrides), digest(content), overrides, weights=weights)


def _converted(
    model: str, folder: Path, preprocessing: Overrides, keep: float | None, notify: Notify, overrides: dict[str, Any]
) -> _Source:  # fmt: skip
    """The model in group-conv form in a file of its own, so that every variant runs the same network."""
    from cnet_deploy.checkpoints.load import load
    from cnet_deploy.checkpoints.save import save
    from cnet_deploy.workflows.prepare import group_conv_form, prepared_by, tell_of_pool

    loaded = load(model, **overrides)
    tell_of_pool(loaded, overrides)
    with naming(model):
        prepared = prepared_by(loaded, preprocessing)
        converted = group_conv_form(prepared, keep, notify)
    if doubts := converted.preprocessing.doubts():
        log.warning("%s: %s here, or to convert or export, whose files keep it", model, doubts)
        converted.preprocessing = replace(converted.preprocessing, guessed=())
    path = folder / "model.safetensors"
    save(converted, path)
    cost = converted.architecture.cost()
    return _Source(str(path), cost.flops, cost.params, None, {}, converted.architecture.classes)


def _overlaps(images: Path | str | None, data: Path | str | None, split: Split) -> bool:
    """Whether images that a network is calibrated with are among those that it is evaluated on, as far as their places tell."""
    if images is None or data is None or Path(images).absolute() != Path(data).absolute():
        return False
    return split_for_calibration(data) in (split, None)


def _row(label: str, source: _Source, chosen: Sequence[str], threads: int, batch: int, device: str) -> Row:
    paper = paper_row(label)
    results = [
        Result(Cell(label, source.path, name, threads, batch, _options(name, source), device), batch=batch) for name in chosen
    ]  # fmt: skip
    return Row(label, source.flops, source.params, source.sha256, paper.top1_error if paper else None, results)


def _options(backend: str, source: _Source) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in source.opening.items() if key in described(backend).takes
    }


def _open_once(result: Result, source: _Source) -> str:
    """The precision of a variant. What can't be opened gets its reason now, before time is spent on it."""
    cell = result.cell
    if result.error is not None or cell.model.startswith(NAMED):
        return precision_of(cell.backend)
    try:
        with open_session(cell.model, cell.backend, cell.device, cell.threads, **cell.options) as session:
            return session.precision
    except CnetDeployError as error:
        result.error, result.exit_code = _by_name(str(error), cell, source), error.exit_code
    except Exception as error:  # of a runtime; one variant's, and no reason to end the comparison
        result.error, result.exit_code = f"{type(error).__name__}: {error}"[:500], Unavailable.exit_code
    return precision_of(cell.backend)


def _by_name(message: str, cell: Cell, source: _Source) -> str:
    """A message with the name that the user gave: the file that failed may be a copy or an export."""
    return message.replace(cell.model, cell.label).replace(source.path, cell.label)


def _size(result: Result) -> int | None:
    path = Path(result.cell.model)
    return path.stat().st_size if result.error is None and path.is_file() else None


# ---- answers -----------------------------------------------------------------------------------------------------------------------


def _evaluated(
    usable: Sequence[Result], source: _Source, data: Path | str, split: Split, limit: int | None, preprocessing: Overrides,
    workers: int | None, skip_corrupt: int, exif: bool, parts: _Parts, count: int, overrides: dict[str, Any],
) -> Evaluation:  # fmt: skip
    artifact = source.classes is None
    with parts.step("evaluate", _seconds_of_answers(count, len(usable), source)) as within:
        return evaluate(
            [result.cell.model for result in usable], data, split=split, device=usable[0].cell.device, threads=usable[0].cell.threads,
            workers=workers, preprocessing=preprocessing if artifact else NO_OVERRIDES, skip_corrupt=skip_corrupt, exif=exif,
            progress=within, limit=limit,
            backends=[result.cell.backend for result in usable], names=[f"{r.cell.label} on {r.cell.backend}" for r in usable],
            **(overrides if artifact else {}),
        )  # fmt: skip


def _counts(
    dataset: Dataset | None, evaluation: Evaluation, usable: Sequence[Result], precisions: Mapping[str, str]
) -> tuple[Images, dict[str, Accuracy]]:
    """The images, and each variant's counts by its backend; the first variant in fp32 is the reference."""
    refused = len(evaluation.refused)
    total = evaluation.images + refused if dataset is None else len(dataset)
    images = Images(printable(evaluation.dataset), evaluation.split, total, evaluation.images, evaluation.classes, refused)
    answers = [result.cell.backend for result in usable]
    first = next((file for name, file in zip(answers, evaluation.files, strict=True) if precisions[name] == FULL), None)
    counts = {}
    for name, file in zip(answers, evaluation.files, strict=True):
        own: dict[str, int] = {}
        if first is not None:
            own = {
                "agree": int((first.answers == file.answers).sum()),
                "lost": int((first.correct & ~file.correct).sum()),
                "won": int((~first.correct & file.correct).sum()),
            }
        counts[name] = Accuracy(file.images, file.right1, file.right5, file.not_finite, **own)
    return images, counts


# ---- how long it takes -------------------------------------------------------------------------------------------------------------

_OPERATIONS = 4e9  # multiply-adds in a second, of one variant while images are read: a low guess
_LEAST_IMAGE = 1e-3  # seconds


def _seconds_of_answers(count: int, variants: int, source: _Source) -> float:
    return count * variants * max(_LEAST_IMAGE, (source.flops or 0) / _OPERATIONS)


def _shares(report: Report, count: int, source: _Source, settings: Settings, images: int) -> tuple[float, float, float]:
    """Seconds that exports, answers and turns will take, by a guess; ``images`` are those of a calibration."""
    cells = len(report.rows[0].results)
    exports = len({target_for(result.cell.backend, source.path) and result.cell.backend for result in report.results} - {None})
    calibrated = any(is_calibrated(result.cell.backend, source.path) for result in report.results)
    ranges = calibrating(images, source.flops) if calibrated else 0.0
    return EXPORTING * exports + ranges, _seconds_of_answers(count, cells, source), estimate(cells, settings)


def _announcement(report: Report, count: int, settings: Settings, seconds: float) -> str:
    cells = len(report.rows[0].results)
    what = f"{count:,} images" if count else "no images (latency and size only; --data DATA adds accuracy)"
    return f"{cells} variants, {settings.rounds} round{'s' * (settings.rounds > 1)}, {what}: this takes about {in_words(seconds)}"


class _Parts:
    """The progress of a comparison, whose parts take so many seconds of ``total`` by a guess."""

    def __init__(self, progress: Progress, total: float) -> None:
        self._progress, self._total, self._done = progress, max(total, 1e-9), 0.0

    def step(self, text: str, seconds: float) -> _Part:
        return _Part(self, text, seconds)

    def turns(self, cells: int, settings: Settings) -> Callable[[str], None]:
        """What ``proceed`` calls before each turn."""
        each = (self._total - self._done) / max(1, steps(cells, settings))

        def turn(text: str) -> None:
            self.report(text, 0.0)
            self._done += each

        return turn

    def report(self, text: str, seconds: float) -> None:
        self._progress(text, min(1.0, (self._done + seconds) / self._total))

    def advance(self, seconds: float) -> None:
        self._done += seconds


class _Part:
    """One part; entering it gives a function of a line of text and the share of the part that is done."""

    def __init__(self, parts: _Parts, text: str, seconds: float) -> None:
        self._parts, self._text, self._seconds = parts, text, seconds

    def __enter__(self) -> Progress:
        self._parts.report(self._text, 0.0)
        return lambda text, share: self._parts.report(f"{self._text}: {text}", share * self._seconds)

    def __exit__(self, *_: object) -> None:
        self._parts.advance(self._seconds)
