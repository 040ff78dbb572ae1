"""Model -> verified artifact: convert if necessary, lower, export, verify. The file is renamed only after it was verified."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from cnet_deploy.artifacts import self_check
from cnet_deploy.artifacts.manifest import FORMAT, Manifest, manifest_path
from cnet_deploy.artifacts.pair import atomic_pair, describe, read_pair
from cnet_deploy.artifacts.triton import Repository, require_threads
from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused, naming, printable
from cnet_deploy.exporters import exporter, options_of, require_choices, target_of
from cnet_deploy.exporters.base import Written
from cnet_deploy.files import check_output, exists, temporary_folder
from cnet_deploy.files.replacing import key_of
from cnet_deploy.images.decode import Images
from cnet_deploy.images.preprocessing import NO_OVERRIDES, Overrides
from cnet_deploy.models.architecture import FinalPool
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.demands import require_runnable
from cnet_deploy.program.calibration import Calibration, Method, Progress, require_integers
from cnet_deploy.program.forms import rewrite
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import Program
from cnet_deploy.sessions import open_session
from cnet_deploy.sessions.base import Session
from cnet_deploy.sessions.torch.session import TorchSession
from cnet_deploy.workflows.calibration import COUNT, Data
from cnet_deploy.workflows.prepare import Notify, default_output, exportable, input_of, open_model, output_of, stated_by, tell_of_pool
from cnet_deploy.workflows.publish import publish, serving_of
from cnet_deploy.workflows.quantization import INT8, Quantized, Wanted, quantization_for
from cnet_deploy.workflows.verify import MOST_RANDOM, Comparison, Real, compare_all, compare_exactly

log = logging.getLogger(__name__)
Forms = str | Mapping[str, str]
_CLOSER = "calibrate on more images as the network is used with"
_BUDGET = ", or give --accuracy-budget, which keeps layers in higher precision"
_NO_FORMS = "only networks of the CondenseNet family have forms to choose from; leave --form out"


@dataclass(frozen=True)
class Exported:
    """An artifact that was written: its path, its manifest, and the comparisons with its model.

    For an artifact that can't be run on this machine ``comparisons`` is empty and ``unverified`` says why. ``notes`` are the exporter's
    lines about what was built. ``replaced`` names the file that had this path before, with its precision; None if there was none.
    ``calibration`` is that of an artifact in int8: give it to `export` for the same network and another target.
    """

    path: Path
    manifest: Manifest
    comparisons: list[Comparison]
    unverified: str | None = None
    notes: tuple[str, ...] = ()
    replaced: str | None = None
    calibration: Calibration | None = None

    def lines(self) -> list[str]:
        """Lines of text: the comparisons, what was built, what was written."""
        compared = [comparison.summary() for comparison in self.comparisons]
        then = f"; replaced {self.replaced}" if self.replaced else ""
        return [*compared, *self.notes, f"wrote {self.path} ({self.manifest.bytes:,} bytes) and {manifest_path(self.path)}{then}"]


def export(
    model: nn.Module | Path | str,
    target: str,
    out: Path | str | None = None,
    *,
    classifier_keep: float | None = None,
    labels: Path | str | None = None,
    images: Path | str | None = None,
    tolerance: float | None = None,
    sha256: str | None = None,
    precision: str | None = None,
    batch: int | tuple[int, int, int] | None = None,
    opset: int | None = None,
    cpu: str | None = None,
    workspace: int | None = None,
    timing_cache: Path | None = None,
    flavour: str | None = None,
    groups: int | None = None,
    condense_factor: int | None = None,
    input_size: tuple[int, int] | None = None,
    stem_stride: int | None = None,
    weights: str | None = None,
    final_pool: FinalPool | None = None,
    hs_from: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    preprocessing: Overrides = NO_OVERRIDES,
    calibrate: Data | None = None,
    calibration: Method | Calibration = "minmax",
    calibration_images: int = COUNT,
    accuracy_budget: float | None = None,
    notify: Notify = lambda _: None,
    progress: Progress = lambda *_: None,
    form: Forms | Callable[[Program], Forms] = "gather",
    **options: Any,
) -> Exported:
    """Export a model, a file or a named network to ``target`` ("onnx", "native", "tensorrt" …), and verify the artifact.

    A model in training form is converted first, keeping ``classifier_keep`` of the classifier's inputs (None: half, as the reference; of
    CondenseNet V2 all).
    ``notify`` gets lines of text about such steps. The artifact is compared with the model on fresh random inputs and on ``images``. If it
    can't be run here, the manifest says so and carries a self-check that runs when the artifact is first opened. ``form`` is one of
    program.forms.FORMS for all dense blocks, a mapping from block to form, or a function that chooses for the Program. ``labels`` is a
    file with the classes' names (see images/class_names.py), ``sha256`` the digest that the model's file must have. ``preprocessing``
    states how images are prepared, where the model does not or is wrong: ``Overrides(statistics="cifar10")``.

    Precision "int8" needs ``calibrate``, images as the network is used with: a dataset's folder, a CIFAR binary file, images, or float32
    [N, channels, H, W] that are prepared. Of these, ``calibration_images`` are taken, evenly over classes where they are known, and the
    ranges of values by ``calibration``: "minmax", "percentile", "entropy", or a Calibration from an earlier export. ``accuracy_budget``, in
    points of top-1, keeps as many dense layers in higher precision as are needed to lose no more on labelled ``images`` (else those of
    ``calibrate``); see workflows/budget.py. ``progress`` gets a line of text and the share that is done.

    Of the target are ``precision`` ("fp32", "fp16", "bf16", "tf32", "int8"), ``batch`` (images per inference; None: any; engines: least,
    best and most), ``opset`` (onnx), ``cpu`` (native: "host", "x86-64-v3" …), ``workspace`` in bytes, ``timing_cache`` and ``flavour``
    (tensorrt), and further ``options`` (see ``write`` in its module). ``groups`` to ``hs_from`` say what the model's file does not
    (see ``checkpoints.load``); ``overrides`` is the same as a mapping. ``out`` None puts the artifact beside the model's file, with a
    smaller precision than fp32 in its name: m.fp16.onnx. Raises CheckFailed if the outputs differ beyond ``tolerance`` (relative to the
    largest logit; see ``Comparison`` for int8) or the budget can't be held: then no file is written and an existing one is kept;
    InputRefused and OutputRefused as the steps do.
    """
    form = options.pop("lowering", form)  # its name until 0.1.0
    notify = options.pop("say", notify)  # likewise
    own = {
        "precision": precision, "batch": batch, "opset": opset, "cpu": cpu, "workspace": workspace, "timing_cache": timing_cache,
        "flavour": flavour,
    }  # fmt: skip
    options |= {name: value for name, value in own.items() if value is not None}
    loading = {
        "groups": groups, "condense_factor": condense_factor, "input_size": input_size, "stem_stride": stem_stride, "weights": weights,
        "final_pool": final_pool, "hs_from": hs_from,
    }  # fmt: skip
    overrides = {**(overrides or {}), **{name: value for name, value in loading.items() if value is not None}}
    write = exporter(target)
    if unknown := sorted(set(options) - options_of(target)):
        raise InputRefused(f"{target} has no option {', '.join(unknown)}; expected some of {', '.join(sorted(options_of(target)))}")
    require_choices(target, options)
    wanted = Wanted(calibrate, calibration, calibration_images, accuracy_budget)
    wanted.require(options.get("precision"), form)
    source = None if isinstance(model, nn.Module) else Path(model)
    out = output_of(source, target, out, options.get("precision"))
    for read in (source, labels, images, calibrate):
        check_artifact(out, target, read if isinstance(read, (str, Path)) else None)
    replaced = _there(out)
    if not isinstance(model, nn.Module):
        model = open_model(model, {**overrides, "sha256": sha256}, notify)
    with naming(source):
        _require_precision(model, options.get("precision"))  # before any image is read
        model = stated_by(model, preprocessing)
    tell_of_pool(model, overrides)
    size, classes, data = input_of(model, images)
    with naming(source):
        model = exportable(model, classifier_keep, labels, notify)
    if isinstance(model, DenselyConnected):
        with naming(source):
            require_runnable(model.architecture, MOST_RANDOM)  # which it is verified with
    with atomic_pair(out, source=source) as (temporary, beside), _evaluating(model), TorchSession(model, size, classes) as reference:
        network, chosen = _lowered(model, form)
        stated = {name: value for name, value in {"form": chosen, **options}.items() if value is not None and not callable(value)}
        log.info("exporting to %s: %s", target, ", ".join(f"{name} {value}" for name, value in stated.items()))
        options |= {
            name: value for name, value in (("soname", out.name), ("progress", progress)) if name in options_of(target) - {*options}
        }
        quantized = None
        if options.get("precision") == INT8:
            quantized = quantization_for(network, target, wanted, data, reference.run, notify, progress)
            options["quantization"] = quantized.quantization
        written = write(network, temporary, **options)
        manifest = _describe(model, target, temporary, written, chosen, quantized)
        manifest, comparisons = _verify(temporary, manifest, written, reference, data, tolerance, notify, quantized)
        if failed := next((c for c in comparisons if not c.passed), None):
            more = "" if failed.least_cosine is None else f"; {_CLOSER}{_BUDGET if accuracy_budget is None else ''}"
            raise CheckFailed(
                f"{out}: the artifact's outputs differ from the model's beyond the tolerance; nothing was written. {failed.summary()}{more}"
            )
        if quantized is not None and comparisons:
            quantized.require_budget(comparisons[-1])
        beside.write_text(manifest.to_json(), encoding="utf-8")
    notes, ranges = written.notes, None
    if quantized is not None:
        notes, ranges = (*quantized.lines, *notes), quantized.quantization.calibration
    return Exported(out, manifest, comparisons, written.unverifiable, notes, replaced, ranges)


def check_artifact(out: Path, target: str, source: Path | str | None) -> None:
    """Raise OutputRefused where an artifact of ``target`` and its manifest can't be written, before any work is done."""
    check_output(out, source=source, like=target_of(target).kind)
    check_output(manifest_path(out), source=source, like=key_of(FORMAT))


def _require_precision(model: nn.Module, precision: str | None) -> None:
    """Raise InputRefused for a network that is not written in this precision."""
    if precision == INT8 and isinstance(model, DenselyConnected):
        require_integers(model)


def _there(path: Path) -> str | None:
    """The file that an artifact will replace: its name, and its precision where its manifest states it; None if there is none."""
    if not exists(path):
        return None
    try:
        manifest = read_pair(path).manifest
    except InputRefused:
        manifest = None
    return path.name if manifest is None else f"{path.name} ({printable(manifest.precision)})"


def _describe(model: nn.Module, target: str, file: Path, written: Written, form: Forms, quantized: Quantized | None) -> Manifest:
    """The manifest of what was written, without the results of verification."""
    details = {**written.details, **({} if form == "gather" else {"form": form})}
    if quantized is not None:
        details["quantization"] = quantized.details
    about: dict[str, Any] = {}
    if isinstance(model, DenselyConnected):
        about = {
            "source_sha256": model.source.digest if model.source else "", "architecture": model.architecture,
            "preprocessing": model.preprocessing, "class_names": model.class_names,
        }  # fmt: skip
    return describe(file, target, written.precision, details=details, libraries=written.libraries, **about)


def _verify(
    file: Path, manifest: Manifest, written: Written, reference: Session, data: Images | None, tolerance: float | None, notify: Notify,
    quantized: Quantized | None = None,
) -> tuple[Manifest, list[Comparison]]:  # fmt: skip
    """Compare the artifact with the model and add the result to the manifest; add a self-check if it can't be run here."""
    if written.unverifiable is not None:
        notify(f"not verified: {written.unverifiable}; the first opening where it can be run does so, by the manifest's self-check")
        allowed = self_check.tolerance_of(written.precision) if written.exact is None else self_check.EXACT
        if tolerance is not None and tolerance > allowed:
            log.warning(
                "the self-check of an artifact allows at most %g for %s: that is used, not %g", allowed, written.precision, tolerance
            )
        allowed = allowed if tolerance is None else min(tolerance, allowed)
        run = written.exact or reference.run
        details = {**manifest.details, "verified": False, "reason": written.unverifiable}
        return replace(manifest, details=details, proof=self_check.make(run, reference.input_shape[1:], allowed)), []
    path = manifest_path(file)  # the file still has its temporary name, and a session reads the manifest beside it
    try:
        path.write_text(manifest.to_json(), encoding="utf-8")
        with open_session(file, timeout=None) as session:
            real: tuple[Real | None, str] = (data, "images") if quantized is None else quantized.images
            comparisons = compare_all(session, reference, real[0], tolerance, real=real[1])
            if written.exact is not None and reference.preprocessing is not None:
                comparisons.insert(0, compare_exactly(session, written.exact, reference.preprocessing))
    finally:
        path.unlink(missing_ok=True)
    return replace(manifest, verification=tuple(c.to_dict() for c in comparisons)), comparisons


def export_repository(
    model: Path | str, target: str, folder: Path | str, *, backend: str | None = None, instances: int = 1, threads: int | None = None,
    **options: Any,
) -> tuple[Exported, Repository]:  # fmt: skip
    """``export`` into a model repository of NVIDIA Triton Inference Server (artifacts/triton.py), under the name of the model's file.

    ``backend``, ``instances`` and ``threads`` are those of ``publish``. Raises InputRefused for a target that Triton does not serve, and as
    ``export`` and ``publish`` do.
    """
    require_threads(serving_of(target, backend), instances, threads)  # before the network is exported
    with temporary_folder("triton") as place:
        try:
            done = export(model, target, place / default_output(model, target_of(target).suffix).name, **options)
        except OutputRefused as error:
            raise OutputRefused(f"{error} (the artifact is first written there; set TMPDIR to use another folder)") from None
        return done, publish(folder, done.path, backend=backend, instances=instances, threads=threads)


def _lowered(model: nn.Module, form: Forms | Callable[[Program], Forms]) -> tuple[Program | nn.Module, Forms]:
    """The network to export (a Program for the family) and the forms of its blocks."""
    if isinstance(model, DenselyConnected):
        program = lower(model)
        chosen = form(program) if callable(form) else form
        return rewrite(program, chosen), chosen
    if form != "gather":
        raise InputRefused(_NO_FORMS)
    return model, form


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and back into the caller's mode afterwards."""
    training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(training)
