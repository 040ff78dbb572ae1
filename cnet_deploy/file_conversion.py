"""A checkpoint's file -> the file of its group-conv form, with what that changed in figures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.architecture import Cost
from cnet_deploy.checkpoint import load, save
from cnet_deploy.conversion import DEFAULT_KEEP, convert, require_classifier_keep
from cnet_deploy.data import Images, read_images
from cnet_deploy.errors import CheckFailed, naming
from cnet_deploy.files import check_output
from cnet_deploy.labels import read_labels
from cnet_deploy.models import DenselyConnected
from cnet_deploy.sessions.torch import from_module
from cnet_deploy.verification import TOLERANCES, Batch, Comparison, compare

Say = Callable[[str], None]


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
    labels: Path | str | None = None,
    images: Path | str | None = None,
    sha256: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Converted:
    """Convert a training checkpoint and write the group-conv form; say what that changed on ``images`` (or on random inputs).

    ``labels`` is a file of the classes' names (see labels.py), ``sha256`` the digest that the checkpoint must have.
    A file in group-conv form already is rewritten as it is. ``out`` None writes ``.safetensors`` beside the file.
    Raises CheckFailed if the converted network computes something else than the training form; InputRefused and OutputRefused as
    ``checkpoint.load``, ``convert`` and ``checkpoint.save`` do.
    """
    out = default_output(path, ".safetensors") if out is None else Path(out)
    check_output(out, source=path)
    model = named_by(load(path, sha256=sha256, **(overrides or {})), labels)
    data = read_images(images, model.preprocessing, model.architecture.classes) if images is not None else None
    with naming(path):
        converted = group_conv_form(model, classifier_keep, say=lambda _: None)
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


def named_by(model: DenselyConnected, labels: Path | str | None) -> DenselyConnected:
    """The model with its classes named by a file of labels; None leaves the names that it has. The weights are shared."""
    if labels is None:
        return model
    named = copy.copy(model)
    named.class_names = read_labels(labels, model.architecture.classes)
    return named


def group_conv_form(model: DenselyConnected, keep: float | None, say: Say) -> DenselyConnected:
    """The model converted, if it is not yet, keeping ``keep`` of the classifier's inputs (None: the reference's half, or what is there).

    Raises InputRefused as ``convert`` does, and for a converted model that does not have what is to be kept.
    """
    if model.form == "training":
        keep = DEFAULT_KEEP if keep is None else keep
        say(f"the model is in training form: converting it first, keeping {keep:g} of the classifier's inputs")
        return convert(model, classifier_keep=keep)
    if keep is not None:
        require_classifier_keep(model, keep)
    return model
