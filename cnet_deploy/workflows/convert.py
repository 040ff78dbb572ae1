"""A checkpoint's file -> the file of its group-conv form, with what that changed in figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.checkpoints.load import load
from cnet_deploy.checkpoints.save import save
from cnet_deploy.errors import CheckFailed, naming
from cnet_deploy.files import check_output
from cnet_deploy.images.decode import Images, read_images
from cnet_deploy.models.architecture import Cost
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.convert import convert
from cnet_deploy.sessions.torch import from_module
from cnet_deploy.workflows.prepare import default_output, group_conv_form, named_by
from cnet_deploy.workflows.verify import TOLERANCES, Batch, Comparison, compare


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
