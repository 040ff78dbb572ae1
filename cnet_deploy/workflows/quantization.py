"""What `export` does for int8 before it writes: calibration, the accuracy budget, and what the manifest says of both."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from cnet_deploy.errors import CheckFailed, InputRefused, printable
from cnet_deploy.exporters import target_of
from cnet_deploy.images.datasets import Labels
from cnet_deploy.images.decode import Images
from cnet_deploy.images.inputs import type_in_words
from cnet_deploy.images.preprocessing import Floats, Preprocessing
from cnet_deploy.program.calibration import METHODS, Calibration, Method, Progress, require_integers
from cnet_deploy.program.program import DenseLayer, Program
from cnet_deploy.program.quantize import Quantization
from cnet_deploy.workflows import budget as budgets
from cnet_deploy.workflows.budget import Accuracy, Run
from cnet_deploy.workflows.calibration import COUNT, Chosen, Data, PreparedLater, calibrated, calibration_images, labelled_images
from cnet_deploy.workflows.prepare import Notify
from cnet_deploy.workflows.verify import Comparison

log = logging.getLogger(__name__)

INT8 = "int8"
MOST = 10_000  # calibration images
_SIZE = 50  # images at once


@dataclass(frozen=True)
class Wanted:
    """The options of `export` for int8: see there."""

    calibrate: Data | None
    calibration: Method | Calibration
    images: int
    budget: float | None

    def require(self, precision: str | None, form: object) -> None:
        """Raise InputRefused for options that don't go together, before anything is read. ``form`` is that of `export`."""
        method = self.calibration
        if precision != INT8:
            given = {
                "calibrate": self.calibrate, "accuracy_budget": self.budget, "calibration": None if method == METHODS[0] else method,
                "calibration_images": None if self.images == COUNT else self.images,
            }  # fmt: skip
            if named := [name for name, value in given.items() if value is not None]:
                raise InputRefused(f"{named[0]} was given for precision {precision or 'fp32'}; expected it with precision int8 alone")
            return
        if self.calibrate is None and not isinstance(method, Calibration):
            raise InputRefused(
                "precision int8 takes the ranges of its values from images, and none were given; expected some as the network is used "
                "with: --calibrate DATA (calibrate in Python), a dataset's folder, a CIFAR binary file or a folder of images"
            )
        if callable(form):
            raise InputRefused("forms are not measured in int8; expected one of gather, dense, absorbed, or none")
        if not isinstance(method, Calibration) and method not in METHODS:
            raise InputRefused(f"no calibration is called {method!r}; expected one of {', '.join(METHODS)}")
        if isinstance(self.images, bool) or not isinstance(self.images, int):
            raise InputRefused(f"calibration_images is {type_in_words(self.images)}; expected a whole number from 1 to {MOST:,}")
        if not 1 <= self.images <= MOST:
            raise InputRefused(f"calibration_images is {self.images}; expected 1 to {MOST:,}")
        if self.budget is None:
            return
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, float)):
            raise InputRefused(
                f"the accuracy budget is {type_in_words(self.budget)}; expected a number: points of top-1 accuracy, as 0.5 for half a point"
            )
        if not 0 <= self.budget < 100:
            raise InputRefused(f"the accuracy budget is {self.budget:g}; expected points of top-1 accuracy from 0 to less than 100")


@dataclass(frozen=True)
class Prepared:
    """Calibration images that are prepared already."""

    chosen: Chosen

    def batches(self, _: Preprocessing, /) -> Iterator[tuple[Floats, Labels | None]]:
        """As ``Images.batches``."""
        images, labels = self.chosen.images, self.chosen.labels
        for start in range(0, len(images), _SIZE):
            part = slice(start, start + _SIZE)
            yield images[part], None if labels is None else labels[part]


@dataclass(frozen=True)
class Quantized:
    """A Quantization, what the manifest says of it, and lines of text. ``images`` are those to compare on, with their name; ``accuracy``
    is what the budget was decided by."""

    quantization: Quantization
    details: Mapping[str, Any]
    lines: tuple[str, ...]
    images: tuple[Images | Prepared | None, str]
    accuracy: Accuracy | None = None

    def require_budget(self, compared: Comparison) -> None:
        """Raise CheckFailed where the artifact itself, compared on the labelled ``images``, loses more than the budget."""
        if self.accuracy is None or compared.top1 is None or compared.reference_top1 is None:
            return
        points = 100 * (compared.reference_top1 - compared.top1)
        if points > self.accuracy.budget + 1e-9:
            raise CheckFailed(
                f"the accuracy budget can't be held: the artifact itself loses {points:.2f} points of top-1, and {self.accuracy.budget:g} "
                f"were allowed; nothing was written. {compared.summary()}"
            )


def quantization_for(
    network: Program | nn.Module, target: str, wanted: Wanted, images: Images | None, reference: Run, notify: Notify, progress: Progress
) -> Quantized:  # fmt: skip
    """Calibrate a Program for a target, and choose the layers that an accuracy budget keeps in higher precision.

    ``images`` are those of --images, ``reference`` gives the logits of fp32. Raises InputRefused for images that can't be used, for a
    budget without labelled images, for a CondenseNet V2 and for a network that is not of the family, CheckFailed for a budget that can't
    be held.
    """
    if not isinstance(network, Program):
        raise InputRefused("only networks of the CondenseNet family are written in int8; expected one of them, or another precision")
    require_integers(network)
    preprocessing, classes, names = network.preprocessing, network.architecture.classes, network.class_names
    chosen = None
    if wanted.calibrate is not None:
        chosen = calibration_images(
            wanted.calibrate, preprocessing, classes, wanted.images, class_names=names, progress=_part(progress, 0.0, 0.05)
        )
        for line in chosen.notes:
            notify(line)
    measured = _labelled(wanted, images, network, _part(progress, 0.05, 0.1)) if wanted.budget is not None else None
    if isinstance(wanted.calibration, Calibration):
        wanted.calibration.require_of(network)
        calibration = wanted.calibration
    else:
        assert chosen is not None
        log.info("calibrating by %s on %d images", wanted.calibration, len(chosen.images))
        calibration = calibrated(network, chosen.images, wanted.calibration, progress=_part(progress, 0.1, 0.3))
    keeps, measured_as = target_of(target).keeps, target_of(target).measured_as
    dense = [layer.name for layer in network.body if isinstance(layer, DenseLayer)]
    details: dict[str, Any] = {
        "method": calibration.method, "images": calibration.images, "digest": calibration.digest, "kept": {},
        "layers": dict.fromkeys(dense, INT8),
    }  # fmt: skip
    compared: tuple[Images | Prepared | None, str] = (images, "images")
    if images is None and chosen is not None:
        compared = Prepared(chosen), "calibration images"
    if measured is None or wanted.budget is None:
        return Quantized(Quantization(calibration), details, (), compared)
    choice = budgets.within(network, target, calibration, measured, reference, wanted.budget, _part(progress, 0.3, 1.0))
    kept = {name: keeps for name in dense if name in choice.layers}
    seen = _seen(measured, chosen)
    more = {"calibrated": seen, "measured_as": measured_as or None}
    accuracy = choice.accuracy.to_dict() | {name: value for name, value in more.items() if value is not None}
    details |= {"kept": kept, "layers": details["layers"] | kept, "accuracy": accuracy}
    lines = choice.lines(keeps)
    if seen:
        lines.append(f"{seen:,} of the {len(measured):,} images are also calibrated on, where int8 may do better than elsewhere")
    if measured_as:
        lines.append(f"measured with the {measured_as} file that the {target} artifact is built from")
    compared = measured, "images" if measured is images else "labelled images"
    return Quantized(Quantization(calibration, choice.layers), details, tuple(lines), compared, choice.accuracy)


def _seen(measured: Images, chosen: Chosen | None) -> int | None:
    """How many of the images are among those that were calibrated on; None where these are not known."""
    if chosen is None or not isinstance(chosen.images, PreparedLater):
        return None
    own = {hashlib.sha256(pixels.tobytes()).digest() for pixels in chosen.images.pixels}
    return sum(hashlib.sha256(pixels.tobytes()).digest() in own for pixels in measured.pixels)


def _labelled(wanted: Wanted, images: Images | None, network: Program, progress: Progress) -> Images:
    """The labelled images that a budget is measured on: those of --images, else those of --calibrate, which are not calibrated on as far
    as there are others."""
    if images is not None and images.labels is not None:
        return images
    if wanted.calibrate is not None and not isinstance(wanted.calibrate, np.ndarray):
        own = labelled_images(
            wanted.calibrate, network.preprocessing, network.architecture.classes, budgets.MEASURED, class_names=network.class_names,
            after=wanted.images, progress=progress,
        )  # fmt: skip
        if own.doubts:
            raise InputRefused(
                f"{printable(wanted.calibrate)}: an accuracy budget can't be measured, since {own.doubts}; expected the names of the "
                "network's classes, or labelled --images"
            )
        if own.labels is not None:
            return own
    raise InputRefused(
        "an accuracy budget needs images whose classes are known, and there are none; expected a dataset's folder, or a CIFAR binary file, "
        "for --calibrate, or such a file for --images"
    )


def _part(progress: Progress, start: float, end: float) -> Progress:
    """``progress`` for a part of the work."""
    return lambda text, share: progress(text, start + (end - start) * share)
