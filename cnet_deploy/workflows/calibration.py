"""Calibration images -> the ranges that int8 takes its steps from: which images, and what a Program computes on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from cnet_deploy.errors import InputRefused, printable
from cnet_deploy.images.batches import default_workers, in_order
from cnet_deploy.images.datasets import ArrayDataset, Dataset, Labels, open_for_calibration
from cnet_deploy.images.decode import Images, Pixels, walk_images
from cnet_deploy.images.inputs import type_in_words
from cnet_deploy.images.preprocessing import CHANNELS, Floats, Preprocessing
from cnet_deploy.program.calibration import Calibration, ImageRows, Method, Progress, calibrate
from cnet_deploy.program.program import DenseLayer, Pointwise, Program
from cnet_deploy.workflows.evaluate import matching_of, spread

log = logging.getLogger(__name__)

COUNT = 256  # images, by default
ENOUGH = 128  # from here on, more of them change little
FEW = 32
_NAMED = 5  # classes that a message names
_AHEAD = 64  # images that are read before they are needed
Data = Path | str | npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class PreparedLater:
    """Pixels, uint8 [N, channels, H, W], that are prepared when they are read: ``images[8:16]`` is float32. They take a quarter so."""

    pixels: Pixels
    preprocessing: Preprocessing

    @property
    def shape(self) -> tuple[int, ...]:
        """N, channels, H, W."""
        return self.pixels.shape

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, part: slice, /) -> Floats:
        return self.preprocessing.apply(self.pixels[part])


@dataclass(frozen=True, eq=False)
class Chosen:
    """Calibration images, float32 [N, channels, H, W] as the network reads them, with their ``labels`` [N], or None where none are known.

    ``notes`` are lines about what was taken.
    """

    images: ImageRows
    labels: Labels | None
    notes: tuple[str, ...] = ()


def calibration_images(
    data: Data, preprocessing: Preprocessing, classes: int, count: int = COUNT, *, class_names: Sequence[str] = (),
    progress: Progress = lambda *_: None,
) -> Chosen:  # fmt: skip
    """At most ``count`` images to calibrate on: of a dataset's training part, of images, or an array that is prepared already.

    ``data`` is what ``labelled_images`` takes, or float32 [N, channels, H, W], which is taken whole. Warns of fewer than FEW images, and
    of classes that have none or can't be matched by name. Raises InputRefused for data of another size or kind, for values that are not
    finite, and as ``labelled_images`` does.
    """
    empty = isinstance(data, str) and not data
    if not isinstance(data, (str, Path, np.ndarray)) or empty:
        given = "an empty path" if empty else type_in_words(data)
        raise InputRefused(f"calibration images are {given}; expected a path, or a numpy array of float32 [N, channels, H, W]")
    if isinstance(data, np.ndarray):
        images: ImageRows = _prepared(data, preprocessing)
        labels = None
        notes = [f"calibrating on an array of {_counted(len(images))}"]
    else:
        chosen = labelled_images(data, preprocessing, classes, count, class_names=class_names, progress=progress)
        if chosen.doubts:
            log.warning("%s: %s", data, chosen.doubts)
        images, labels = PreparedLater(chosen.pixels, preprocessing), chosen.labels
        per_class = "" if labels is None else f" of {len(np.unique(labels))} classes"
        notes = [f"calibrating on {_counted(len(images))}{per_class} of {printable(data)}"]
    if len(images) < FEW:
        log.warning("only %s to calibrate on; ranges of so few fit no others: give at least %d", _counted(len(images)), ENOUGH)
    if labels is not None and len(images) >= classes and (missing := sorted(set(range(classes)).difference(labels.tolist()))):
        names = ", ".join(class_names[number] if class_names else str(number) for number in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        log.warning(
            "the calibration images are of %d of %d classes, none of %s%s; give a dataset with images of all classes",
            classes - len(missing), classes, printable(names, 300), more,
        )  # fmt: skip
    return Chosen(images, labels, tuple(notes))


@dataclass(frozen=True)
class Labelled(Images):
    """Images, and what makes their labels doubtful: ``doubts``, empty where nothing does."""

    doubts: str = ""


def labelled_images(
    data: Path | str, preprocessing: Preprocessing, classes: int, count: int, *, class_names: Sequence[str] = (), after: int = 0,
    progress: Progress = lambda *_: None,
) -> Labelled:  # fmt: skip
    """At most ``count`` images, the same every time, with labels where they are known.

    ``data`` is a dataset's folder (its training part, or the test part where that is all there is), a CIFAR binary file, a folder of
    images, or an image file. Where labels are known, as many are taken of each class, the first ones in the dataset's order; else they are
    evenly spread. Those that this chooses for a ``count`` of ``after`` come last: they are taken where there are not enough others. Class
    folders are matched with ``class_names`` as ``evaluate`` does it. Raises InputRefused for a dataset of other
    classes or sizes, and for images that can't be read.
    """
    reads: list[Callable[[], Pixels]]
    labels: Labels | None
    doubts = ""
    if (dataset := open_for_calibration(data, classes)) is not None:
        _require_fit(data, dataset, preprocessing, classes)
        indices = _others_first(dataset.labels, count, after)
        reads = [lambda index=index: dataset.image(index, preprocessing) for index in indices]  # type: ignore[misc]
        matching = matching_of(class_names, dataset)
        if matching.problem:
            doubts = f"its classes are matched with those of the network {matching.how}, not by name: {matching.problem}"
        labels = dataset.labels[indices]
        labels = labels if matching.order is None else np.asarray(matching.order, np.int64)[labels]
    else:
        sources = walk_images(data, preprocessing, classes)
        reads = [sources[number].read for number in spread(len(sources), count)]
        labels = None
    pixels = np.empty((len(reads), preprocessing.channels, *preprocessing.crop), np.uint8)
    for number, one in enumerate(in_order(lambda read: read(), reads, default_workers(), _AHEAD)):
        pixels[number] = one
        progress(f"read {number + 1} of {len(reads)} images", (number + 1) / len(reads))
    return Labelled(pixels, labels, doubts)


def _others_first(labels: Labels, count: int, after: int) -> npt.NDArray[np.int64]:
    """The indices of ``count`` images, of these that ``evenly`` takes ``after`` of only as many as are needed."""
    if not after:
        return evenly(labels, count)
    later = evenly(labels, after)
    others = np.setdiff1d(np.arange(len(labels)), later)
    first = others[evenly(labels[others], count)]
    return np.sort(np.concatenate([first, later[evenly(labels[later], count - len(first))]]))


def evenly(labels: Labels, count: int) -> npt.NDArray[np.int64]:
    """The indices of ``count`` images, in their order: as many of each class as there are, the first ones of each.

    >>> evenly(np.array([0, 0, 0, 1, 0, 1, 2]), 5).tolist()
    [0, 1, 3, 5, 6]
    """
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class])
    place = np.arange(len(labels)) - starts  # of each image among those of its class
    chosen: list[int] = []
    for turn in range(int(place.max(initial=-1)) + 1):
        members = by_class[place == turn]
        chosen += [int(members[number]) for number in spread(len(members), count - len(chosen))]
        if len(chosen) == count:
            break
    return np.sort(np.array(chosen, np.int64))


def calibrated(program: Program, images: ImageRows, method: Method = "minmax", *, progress: Progress = lambda *_: None) -> Calibration:
    """``calibrate``, computed by torch: a network for 224x224 pixels takes a tenth of a second an image. Raises as that does.

    Warns of images that are all equal.
    """
    done = calibrate(program, images, method, progress=progress, run=_Tensors(program).run)
    if done.constant:
        log.warning(
            "all %d calibration images are equal; ranges of them fit no others: give images as the network is used with", done.images
        )
    return done


class _Tensors:
    """A Program that torch computes."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def run(self, batch: npt.NDArray[Any], observe: Callable[[str, npt.NDArray[Any]], None]) -> None:
        """As ``Program.run``, to the last thing that it observes."""
        program = self._program
        with torch.inference_mode():
            x = functional.conv2d(torch.from_numpy(np.ascontiguousarray(batch)), _tensor(program.stem.weight), None, program.stem.stride, 1)
            observe(program.stem.name, x.numpy())
            for layer in program.body:
                if isinstance(layer, DenseLayer):
                    middle = functional.relu(_pointwise(x, layer.pointwise))
                    observe(layer.pointwise.name, middle.numpy())
                    new = functional.conv2d(middle, _tensor(layer.weight), None, 1, 1, 1, layer.groups)
                    observe(layer.name, new.numpy())
                    x = torch.cat([x, new], 1)
                else:
                    if layer.pointwise is not None:
                        x = _pointwise(x, layer.pointwise)
                        observe(layer.pointwise.name, x.numpy())
                    x = functional.avg_pool2d(x, 2)


def _pointwise(x: torch.Tensor, layer: Pointwise) -> torch.Tensor:
    scale, shift = (_tensor(values)[:, None, None] for values in (layer.scale, layer.shift))
    active = functional.relu(x[:, _tensor(layer.index)] * scale + shift)
    rows = functional.conv2d(active, _tensor(layer.weight)[:, :, None, None], _tensor(layer.bias), groups=layer.groups)
    return rows[:, _tensor(layer.order)]


def _tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def _prepared(data: npt.NDArray[Any], preprocessing: Preprocessing) -> Floats:
    """The array, if it is of prepared images."""
    expected = [preprocessing.channels, *preprocessing.crop]
    if data.dtype != np.float32 or data.ndim != 4 or list(data.shape[1:]) != expected or not len(data):
        raise InputRefused(
            f"calibration images are {data.dtype} {list(data.shape)}; expected float32 [N, {', '.join(map(str, expected))}], prepared as "
            "preprocessing.read does, at least one"
        )
    if not np.isfinite(data).all():
        raise InputRefused(
            "calibration images have values that are not finite; expected images that are prepared as preprocessing.read does"
        )
    least, most = data.min((0, 2, 3)).astype(np.float64), data.max((0, 2, 3)).astype(np.float64)
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    low, high, step = (0 - mean) / std, (1 - mean) / std, 1 / 255 / std
    outside = np.flatnonzero((least < low - step) | (most > high + step))
    if len(outside):
        plane = int(outside[0])
        raise InputRefused(
            f"calibration images have values from {least[plane]:.3g} to {most[plane]:.3g} in plane {plane}, which no pixels have when they "
            f"are prepared; expected images as preprocessing.read prepares them, with values from {low[plane]:.3g} to {high[plane]:.3g}"
        )
    return np.ascontiguousarray(data)


def _require_fit(data: Path | str, dataset: Dataset, preprocessing: Preprocessing, classes: int) -> None:
    if dataset.classes != classes:
        raise InputRefused(
            f"{data}: the dataset has {dataset.classes:,} classes, but the network has {classes:,}; expected the dataset of its training"
        )
    if isinstance(dataset, ArrayDataset) and dataset.input_size != preprocessing.crop:
        own, wanted = ("x".join(map(str, size)) for size in (dataset.input_size, preprocessing.crop))
        raise InputRefused(
            f"{data}: has images of {own} pixels, but the network reads {wanted} ({CHANNELS[preprocessing.channels]}); expected images as "
            "the network is used with"
        )


def _counted(images: int) -> str:
    return "1 image" if images == 1 else f"{images:,} images"
