"""Outputs of two sessions side by side."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.decode import Images, read_images
from cnet_deploy.images.preprocessing import Floats
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.sessions import backend_of, backends, open_session
from cnet_deploy.sessions.base import Session

# The largest difference of two logits, relative to the largest logit, that rounding of this precision explains with room to spare.
log = logging.getLogger(__name__)

TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 3e-2}

SWAPPED = "what is compared with it is a training checkpoint; expected them the other way round: the artifact, then its model"

Labels = npt.NDArray[np.int64]
Batch = tuple[Floats, Labels | None]
Run = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Comparison:
    """How the logits of an artifact differ from those of its reference, on ``images`` inputs of one kind (``inputs``).

    ``max_error`` and ``mean_error`` are absolute, ``scale`` is the reference's largest absolute logit, ``cosine`` is over all
    logits, ``agreement`` is the share of inputs with the same top-1 class. ``top1`` and ``reference_top1`` are the shares of inputs
    whose top-1 is right, where labels are known.
    """

    inputs: str
    images: int
    max_error: float
    mean_error: float
    scale: float
    cosine: float
    agreement: float
    tolerance: float
    top1: float | None = None
    reference_top1: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the largest error is within the tolerance. A NaN on either side fails."""
        return bool(np.isfinite(self.scale) and self.max_error <= self.tolerance * self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        # JSON has no word for what is not finite.
        figures = {key: str(v) if isinstance(v, float) and not np.isfinite(v) else v for key, v in asdict(self).items()}
        return {**figures, "passed": self.passed}

    def summary(self) -> str:
        """One line for people."""
        text = (
            f"{self.inputs}: max error {self.max_error:.2e} and mean {self.mean_error:.2e} on logits up to {self.scale:.3g} "
            f"(tolerance {self.tolerance * self.scale:.2e}), cosine {self.cosine:.9f}, top-1 agreement {self.agreement:.2%}"
        )
        if self.top1 is not None and self.reference_top1 is not None:
            text += f", top-1 accuracy {self.top1:.2%} (model: {self.reference_top1:.2%})"
        return text


def compare(run: Run, reference: Run, batches: Iterable[Batch], *, inputs: str, tolerance: float) -> Comparison:
    """Run both on the same batches and put their logits side by side. Raises InputRefused where their shapes differ."""
    ours, theirs, labels = [], [], []
    for batch, truth in batches:
        ours.append(run(batch).astype(np.float64))
        theirs.append(reference(batch).astype(np.float64))
        labels.append(truth)
    a, b = np.concatenate(ours), np.concatenate(theirs)
    log.info("compared logits on %s: %s images", inputs, len(a))
    if a.shape != b.shape:
        raise InputRefused(f"the artifact has {a.shape[1]} classes and the model {b.shape[1]}; expected the same network")
    with np.errstate(invalid="ignore"):  # infinities become NaN here, and NaN fails the check
        error, norms = np.abs(a - b), float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float((a * b).sum() / norms) if norms else float(not error.any())
    truth = None if any(part is None for part in labels) else np.concatenate([part for part in labels if part is not None])
    return Comparison(
        inputs, len(a), float(error.max()), float(error.mean()), float(np.abs(b).max()), cosine,
        float((a.argmax(1) == b.argmax(1)).mean()), tolerance,
        None if truth is None else float((a.argmax(1) == truth).mean()),
        None if truth is None else float((b.argmax(1) == truth).mean()),
    )  # fmt: skip


def compare_all(session: Session, reference: Session, images: Images | None = None, tolerance: float | None = None) -> list[Comparison]:
    """Compare on fresh random inputs at batch 1 and more, and on ``images`` if given (preprocessed as the reference's model says).

    ``tolerance`` is relative to the largest logit; None is that of the session's precision. Raises InputRefused where input sizes differ.
    """
    tolerance = TOLERANCES[session.precision] if tolerance is None else tolerance
    if session.input_shape[1:] != reference.input_shape[1:]:
        raise InputRefused(
            f"the artifact reads {session.input_shape[1:]} and the model {reference.input_shape[1:]}; expected the same input size"
        )
    seed = secrets.randbits(32)
    noise = random_batches(session.input_shape, seed)
    comparisons = [compare(session.run, reference.run, noise, inputs=f"random inputs (seed {seed})", tolerance=tolerance)]
    if images is not None and reference.preprocessing is not None:
        real = images.batches(reference.preprocessing)
        comparisons.append(compare(session.run, reference.run, real, inputs="images", tolerance=tolerance))
    return comparisons


def random_batches(shape: tuple[int | None, int, int, int], seed: int) -> Iterator[tuple[Floats, None]]:
    """Normal noise [N, 3, H, W] for an input ``shape``: a batch of one, then a batch of three (or two batches of the fixed size)."""
    random = np.random.default_rng(seed)
    for size in (1, 3) if shape[0] is None else (shape[0], shape[0]):
        yield random.standard_normal((size, *shape[1:]), np.float32), None


def verify(
    artifact: Path | str,
    model: Path | str,
    *,
    images: Path | str | None = None,
    tolerance: float | None = None,
    sha256: str | None = None,
    **overrides: Any,
) -> list[Comparison]:
    """Compare an artifact with the model it came from. A model in training form is converted first, as the artifact was.

    ``sha256`` pins the artifact; ``overrides``: see ``checkpoint.load``. Raises InputRefused for files that can't be
    opened or don't fit each other; a difference beyond the tolerance is for the caller to see in ``Comparison.passed``.
    """
    with open_session(artifact, sha256=sha256) as session, _open_reference(model, session, overrides) as reference:
        data = None
        if images is not None:
            if reference.preprocessing is None:
                raise InputRefused(f"{model}: says nothing of preprocessing, so real images can't be fed to it; leave --images out")
            data = read_images(images, reference.preprocessing, reference.classes)
        return compare_all(session, reference, data, tolerance)


def _open_reference(model: Path | str, session: Session, overrides: dict[str, Any]) -> Session:
    """The model as the artifact has it: what tensors can't tell is taken from the artifact, the training form is converted."""
    if not backends()[backend_of(model)].opens_models:
        if session.form == "training":
            raise InputRefused(f"{model}: {SWAPPED}")
        return open_session(model, **overrides)
    from cnet_deploy.models.convert import DEFAULT_KEEP, convert
    from cnet_deploy.sessions.torch import from_module

    if own := session.architecture:
        known = {"input_size": own.input_size, "stem_stride": own.stem_stride}
        overrides = {**known, **{key: value for key, value in overrides.items() if value is not None}}
    loaded = _load_as(model, own, overrides)
    if session.form == "training" and loaded.form != "training":
        raise InputRefused(f"{model}: {SWAPPED}")
    if loaded.form == "training" and session.form != "training":
        loaded = convert(loaded, classifier_keep=own.classifier_keep if own else DEFAULT_KEEP)
    return from_module(loaded)


def _load_as(model: Path | str, own: Architecture | None, overrides: dict[str, Any]) -> DenselyConnected:
    """Load, with the artifact's G and C where the checkpoint doesn't tell its own: only then, for else they are to be compared."""
    from cnet_deploy.checkpoints.load import load

    try:
        return load(model, **overrides)
    except InputRefused:
        if own is None or not own.learned:
            raise
        with contextlib.suppress(InputRefused):
            return load(model, **{**overrides, "groups": own.group_1x1, "condense_factor": own.condense_factor})
        raise
