"""Compare the outputs of two sessions."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cnet_deploy.artifacts.self_check import cosine_of, tolerance_of
from cnet_deploy.errors import InputRefused, naming
from cnet_deploy.images.decode import read_images
from cnet_deploy.images.preprocessing import CHANNELS, Floats, Preprocessing
from cnet_deploy.images.probabilities import Rows, are_probabilities, softmax
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.demands import require_runnable
from cnet_deploy.sessions import backend_of, backends, open_session
from cnet_deploy.sessions.base import Session

log = logging.getLogger(__name__)

SWAPPED = "is compared with a training checkpoint; expected the artifact first, then its model"

MOST_RANDOM = 3  # random inputs at once

Labels = npt.NDArray[np.int64]
Batch = tuple[Floats, Labels | None]
Run = Callable[[Floats], Floats]

# Answers in int8. A near tie may be decided otherwise, so an answer counts as another one only where it is behind in the model's own logits
# by more than MARGIN of the largest. Of 66 random networks, on the images that they were calibrated on, none had more than OTHERS.
MARGIN = 0.25
OTHERS = 0.1
_SMALL = 64  # pixels of a side, up to which the slow yardstick of int8 takes less than a second an image


class Real(Protocol):
    """Images to compare on."""

    def batches(self, preprocessing: Preprocessing, /) -> Iterator[Batch]:
        """Batches as the network reads them, with their labels."""


_OPTIONAL = ("note", "converted", "least_cosine", "others", "only_shown")  # left out of the manifest where there are none


@dataclass(frozen=True)
class Comparison:
    """How the logits of an artifact differ from those of its model, on ``images`` inputs of one kind (``inputs``).

    ``max_error`` and ``mean_error`` are absolute, ``scale`` is the model's largest absolute logit, ``cosine`` is over all logits,
    ``agreement`` is the share of inputs with the same top-1 class. ``top1`` and ``reference_top1`` are the top-1 accuracies of the
    artifact and the model, if labels are known. ``note`` says what was met where not both answer with logits: probabilities are compared
    with the softmax of logits, and all figures are of probabilities. ``converted`` says what was done to a training checkpoint before.
    Artifacts in int8 are judged by ``least_cosine`` beside the tolerance, and by ``others``, the share of inputs with clearly another
    answer (see MARGIN), if it is not None. ``only_shown``: nothing but finite logits is asked, since other inputs are judged.
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
    note: str | None = None
    converted: str | None = None
    least_cosine: float | None = None
    others: float | None = None
    only_shown: bool | None = None

    @property
    def passed(self) -> bool:
        """Whether the largest error is within the tolerance, and in int8 the answers are as they must be. A NaN on either side fails."""
        if self.only_shown:
            return bool(np.isfinite(self.scale) and np.isfinite(self.max_error))
        close = np.isfinite(self.scale) and self.max_error <= self.tolerance * self.scale
        if self.least_cosine is not None:  # a cosine does not see logits of another size, nor does an answer
            return bool(close and self.cosine >= self.least_cosine and (self.others or 0) <= OTHERS)
        return bool(close)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        # JSON has no NaN and no infinity.
        figures = {key: str(v) if isinstance(v, float) and not np.isfinite(v) else v for key, v in asdict(self).items()}
        figures = {key: value for key, value in figures.items() if value is not None or key not in _OPTIONAL}
        return {**figures, "passed": self.passed}

    def summary(self) -> str:
        """One line of text."""
        what = "probabilities" if self.note else "logits"
        if self.least_cosine is not None:
            asked = "only shown: images decide" if self.only_shown else f"in int8 at least {self.least_cosine:g}"
            text = f"{self.inputs}: cosine {self.cosine:.5f} ({asked}), top-1 agreement {self.agreement:.2%}"
            if self.others is not None:
                text += f", clearly other answers {self.others:.2%} (at most {OTHERS:.0%})"
            allowed = "" if self.only_shown else f" (tolerance {self.tolerance * self.scale:.2e})"
            text += f", max error {self.max_error:.2e} on {what} up to {self.scale:.3g}{allowed}"
        else:
            text = (
                f"{self.inputs}: max error {self.max_error:.2e} and mean {self.mean_error:.2e} on {what} up to {self.scale:.3g} "
                f"(tolerance {self.tolerance * self.scale:.2e}), cosine {self.cosine:.9f}, top-1 agreement {self.agreement:.2%}"
            )
        if self.top1 is not None and self.reference_top1 is not None:
            text += f", top-1 accuracy {self.top1:.2%} (model: {self.reference_top1:.2%})"
        return f"{text}; {self.note}" if self.note else text


def compare(
    run: Run, reference: Run, batches: Iterable[Batch], *, inputs: str, tolerance: float, least_cosine: float | None = None,
    count_others: bool = False,
) -> Comparison:  # fmt: skip
    """Run both on the same batches and compare their logits, or their probabilities where one of them answers with those.

    With ``least_cosine`` they are judged by that too and, with ``count_others``, by their answers (see Comparison). Raises InputRefused if
    their shapes differ.
    """
    ours, theirs, labels = [], [], []
    for batch, truth in batches:
        ours.append(run(batch).astype(np.float64))
        theirs.append(reference(batch).astype(np.float64))
        labels.append(truth)
    a, b = np.concatenate(ours), np.concatenate(theirs)
    log.info("compared logits on %s: %s images", inputs, len(a))
    if a.shape != b.shape:
        raise InputRefused(f"the artifact has {a.shape[1]} classes and the model {b.shape[1]}; expected the same network")
    a, b, note = _in_the_same_terms(a, b)
    with np.errstate(invalid="ignore"):  # infinities become NaN here, and NaN fails the check
        error, norms = np.abs(a - b), float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float((a * b).sum() / norms) if norms else float(not error.any())
    truth = None if any(part is None for part in labels) else np.concatenate([part for part in labels if part is not None])
    return Comparison(
        inputs, len(a), float(error.max()), float(error.mean()), float(np.abs(b).max()), cosine,
        float((a.argmax(1) == b.argmax(1)).mean()), tolerance,
        None if truth is None else float((a.argmax(1) == truth).mean()),
        None if truth is None else float((b.argmax(1) == truth).mean()),
        note, least_cosine=least_cosine, others=_others(a, b) if count_others else None,
    )  # fmt: skip


def _others(artifact: Rows, model: Rows) -> float:
    """The share of rows in which the artifact's answer is clearly not the model's."""
    behind = model.max(1) - model[np.arange(len(model)), artifact.argmax(1)]
    return float((behind > MARGIN * np.abs(model).max()).mean())


def _in_the_same_terms(artifact: Rows, model: Rows) -> tuple[Rows, Rows, str | None]:
    """The outputs of both as they are, or as probabilities if one has those, and a note on that."""
    match are_probabilities(artifact), are_probabilities(model):
        case True, False:
            return (
                artifact,
                softmax(model),
                "the artifact answers with probabilities, the model with logits: compared after a softmax of the logits",
            )
        case False, True:
            return (
                softmax(artifact),
                model,
                "the model answers with probabilities, the artifact with logits: compared after a softmax of the logits",
            )
        case True, True:
            return artifact, model, "both answer with probabilities"
    return artifact, model, None


def compare_all(
    session: Session, reference: Session, images: Real | None = None, tolerance: float | None = None, *, real: str = "images"
) -> list[Comparison]:
    """Compare on fresh random inputs of several batch sizes, and on ``images`` if given (preprocessed as the model's metadata says).

    ``tolerance`` is relative to the largest logit (None: that of the precision in which the artifact has its weights and computes, read
    from the file itself). Artifacts in int8 read images as they say themselves, random ones of bytes too; without a ``tolerance`` their
    answers count as well, and random images are judged only where there are no others: an artifact that was calibrated on dark or grey
    images need not answer noise as its model does. ``real`` names the images. Raises InputRefused if input sizes differ.
    """
    precisions = session.precision, session.weights_precision
    least = cosine_of(*precisions) if tolerance is None else None
    tolerance = tolerance_of(*precisions) if tolerance is None else tolerance
    if session.input_shape[1:] != reference.input_shape[1:]:
        raise InputRefused(
            f"the artifact reads images of {_size(session)} and the model of {_size(reference)}; expected the same input size and channels"
        )
    if reference.architecture is not None:
        with naming("the model"):
            require_runnable(reference.architecture, session.input_shape[0] or MOST_RANDOM)
    seed = secrets.randbits(32)
    steps = preparation(session, reference)
    quantized = cosine_of(*precisions) is not None
    noise = random_batches(session.input_shape, seed, steps if quantized else None)
    what = "images" if quantized and steps is not None else "inputs"
    random = compare(session.run, reference.run, noise, inputs=f"random {what} (seed {seed})", tolerance=tolerance, least_cosine=least)
    if images is None or steps is None:
        return [random]
    judged = compare(
        session.run, reference.run, images.batches(steps), inputs=real, tolerance=tolerance, least_cosine=least,
        count_others=least is not None,
    )  # fmt: skip
    return [random if least is None else replace(random, only_shown=True), judged]


def preparation(session: Session, reference: Session) -> Preprocessing | None:
    """How images are prepared to compare an artifact with its model: as the model says, and in int8 as the artifact says, whose first layer
    computes bytes back with its own statistics."""
    if cosine_of(session.precision, session.weights_precision) is None:
        return reference.preprocessing
    return session.preprocessing or reference.preprocessing


def compare_exactly(session: Session, exact: Run, preprocessing: Preprocessing) -> Comparison:
    """Compare with what the artifact must compute to the bit, on random images of bytes: one alone, and several.

    ``exact`` may be slow: it runs three images, or two of a large network.
    """
    seed = secrets.randbits(32)
    count = 3 if max(session.input_shape[2:]) <= _SMALL else 2
    images = preprocessing.apply(_random_images(session.input_shape[1:], np.random.default_rng(seed), count))
    expected = exact(images)
    batches: list[Batch] = [(images[:1], None), (images, None)]
    inputs = f"random images (seed {seed}), to the bit"
    return compare(session.run, lambda batch: expected[: len(batch)], batches, inputs=inputs, tolerance=0.0)


def _size(session: Session) -> str:
    return f"{'x'.join(map(str, session.input_shape[2:]))} {CHANNELS[session.input_shape[1]]}"


def random_batches(
    shape: tuple[int | None, int, int, int], seed: int, preprocessing: Preprocessing | None = None
) -> Iterator[tuple[Floats, None]]:
    """Normal noise [N, channels, H, W] for an input ``shape``: batches of one and of three, or two batches of the fixed size.

    With a ``preprocessing``, images of random bytes that are prepared so.
    """
    random = np.random.default_rng(seed)
    for size in (1, MOST_RANDOM) if shape[0] is None else (shape[0], shape[0]):
        if preprocessing is None:
            yield random.standard_normal((size, *shape[1:]), np.float32), None
        else:
            yield preprocessing.apply(_random_images(shape[1:], random, size)), None


def _random_images(shape: tuple[int, int, int], random: np.random.Generator, count: int) -> npt.NDArray[np.uint8]:
    return random.integers(0, 256, (count, *shape), np.uint8)


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

    The logits of both are compared. Other ways to prepare images and other names of classes, where both state them, are a warning in the
    log, since an export may be given them. ``sha256`` is the digest that the artifact must have; ``overrides``: see ``checkpoints.load``
    (``input_size`` also fixes the size of an ONNX file that leaves it free). Raises InputRefused for files that can't be opened or don't
    fit each other. A difference beyond the tolerance raises nothing: see ``Comparison.passed``. Artifacts in int8 are judged by their
    answers unless a ``tolerance`` is given.
    """
    own = _of_the_artifact(artifact, overrides)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(open_session(artifact, sha256=sha256, **own))
        reference, converted = _open_reference(model, session, overrides)
        stack.enter_context(reference)
        if apart := differences(session, reference):
            log.warning("%s and %s: %s; answers to an image differ even where logits do not", artifact, model, "; ".join(apart))
        data = None
        if images is not None:
            if (steps := preparation(session, reference)) is None:
                raise InputRefused(f"{model}: does not say how images are preprocessed; leave --images out")
            data = read_images(images, steps, reference.classes)
        return [replace(one, converted=converted) for one in compare_all(session, reference, data, tolerance)]


def differences(session: Session, reference: Session) -> list[str]:
    """What decides answers besides logits, where both state it and not the same: how images are prepared, and the names of classes."""
    differing = []
    ours, theirs = session.preprocessing, reference.preprocessing
    if ours is not None and theirs is not None:
        parts: dict[str, Callable[[Preprocessing], object]] = {
            "statistics": lambda p: (p.mean, p.std),
            "resize": lambda p: (p.resize or min(p.crop), p.interpolation),
        }
        guessed = {*ours.guessed, *theirs.guessed}
        if any(part(ours) != part(theirs) for name, part in parts.items() if name not in guessed):
            differing.append(f"images are prepared in other ways ({ours.summary()}; {theirs.summary()})")
    names, others = session.class_names, reference.class_names
    if other := [pair for pair in zip(names, others, strict=False) if pair[0] != pair[1]]:
        differing.append(f"{len(other)} classes have other names ({other[0][0]}; {other[0][1]})")
    return differing


def _of_the_artifact(artifact: Path | str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Those of the model's overrides that the artifact's backend takes too."""
    takes = backends()[backend_of(artifact)].takes
    return {key: value for key, value in overrides.items() if key in takes}


def _open_reference(model: Path | str, session: Session, overrides: dict[str, Any]) -> tuple[Session, str | None]:
    """The model in the form of the artifact: the training form is converted, and the second says how. What tensors don't tell is taken
    from the artifact."""
    if not backends()[backend_of(model)].opens_models:
        if session.form == "training":
            raise InputRefused(f"{model}: {SWAPPED}")
        return open_session(model, **overrides), None
    from cnet_deploy.models.convert import convert
    from cnet_deploy.sessions.torch import from_module

    own = session.architecture
    loaded = _load_as(model, own, {key: value for key, value in overrides.items() if value is not None})
    if session.form == "training" and loaded.form != "training":
        raise InputRefused(f"{model}: {SWAPPED}")
    if loaded.form == "training" and session.form != "training":
        loaded = convert(loaded, classifier_keep=own.classifier_keep if own else None)
        arch = loaded.architecture
        kept = f"keeping {arch.kept_features} of {arch.features} inputs of its classifier"
        how = f"converted to group-conv form, {kept if arch.classifier_keep < 1 else 'with its whole classifier'}"
    else:
        how = None
    with naming(model):
        require_runnable(loaded.architecture)
    return from_module(loaded), how


def _load_as(model: Path | str, own: Architecture | None, overrides: dict[str, Any]) -> DenselyConnected:
    """Load the model. The artifact's G and C are used only if the checkpoint doesn't tell its own; else they would hide a difference."""
    from cnet_deploy.checkpoints.load import load

    try:
        return load(model, like=own, **overrides)
    except InputRefused:
        if own is None or not own.learned:
            raise
        with contextlib.suppress(InputRefused):
            return load(model, like=own, **{**overrides, "groups": own.group_1x1, "condense_factor": own.condense_factor})
        raise
