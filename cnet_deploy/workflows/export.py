"""Model -> verified artifact: convert if necessary, lower, export, verify. The file is renamed only after it was verified."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from cnet_deploy.artifacts import self_check
from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.artifacts.pair import atomic_pair, describe
from cnet_deploy.artifacts.triton import Repository
from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused, naming
from cnet_deploy.exporters import exporter, options_of, require_choices, target_of
from cnet_deploy.exporters.base import Written
from cnet_deploy.files import check_output
from cnet_deploy.images.decode import Images
from cnet_deploy.images.preprocessing import NO_OVERRIDES, Overrides
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.forms import rewrite
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import Program
from cnet_deploy.sessions import open_session
from cnet_deploy.sessions.base import Session
from cnet_deploy.sessions.torch.session import TorchSession
from cnet_deploy.workflows.prepare import Notify, default_output, exportable, input_of, open_model, output_of, stated_by, tell_of_pool
from cnet_deploy.workflows.publish import publish, serving_of
from cnet_deploy.workflows.verify import TOLERANCES, Comparison, compare_all

log = logging.getLogger(__name__)
Forms = str | Mapping[str, str]
_NO_FORMS = "only networks of the CondenseNet family have forms to choose from; leave --form out"


@dataclass(frozen=True)
class Exported:
    """An artifact that was written: its path, its manifest, and the comparisons with its model.

    For an artifact that can't be run on this machine ``comparisons`` is empty and ``unverified`` says why. ``notes`` are the exporter's
    lines about what was built.
    """

    path: Path
    manifest: Manifest
    comparisons: list[Comparison]
    unverified: str | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Lines of text: the comparisons, what was built, what was written."""
        compared = [comparison.summary() for comparison in self.comparisons]
        return [*compared, *self.notes, f"wrote {self.path} ({self.manifest.bytes:,} bytes) and {self.path.name}.json"]


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
    overrides: dict[str, Any] | None = None,
    preprocessing: Overrides = NO_OVERRIDES,
    notify: Notify = lambda _: None,
    form: Forms | Callable[[Program], Forms] = "gather",
    **options: Any,
) -> Exported:
    """Export a model, a file or a named network to ``target`` ("onnx", "native", "tensorrt" …), and verify the artifact.

    A model in training form is converted first, keeping ``classifier_keep`` of the classifier's inputs (None: half, as the reference).
    ``notify`` gets lines of text about such steps. The artifact is compared with the model on fresh random inputs and on ``images``. If it
    can't be run here, the manifest says so and carries a self-check that runs when the artifact is first opened. ``form`` is one of
    program.forms.FORMS for all dense blocks, a mapping from block to form, or a function that chooses for the Program. ``labels`` is a
    file with the classes' names (see images/class_names.py), ``sha256`` the digest that the model's file must have. ``preprocessing``
    states how images are prepared, where the model does not or is wrong: ``Overrides(statistics="cifar10")``. ``options`` are the
    target's own (see ``write`` in its module); ``overrides`` are those of ``checkpoints.load``. ``out`` None puts the artifact beside the
    model's file. Raises CheckFailed if the outputs differ beyond ``tolerance`` (relative to the largest logit): then no file is written
    and an existing one is kept; InputRefused and OutputRefused as the steps do.
    """
    form = options.pop("lowering", form)  # its name until 0.1.0
    notify = options.pop("say", notify)  # likewise
    write = exporter(target)
    if unknown := sorted(set(options) - options_of(target)):
        raise InputRefused(f"{target} has no option {', '.join(unknown)}; expected some of {', '.join(sorted(options_of(target)))}")
    require_choices(target, options)
    source = None if isinstance(model, nn.Module) else Path(model)
    out = output_of(source, target, out)
    check_output(out, source=source)
    if not isinstance(model, nn.Module):
        model = open_model(model, {**(overrides or {}), "sha256": sha256}, notify)
    with naming(source):
        model = stated_by(model, preprocessing)
    tell_of_pool(model, overrides)
    size, classes, data = input_of(model, images)
    with naming(source):
        model = exportable(model, classifier_keep, labels, notify)
    with atomic_pair(out, source=source) as (temporary, beside), _evaluating(model):
        network, chosen = _lowered(model, form)
        log.info("exporting to %s: %s", target, {**options, "form": chosen})
        written = write(network, temporary, **options)
        manifest = _describe(model, target, temporary, written, chosen)
        with TorchSession(model, size, classes) as reference:
            manifest, comparisons = _verify(temporary, manifest, written, reference, data, tolerance, notify)
        if failed := next((c for c in comparisons if not c.passed), None):
            raise CheckFailed(
                f"{out}: the artifact's outputs differ from the model's beyond the tolerance; nothing was written. {failed.summary()}"
            )
        beside.write_text(manifest.to_json(), encoding="utf-8")
    return Exported(out, manifest, comparisons, written.unverifiable, written.notes)


def _describe(model: nn.Module, target: str, file: Path, written: Written, form: Forms) -> Manifest:
    """The manifest of what was written, without the results of verification."""
    details = {**written.details, **({} if form == "gather" else {"form": form})}
    about: dict[str, Any] = {}
    if isinstance(model, DenselyConnected):
        about = {
            "source_sha256": model.source.digest if model.source else "", "architecture": model.architecture,
            "preprocessing": model.preprocessing, "class_names": model.class_names,
        }  # fmt: skip
    return describe(file, target, written.precision, details=details, libraries=written.libraries, **about)


def _verify(
    file: Path, manifest: Manifest, written: Written, reference: Session, data: Images | None, tolerance: float | None, notify: Notify
) -> tuple[Manifest, list[Comparison]]:  # fmt: skip
    """Compare the artifact with the model and add the result to the manifest; add a self-check if it can't be run here."""
    if written.unverifiable is not None:
        notify(f"not verified: {written.unverifiable}; the first opening where it can be run does so, by the manifest's self-check")
        allowed = TOLERANCES[written.precision] if tolerance is None else tolerance
        details = {**manifest.details, "verified": False, "reason": written.unverifiable}
        return replace(manifest, details=details, proof=self_check.make(reference.run, reference.input_shape[1:], allowed)), []
    path = manifest_path(file)  # the file still has its temporary name, and a session reads the manifest beside it
    try:
        path.write_text(manifest.to_json(), encoding="utf-8")
        with open_session(file) as session:
            comparisons = compare_all(session, reference, data, tolerance)
    finally:
        path.unlink(missing_ok=True)
    return replace(manifest, verification=tuple(c.to_dict() for c in comparisons)), comparisons


def export_repository(model: Path | str, target: str, folder: Path | str, **options: Any) -> tuple[Exported, Repository]:
    """``export`` into a model repository of NVIDIA Triton Inference Server (artifacts/triton.py), under the name of the model's file.

    Raises InputRefused for a target that Triton does not serve, and as ``export`` and ``publish`` do.
    """
    serving_of(target)
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-") as place:
        try:
            done = export(model, target, Path(place) / default_output(model, target_of(target).suffix).name, **options)
        except OutputRefused as error:
            raise OutputRefused(f"{error} (the artifact is first written there; set TMPDIR to use another folder)") from None
        return done, publish(folder, done.path)


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
