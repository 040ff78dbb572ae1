"""Model -> verified artifact: convert if need be, lower, export, verify, and only then give the file its name."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from cnet_deploy.artifacts import self_check as proof
from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.artifacts.pair import atomic_pair
from cnet_deploy.artifacts.triton import Repository, write_repository
from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused, naming
from cnet_deploy.exporters import SUFFIXES, exporter, options_of
from cnet_deploy.exporters.base import Written
from cnet_deploy.files import check_output, digest
from cnet_deploy.images.decode import Images
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.forms import rewrite
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import Program
from cnet_deploy.sessions import Session, open_session
from cnet_deploy.sessions.torch import TorchSession
from cnet_deploy.workflows.prepare import _exportable, _input_of, _open_model, default_output, output_of
from cnet_deploy.workflows.verify import TOLERANCES, Comparison, compare_all

log = logging.getLogger(__name__)
Say = Callable[[str], None]
_NO_LOWERINGS = "only CondenseNet, DenseNet and their kin have lowerings to choose from; leave --lowering out"


@dataclass(frozen=True)
class Exported:
    """An artifact that was written: its path, its manifest, how it compared with its model.

    ``comparisons`` is empty, and ``unverified`` says why, for an artifact that can't be run on this machine.
    """

    path: Path
    manifest: Manifest
    comparisons: list[Comparison]
    unverified: str | None = None

    def lines(self) -> list[str]:
        """For people: how it compared, what it really is, what was written."""
        found = self.manifest.details
        lines = [comparison.summary() for comparison in self.comparisons]
        if "flavour" in found:
            counts = ", ".join(f"{count} {name}" for name, count in found["layers"].items())
            lines.append(
                f"built by {found['flavour']} {found['version']}; layers by precision: {counts} (read from the {found['precision_source']})"
            )
        return [*lines, f"wrote {self.path} ({self.manifest.bytes:,} bytes) and {self.path.name}.json"]


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
    say: Say = lambda _: None,
    lowering: str | Mapping[str, str] = "gather",
    **options: Any,
) -> Exported:
    """Export a model, the file it is in, or a named network to ``target`` (a key of ``exporters.SUFFIXES``), and verify it before it
    takes its name.

    A model in training form is converted first, keeping ``classifier_keep`` of the classifier (None: the reference's half), and ``say``
    is told so. The artifact is compared with the model on fresh random inputs and on ``images``, unless it can't be run here: then the
    manifest says that it was not, and carries a proof by which the first opening does it. ``lowering`` is a form of rewriting.FORMS, or
    one for each dense block. ``labels`` is a file of the classes' names (see labels.py), ``sha256`` the digest that the model's file must
    have. ``options`` are the target's own (see ``write`` in its module);
    ``overrides`` are those of ``checkpoint.load``. ``out`` None puts the artifact beside the model's file.
    Raises CheckFailed if the outputs differ beyond ``tolerance`` (relative to the largest logit): no file is left then, and one that was
    there is kept; InputRefused and OutputRefused as the steps do.
    """
    write = exporter(target)
    if unknown := sorted(set(options) - options_of(target)):
        raise InputRefused(f"{target} has no option {', '.join(unknown)}; expected some of {', '.join(sorted(options_of(target)))}")
    source = None if isinstance(model, nn.Module) else Path(model)
    out = output_of(source, target, out)
    check_output(out, source=source)
    if not isinstance(model, nn.Module):
        model = _open_model(model, {**(overrides or {}), "sha256": sha256}, say)
    size, classes, data = _input_of(model, images)
    with naming(source):
        model = _exportable(model, classifier_keep, labels, say)
    with atomic_pair(out, source=source) as (temporary, beside), _evaluating(model):
        log.info("exporting to %s: %s", target, {**options, "lowering": lowering})
        written = write(_lowered(model, lowering), temporary, **options)
        description = _described(model, target, temporary, written, lowering)
        with TorchSession(model, size, classes) as reference:
            description, comparisons = _seen(temporary, description, written, reference, data, tolerance, say)
        if failed := next((c for c in comparisons if not c.passed), None):
            raise CheckFailed(
                f"{out}: the artifact's outputs differ from the model's beyond the tolerance; nothing was written. {failed.summary()}"
            )
        beside.write_text(description.to_json(), encoding="utf-8")
    return Exported(out, description, comparisons, written.unverifiable)


def _described(model: nn.Module, target: str, file: Path, written: Written, lowering: str | Mapping[str, str]) -> Manifest:
    """The manifest of what was written, as far as it is known before anybody ran it."""
    content = file.read_bytes()
    details = {**written.details, **({} if lowering == "gather" else {"lowering": lowering})}
    plain = Manifest(target, digest(content), len(content), written.precision, "", None, None, details, written.libraries)
    if not isinstance(model, DenselyConnected):
        return plain
    source = model.source.digest if model.source else ""
    arch, steps, names = model.architecture, model.preprocessing, model.class_names
    return replace(plain, source_sha256=source, architecture=arch, preprocessing=steps, class_names=names)


def _seen(
    file: Path, description: Manifest, written: Written, reference: Session, data: Images | None, tolerance: float | None, say: Say
) -> tuple[Manifest, list[Comparison]]:  # fmt: skip
    """The manifest with what was seen of the artifact beside the model; where it can't be run, with a proof instead."""
    if written.unverifiable is not None:
        say(f"not verified: {written.unverifiable}; the first opening where it can be run does so, by the manifest's proof")
        allowed = TOLERANCES[written.precision] if tolerance is None else tolerance
        details = {**description.details, "verified": False, "reason": written.unverifiable}
        return replace(description, details=details, proof=proof.make(reference.run, reference.input_shape[1:], allowed)), []
    path = manifest_path(file)  # it has not got its name yet, but a session reads a manifest too
    try:
        path.write_text(description.to_json(), encoding="utf-8")
        with open_session(file) as session:
            comparisons = compare_all(session, reference, data, tolerance)
    finally:
        path.unlink(missing_ok=True)
    return replace(description, verification=tuple(c.to_dict() for c in comparisons)), comparisons


def export_repository(model: Path | str, target: str, folder: Path | str, **options: Any) -> tuple[Exported, Repository]:
    """``export`` straight into a model repository of NVIDIA Triton Inference Server (triton.py), named after the model's file."""
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-") as place:
        try:
            done = export(model, target, Path(place) / default_output(model, SUFFIXES[target]).name, **options)
        except OutputRefused as error:
            raise OutputRefused(f"{error} (it was to be made there first: TMPDIR names another folder)") from None
        return done, write_repository(folder, done.path)


def _lowered(model: nn.Module, lowering: str | Mapping[str, str]) -> Program | nn.Module:
    if isinstance(model, DenselyConnected):
        return rewrite(lower(model), lowering)
    if lowering != "gather":
        raise InputRefused(_NO_LOWERINGS)
    return model


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and the caller's mode again afterwards."""
    training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(training)
