"""Checkpoint file -> file in group-conv form, with a comparison of the two."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.artifacts.self_check import TOLERANCES
from cnet_deploy.checkpoints.load import load
from cnet_deploy.checkpoints.save import save
from cnet_deploy.errors import CheckFailed, naming, printable
from cnet_deploy.files import check_output
from cnet_deploy.images.decode import Images, read_images
from cnet_deploy.images.preprocessing import NO_OVERRIDES, Overrides
from cnet_deploy.models.architecture import Cost
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.convert import convert
from cnet_deploy.models.demands import require_runnable
from cnet_deploy.sessions.torch import from_module
from cnet_deploy.workflows.prepare import default_output, group_conv_form, named_by, prepared_by, tell_of_pool
from cnet_deploy.workflows.verify import Batch, Comparison, compare

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """A conversion that was verified and written.

    ``before`` and ``after`` are the costs of the training form and of the group-conv form. ``faithful`` compares the outputs of the two
    with the whole classifier. ``cut`` compares the reduced classifier with the whole one (None if the classifier was kept whole).
    ``noise``: both were compared on random inputs, since there were no images.
    """

    path: Path
    model: DenselyConnected
    before: Cost
    after: Cost
    faithful: Comparison | None
    cut: Comparison | None
    noise: bool = True

    def summary(self) -> str:
        """Several lines of text."""
        arch = self.model.architecture
        lines = [arch.summary()]
        if self.faithful is None:
            lines.append("already in group-conv form: weights rewritten as they are")
        else:
            for what, before, after in (("FLOPs", self.before.flops, self.after.flops), ("params", self.before.params, self.after.params)):
                times = f"{before / after:.2f} times less"
                lines.append(f"{what}: {before / 1e6:,.2f} M in training form -> {after / 1e6:,.2f} M in group-conv form ({times})")
            if arch.classifier_keep < 1:
                whole = replace(arch, classifier_keep=1.0).cost().params
                kept = f"{arch.kept_features} of {arch.features}"
                lines.append(f"params in group-conv form: {self.after.params:,} with {kept} inputs of the classifier, {whole:,} with all")
            lines.append(f"against the training form, classifier whole, on {self.faithful.summary()}")
        if cut := self.cut:
            text = f"the classifier keeps {arch.kept_features} of {arch.features} inputs: on {cut.inputs} logits change by up to "
            text += f"{cut.max_error / cut.scale:.1%} of the largest, top-1 agrees on {cut.agreement:.2%}"
            if self.noise:
                text += "; noise tells little: give --images"
            elif cut.top1 is None:
                text += "; the images have no labels, so accuracy is not known: give a CIFAR binary file, or use `evaluate`"
            else:
                text += f", top-1 accuracy {cut.reference_top1:.2%} -> {cut.top1:.2%}"
            lines.append(text)
        return "\n".join(map(printable, [*lines, f"wrote {self.path}"]))


def convert_file(
    path: Path | str,
    out: Path | str | None = None,
    *,
    classifier_keep: float | None = None,
    labels: Path | str | None = None,
    images: Path | str | None = None,
    sha256: str | None = None,
    overrides: dict[str, Any] | None = None,
    preprocessing: Overrides = NO_OVERRIDES,
) -> Converted:
    """Convert a training checkpoint, compare both forms on ``images`` (default: random inputs), and write the group-conv form.

    ``labels`` is a file with the classes' names (see images/class_names.py), ``sha256`` the digest that the checkpoint must have.
    ``preprocessing`` states how images are prepared, where the checkpoint does not or is wrong; the written file states it then.
    A file that is already in group-conv form is rewritten unchanged. ``out`` None writes a ``.safetensors`` file beside the checkpoint.
    Raises CheckFailed if the outputs of the two forms differ; InputRefused and OutputRefused as ``checkpoints.load``, ``convert`` and
    ``checkpoints.save`` do.
    """
    out = default_output(path, ".safetensors") if out is None else Path(out)
    for read in (path, labels, images):
        check_output(out, source=read, like="checkpoint")
    model = named_by(load(path, sha256=sha256, **(overrides or {})), labels)
    with naming(path):
        model = prepared_by(model, preprocessing)
    tell_of_pool(model, overrides)
    if preprocessing != NO_OVERRIDES and out.suffix != ".safetensors":
        log.warning(
            "%s: the reference's format does not hold how images are prepared; give the options again to export, or write .safetensors", out
        )
    data = read_images(images, model.preprocessing, model.architecture.classes) if images is not None else None
    with naming(path):
        converted = group_conv_form(model, classifier_keep, notify=lambda _: None)
    faithful, cut = None, None
    if model.form == "training":
        with naming(path):
            require_runnable(model.architecture)  # since both forms are compared
        whole = convert(model, classifier_keep=1.0)
        faithful = _side_by_side(whole, model, data)
        cut = None if converted.architecture.classifier_keep == 1 else _side_by_side(converted, whole, data)
        if not faithful.passed:
            raise CheckFailed(f"{path}: the converted network differs from the training form; nothing was written. {faithful.summary()}")
    save(converted, out, source=path)
    return Converted(out, converted, model.architecture.cost(model.form), converted.architecture.cost(), faithful, cut, data is None)


def _side_by_side(ours: DenselyConnected, theirs: DenselyConnected, data: Images | None) -> Comparison:
    """Compare two models on images, or on as many random inputs as run in a few seconds."""
    if data is None:
        shape = theirs.architecture.image_shape
        count = min(64, max(1, 400_000 // (shape[1] * shape[2])))
        inputs = f"{count} random inputs"
        noise = np.random.default_rng(0).standard_normal((count, *shape), np.float32)
        batches: Iterator[Batch] = iter([(noise, None)])
    else:
        inputs, batches = f"{len(data)} images", data.batches(theirs.preprocessing)
    with from_module(ours) as a, from_module(theirs) as b:
        return compare(a.run, b.run, batches, inputs=inputs, tolerance=TOLERANCES["fp32"])
