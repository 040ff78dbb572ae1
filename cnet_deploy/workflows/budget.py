"""An accuracy budget of int8: which dense layers are kept in a higher precision, so that no more accuracy is lost than was allowed.

How much a layer costs is measured: a network with this layer alone in higher precision is built, run, and compared with the one that is
all int8. What counts is how far the probabilities of its answers are from the network's own in fp32 (Kullback and Leibler's divergence,
mean over images), since the number of right answers hardly changes by one layer. The layers that cost most are kept, one after the other,
until the number of right answers is as it must be.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.artifacts.pair import describe
from cnet_deploy.errors import CheckFailed, InputRefused
from cnet_deploy.exporters import exporter, target_of
from cnet_deploy.files import temporary_folder
from cnet_deploy.images.datasets import Labels
from cnet_deploy.images.decode import Images
from cnet_deploy.images.preprocessing import Floats
from cnet_deploy.images.probabilities import softmax
from cnet_deploy.program.calibration import Calibration, Progress
from cnet_deploy.program.program import DenseLayer, Program
from cnet_deploy.program.quantize import Quantization
from cnet_deploy.sessions import open_session
from cnet_deploy.workflows.evaluate import paired_difference, wilson

log = logging.getLogger(__name__)

MEASURED = 1000  # labelled images of --calibrate that accuracy is measured on, at most
_FOR_LAYERS = 256  # images that the cost of layers is measured on
_SIZE = 50  # images at once

Run = Callable[[Floats], Floats]
Logits = Callable[[Collection[str], int], Floats]  # of the network with these layers kept, on each n-th image


@dataclass(frozen=True)
class Accuracy:
    """Right answers of fp32 and of int8 on the same ``images``: ``lost`` are right in fp32 alone, ``won`` in int8 alone, ``same`` have the
    same answer in both. ``budget`` is in points of top-1."""

    images: int
    right: int
    lost: int
    won: int
    same: int
    budget: float

    @classmethod
    def of(cls, int8: Floats, fp32: Floats, labels: Labels, budget: float) -> Accuracy:
        """From logits [N, classes] and labels [N]. Raises CheckFailed for logits that are not finite."""
        if not np.isfinite(int8).all():
            raise CheckFailed("int8 gives logits that are not finite on the labelled images; they or the calibration images are damaged")
        ours, theirs = int8.argmax(1), fp32.argmax(1)
        lost, won = (theirs == labels) & (ours != labels), (theirs != labels) & (ours == labels)
        return cls(len(labels), int((theirs == labels).sum()), int(lost.sum()), int(won.sum()), int((ours == theirs).sum()), budget)

    @property
    def fp32(self) -> float:
        """Top-1 accuracy of fp32, 0 to 1."""
        return self.right / self.images

    @property
    def int8(self) -> float:
        """Top-1 accuracy of int8, 0 to 1."""
        return (self.right - self.lost + self.won) / self.images

    @property
    def points(self) -> float:
        """How far int8 is below fp32, in points of top-1."""
        return 100 * (self.lost - self.won) / self.images

    @property
    def holds(self) -> bool:
        """Whether the budget holds."""
        return self.points <= self.budget + 1e-9

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return {"images": self.images, "fp32": self.fp32, "int8": self.int8, "agreement": self.same / self.images, "budget": self.budget}

    def line(self) -> str:
        """One line of text, with 95 % intervals."""
        own, other = (
            f"{right / self.images:.2%} ({100 - high:.2f} to {100 - low:.2f})"
            for right in (self.right - self.lost + self.won, self.right)
            for low, high in [wilson(self.images - right, self.images)]
        )
        _, (least, most) = paired_difference(self.lost, self.won, self.images)
        state = "holds" if self.holds else "does not hold"
        return (
            f"int8: top-1 {own}, fp32: {other}, on {self.images:,} images; {self.points:+.2f} points lost ({least:+.2f} to {most:+.2f}), "
            f"{self.same / self.images:.2%} of answers the same: the budget of {self.budget:g} points {state}"
        )


@dataclass(frozen=True)
class Kept:
    """A dense layer that is kept in higher precision: ``cost`` is the share of the divergence that goes if it alone is kept, ``accuracy``
    that of the network with it and those before it kept."""

    layer: str
    cost: float
    accuracy: Accuracy


@dataclass(frozen=True)
class Choice:
    """The layers that are kept, the first that costs most, and the ``accuracy`` with all of them; ``before`` is that of int8 alone.

    ``costs`` are those of all layers, kept or not, the largest first; empty where int8 alone holds the budget, since none is measured then.
    """

    before: Accuracy
    kept: tuple[Kept, ...] = ()
    costs: tuple[tuple[str, float], ...] = ()

    @property
    def accuracy(self) -> Accuracy:
        """That of the network with all layers that are kept."""
        return self.kept[-1].accuracy if self.kept else self.before

    @property
    def layers(self) -> frozenset[str]:
        """The names of the layers."""
        return frozenset(kept.layer for kept in self.kept)

    def lines(self, precision: str) -> list[str]:
        """The accuracy, and a table of what each layer costs, in which those come first that are kept in ``precision``."""
        if not self.kept:
            return [self.accuracy.line()]
        width = max(len(name) for name in ("int8 alone", *(name for name, _ in self.costs)))
        wide = max(len(precision), len("kept in"))
        rows = [f"  {'int8 alone':{width}}  {'':{wide}}  {'':>7}  {self.before.int8:>7.2%}  {self.before.points:>+11.2f}"]
        rows += [
            f"  {kept.layer:{width}}  {precision:{wide}}  {kept.cost:>7.1%}  {kept.accuracy.int8:>7.2%}  {kept.accuracy.points:>+11.2f}"
            for kept in self.kept
        ]
        rows += [f"  {name:{width}}  {'':{wide}}  {cost:>7.1%}" for name, cost in self.costs if name not in self.layers]
        head = f"  {'layer':{width}}  {'kept in':{wide}}  {'cost':>7}  {'top-1':>7}  {'points lost':>11}"
        return [head, *rows, self.accuracy.line()]


def choose(
    logits: Logits, fp32: Floats, labels: Labels, layers: Sequence[str], budget: float, progress: Progress = lambda *_: None
) -> Choice:
    """The fewest layers, by what they cost, with which no more than ``budget`` points of top-1 are lost.

    ``logits`` are those of the network in int8 with some layers kept, ``fp32`` [N, classes] and ``labels`` [N] of the same images. Each
    layer takes one network to be built and run, and so does each that is kept. Raises CheckFailed where the budget does not hold with all
    layers kept.
    """
    total, done = 2 * len(layers) + 2, 0

    def measured(kept: Collection[str], every: int, text: str) -> Floats:
        nonlocal done
        progress(f"accuracy budget, {text}", done / total)
        done += 1
        return logits(kept, every)

    def accuracy(kept: Collection[str], text: str) -> Accuracy:
        return Accuracy.of(measured(kept, 1, text), fp32, labels, budget)

    alone = measured((), 1, "int8 alone")
    before = Accuracy.of(alone, fp32, labels, budget)
    log.info("%s", before.line())
    if before.holds:
        return Choice(before)
    best = accuracy(layers, "all layers kept")
    if not best.holds:
        raise CheckFailed(
            f"the accuracy budget can't be held: {best.line()}, with all {len(layers)} dense layers in higher precision (int8 alone loses "
            f"{before.points:+.2f}); allow more, or calibrate on images as the network is used with, or by another method"
        )
    every = -(-len(labels) // _FOR_LAYERS)
    whole = divergence(fp32[::every], alone[::every])
    costs = {}
    for number, layer in enumerate(layers, 1):
        own = measured((layer,), every, f"layer {number} of {len(layers)}")
        costs[layer] = 1 - divergence(fp32[::every], own) / whole if whole > 0 else 0.0
    kept: list[Kept] = []
    ordered = sorted(layers, key=lambda name: -costs[name])
    for layer in ordered:
        now = accuracy([*(one.layer for one in kept), layer], f"{len(kept) + 1} layers kept")
        kept.append(Kept(layer, costs[layer], now))
        if now.holds:
            break
    return Choice(before, tuple(kept), tuple((name, costs[name]) for name in ordered))


def divergence(fp32: Floats, other: Floats) -> float:
    """Kullback and Leibler's divergence of the probabilities of logits [N, classes] from those of ``fp32``, mean over images, in nats."""
    p, q = softmax(fp32.astype(np.float64)), softmax(other.astype(np.float64))
    tiny = np.finfo(np.float64).tiny
    return float((p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny)))).sum(1).mean())


def within(
    program: Program, target: str, calibration: Calibration, images: Images, reference: Run, budget: float, progress: Progress
) -> Choice:  # fmt: skip
    """``choose`` for a Program and a target, on labelled ``images``, with artifacts that are built and run here.

    ``reference`` gives the logits of fp32. A native library gives the same logits on every processor, so one for this machine is measured
    whatever it is built for. Raises InputRefused for labels that fp32 answers no better than by guessing, Unavailable where nothing can be
    built or run.
    """
    layers = [layer.name for layer in program.body if isinstance(layer, DenseLayer)]
    assert images.labels is not None
    fp32 = _run(reference, images, program, 1)
    right = int((fp32.argmax(1) == images.labels).sum())
    if right * fp32.shape[1] <= len(images):
        raise InputRefused(
            f"fp32 is right on {right} of {len(images)} labelled images, no more than by guessing among {fp32.shape[1]} classes, so they "
            "can't judge int8; give images of this model's classes, with labels in its order: --images"
        )
    if 0 < budget < 100 / len(images):
        log.warning(
            "one of %d labelled images is %.2g points of top-1, more than the accuracy budget of %g; give at least %d: --images",
            len(images), 100 / len(images), budget, math.ceil(100 / budget),
        )  # fmt: skip
    log.info("the accuracy budget is measured on %d images, with %d layers", len(images), len(layers))

    def logits(kept: Collection[str], every: int) -> Floats:
        return _built(program, target_of(target).measured_as or target, Quantization(calibration, frozenset(kept)), images, every)

    return choose(logits, fp32, images.labels, layers, budget, progress)


def _built(program: Program, target: str, quantization: Quantization, images: Images, every: int) -> Floats:
    """The logits of an artifact that is only measured."""
    with temporary_folder("int8") as folder:
        path = folder / f"measured{target_of(target).suffix}"
        written = exporter(target)(program, path, precision="int8", quantization=quantization)
        manifest = describe(
            path, target, written.precision, details=written.details, libraries=written.libraries, source_sha256=program.source_digest,
            architecture=program.architecture, preprocessing=program.preprocessing, class_names=program.class_names,
        )  # fmt: skip
        manifest_path(path).write_text(manifest.to_json(), encoding="utf-8")
        with open_session(path, timeout=None) as session:
            return _run(session.run, images, program, every)


def _run(run: Run, images: Images, program: Program, every: int) -> Floats:
    parts = Images(images.pixels[::every], None).batches(program.preprocessing, _SIZE)
    return np.concatenate([run(batch) for batch, _ in parts])
