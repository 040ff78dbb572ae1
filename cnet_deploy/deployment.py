"""Model -> verified artifact: convert if need be, lower, export, verify, and only then give the file its name."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cnet_deploy import proof
from cnet_deploy.architecture import Cost
from cnet_deploy.checkpoint import load, save
from cnet_deploy.conversion import DEFAULT_KEEP, convert, require_classifier_keep
from cnet_deploy.data import Images, read_images
from cnet_deploy.errors import CheckFailed, InputRefused, naming
from cnet_deploy.exporters import SUFFIXES, exporter, options_of
from cnet_deploy.files import atomic_outputs, check_output, digest
from cnet_deploy.lowering import lower
from cnet_deploy.manifest import Manifest, manifest_path
from cnet_deploy.models import NAMES, DenselyConnected, build_named
from cnet_deploy.models.baselines import BASELINES, CLASSES, INPUT_SIZE
from cnet_deploy.preprocessing import Preprocessing
from cnet_deploy.program import Program
from cnet_deploy.rewriting import rewrite
from cnet_deploy.sessions import open_session
from cnet_deploy.sessions.torch import TorchSession, from_module
from cnet_deploy.triton import Repository, write_repository
from cnet_deploy.verification import TOLERANCES, Batch, Comparison, compare, compare_all

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
    images: Path | str | None = None,
    tolerance: float | None = None,
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
    one for each dense block. ``options`` are the target's own (see ``write`` in its module);
    ``overrides`` are those of ``checkpoint.load``. ``out`` None puts the artifact beside the model's file.
    Raises CheckFailed if the outputs differ beyond ``tolerance`` (relative to the largest logit): no file is left then, and one that was
    there is kept; InputRefused and OutputRefused as the steps do.
    """
    write = exporter(target)
    if unknown := sorted(set(options) - options_of(target)):
        raise InputRefused(f"{target} has no option {', '.join(unknown)}; expected some of {', '.join(sorted(options_of(target)))}")
    source = None if isinstance(model, nn.Module) else Path(model)
    if out is None:
        if source is None:
            raise InputRefused("out is needed for a model that is in memory; expected the path to write to")
        out = default_output(source, SUFFIXES[target])
    out = Path(out)
    if out.suffix != SUFFIXES[target]:
        raise InputRefused(f"{out}: unknown suffix for the target {target}; expected {SUFFIXES[target]}")
    check_output(out, source=source)
    if not isinstance(model, nn.Module):
        model = _open_model(model, overrides or {}, say)
    size, classes, steps = _input_of(model)
    if images is not None and steps is None:
        raise InputRefused("this network has no preprocessing of its own, so real images can't be fed to it; leave --images out")
    data = read_images(images, steps, classes) if images is not None and steps is not None else None
    if isinstance(model, DenselyConnected):
        with naming(source):
            model = _group_conv_form(model, classifier_keep, say)
    # A reader that meets the two names in between sees digests that differ.
    with atomic_outputs(out, manifest_path(out), source=source) as (temporary, beside), _evaluating(model):
        written = write(_lowered(model, lowering), temporary, **options)
        content = temporary.read_bytes()
        description = Manifest(
            target, digest(content), len(content), written.precision,
            model.source.digest if isinstance(model, DenselyConnected) and model.source else "",
            model.architecture if isinstance(model, DenselyConnected) else None, steps,
            {**written.details, **({} if lowering == "gather" else {"lowering": lowering})}, written.libraries,
        )  # fmt: skip
        comparisons: list[Comparison] = []
        if written.unverifiable is None:
            with _described(temporary, description), open_session(temporary) as session, TorchSession(model, size, classes) as reference:
                comparisons = compare_all(session, reference, data, tolerance)
            description = replace(description, verification=tuple(c.to_dict() for c in comparisons))
        else:
            say(f"not verified: {written.unverifiable}; the first opening where it can be run does so, by the manifest's proof")
            details = {**description.details, "verified": False, "reason": written.unverifiable}
            with TorchSession(model, size, classes) as reference:
                allowed = TOLERANCES[written.precision] if tolerance is None else tolerance
                evidence = proof.make(reference.run, (3, *size), allowed)
            description = replace(description, details=details, proof=evidence)
        if failed := next((c for c in comparisons if not c.passed), None):
            raise CheckFailed(
                f"{out}: the artifact's outputs differ from the model's beyond the tolerance; nothing was written. {failed.summary()}"
            )
        beside.write_text(description.to_json(), encoding="utf-8")
    return Exported(out, description, comparisons, written.unverifiable)


def export_repository(model: Path | str, target: str, folder: Path | str, **options: Any) -> tuple[Exported, Repository]:
    """``export`` straight into a model repository of NVIDIA Triton Inference Server (triton.py), named after the model's file."""
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-") as place:
        done = export(model, target, Path(place) / default_output(model, SUFFIXES[target]).name, **options)
        return done, write_repository(folder, done.path)


def group_conv_network(model: Path | str, classifier_keep: float | None, overrides: dict[str, Any]) -> DenselyConnected:
    """The network that ``export`` would lower. Raises InputRefused for one that has no lowerings."""
    network = _open_model(model, overrides, lambda _: None)
    if not isinstance(network, DenselyConnected):
        raise InputRefused(_NO_LOWERINGS)
    with naming(model):
        return _group_conv_form(network, classifier_keep, lambda _: None)


def _lowered(model: nn.Module, lowering: str | Mapping[str, str]) -> Program | nn.Module:
    if isinstance(model, DenselyConnected):
        return rewrite(lower(model), lowering)
    if lowering != "gather":
        raise InputRefused(_NO_LOWERINGS)
    return model


@contextlib.contextmanager
def _described(artifact: Path, description: Manifest) -> Iterator[None]:
    """The manifest beside an artifact that has not got its name yet: a session reads both."""
    path = manifest_path(artifact)
    try:
        path.write_text(description.to_json(), encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)


def _open_model(model: Path | str, overrides: dict[str, Any], say: Say) -> nn.Module:
    """A file's model; or, where no such file is, the network of that name."""
    if str(model) in NAMES and not Path(model).exists():
        say(f"{model} is the name of a network: its weights are random, good for measuring alone")
        return build_named(str(model))
    if not Path(model).exists() and not Path(model).suffix:
        raise InputRefused(f"{model}: no such file, and no network of that name; expected a checkpoint or one of {', '.join(NAMES)}")
    return load(model, **overrides)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and the caller's mode again afterwards."""
    training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(training)


def _input_of(model: nn.Module) -> tuple[tuple[int, int], int, Preprocessing | None]:
    """Input size, classes and preprocessing of what can be exported; anything else is refused."""
    if not isinstance(model, (DenselyConnected, *BASELINES.values())):
        raise InputRefused(f"can't export a {type(model).__name__}; expected a model of `load` or `convert`, or one of the paper's table")
    if other := next((str(p.dtype) for p in model.parameters() if p.dtype != torch.float32), None):
        raise InputRefused(f"the model's weights are {other}; expected torch.float32: call model.float() first")
    if isinstance(model, DenselyConnected):
        return model.architecture.input_size, model.architecture.classes, model.preprocessing
    return INPUT_SIZE, CLASSES, None


def _group_conv_form(model: DenselyConnected, keep: float | None, say: Say) -> DenselyConnected:
    if model.form == "training":
        keep = DEFAULT_KEEP if keep is None else keep
        say(f"the model is in training form: converting it first, keeping {keep:g} of the classifier's inputs")
        return convert(model, classifier_keep=keep)
    if keep is not None:
        require_classifier_keep(model, keep)
    return model


@dataclass(frozen=True)
class Converted:
    """A conversion that was verified and written.

    ``before`` and ``after`` are the costs of both forms as they are executed. ``faithful`` compares the group-conv form with the
    training form, classifier whole; ``cut`` compares the classifier as it was kept with the whole one (None where nothing was cut).
    """

    path: Path
    model: DenselyConnected
    before: Cost
    after: Cost
    faithful: Comparison | None
    cut: Comparison | None

    def summary(self) -> str:
        """Several lines for people."""
        arch = self.model.architecture
        lines = [arch.summary()]
        if self.faithful is None:
            lines.append("already in group-conv form: weights rewritten as they are")
        else:
            for what, before, after in (("FLOPs", self.before.flops, self.after.flops), ("params", self.before.params, self.after.params)):
                times = f"{before / after:.2f} times less"
                lines.append(f"{what}: {before / 1e6:,.2f} M in training form -> {after / 1e6:,.2f} M in group-conv form ({times})")
            lines.append(f"against the training form, classifier whole, on {self.faithful.summary()}")
        if cut := self.cut:
            text = f"the classifier keeps {arch.kept_features} of {arch.features} inputs: on {cut.inputs} logits change by up to "
            text += f"{cut.max_error / cut.scale:.1%} of the largest, top-1 agrees on {cut.agreement:.2%}"
            if cut.top1 is None:
                text += "; noise tells little: give --images"
            else:
                text += f", top-1 accuracy {cut.reference_top1:.2%} -> {cut.top1:.2%}"
            lines.append(text)
        return "\n".join([*lines, f"wrote {self.path}"])


def convert_file(
    path: Path | str,
    out: Path | str | None = None,
    *,
    classifier_keep: float | None = None,
    images: Path | str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Converted:
    """Convert a training checkpoint and write the group-conv form; say what that changed on ``images`` (or on random inputs).

    A file in group-conv form already is rewritten as it is. ``out`` None writes ``.safetensors`` beside the file.
    Raises CheckFailed if the converted network computes something else than the training form; InputRefused and OutputRefused as
    ``checkpoint.load``, ``convert`` and ``checkpoint.save`` do.
    """
    out = default_output(path, ".safetensors") if out is None else Path(out)
    check_output(out, source=path)
    model = load(path, **(overrides or {}))
    data = read_images(images, model.preprocessing, model.architecture.classes) if images is not None else None
    with naming(path):
        converted = _group_conv_form(model, classifier_keep, say=lambda _: None)
    faithful, cut = None, None
    if model.form == "training":
        whole = convert(model, classifier_keep=1.0)
        faithful = _side_by_side(whole, model, data)
        cut = None if converted.architecture.classifier_keep == 1 else _side_by_side(converted, whole, data)
        if not faithful.passed:
            raise CheckFailed(f"{path}: the converted network differs from the training form; nothing was written. {faithful.summary()}")
    save(converted, out, source=path)
    return Converted(out, converted, model.architecture.cost(model.form), converted.architecture.cost(), faithful, cut)


def _side_by_side(ours: DenselyConnected, theirs: DenselyConnected, data: Images | None) -> Comparison:
    """Compare two models on images, or on as much noise as a few seconds allow."""
    if data is None:
        height, width = theirs.architecture.input_size
        count = min(64, max(1, 400_000 // (height * width)))
        inputs = f"{count} random inputs"
        noise = np.random.default_rng(0).standard_normal((count, 3, height, width), np.float32)
        batches: Iterator[Batch] = iter([(noise, None)])
    else:
        inputs, batches = f"{len(data)} images", data.batches(theirs.preprocessing)
    with from_module(ours) as a, from_module(theirs) as b:
        return compare(a.run, b.run, batches, inputs=inputs, tolerance=TOLERANCES["fp32"])


def default_output(source: Path | str, suffix: str) -> Path:
    """The artifact beside its model.

    >>> default_output("dir/model.pth.tar", ".onnx").as_posix()
    'dir/model.onnx'
    """
    source = Path(source)
    name = source.name
    for known in (".pth.tar", ".safetensors", ".pth", ".pt", ".tar"):
        if name.endswith(known):
            name = name.removesuffix(known)
            break
    return source.with_name(name + suffix)
