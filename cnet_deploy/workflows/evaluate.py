"""Top-1 and top-5 error on a labelled dataset, of one or several files side by side."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused, naming, printable
from cnet_deploy.images.batches import Batch, batches
from cnet_deploy.images.class_names import Matching, match_classes
from cnet_deploy.images.datasets import Dataset, FolderDataset, Labels, Split, open_dataset
from cnet_deploy.images.decode import not_taken
from cnet_deploy.images.preprocessing import NO_OVERRIDES, Floats, Overrides, Preprocessing
from cnet_deploy.sessions import holds_weights, open_session, resolve_backend
from cnet_deploy.sessions.base import Session

log = logging.getLogger(__name__)

Z = 1.959963984540054  # of the normal distribution: 95 % lie between -Z and Z
NAMED = 10  # corrupt images that a message names
BY_NUMBER = Matching("by number")
Interval = tuple[float, float]
Progress = Callable[[str, float], None]  # a line of text, and the share of the work that is done (0 to 1)


@dataclass(frozen=True)
class FileResult:
    """The counts of one file: images whose label was the top answer (``right1``) or among the top five (``right5``), and images whose
    logits were not finite (counted as wrong). ``seconds`` is the time of inference alone. ``answers`` are numbers of the dataset's classes;
    ``matching`` says how those correspond to the file's own."""

    path: str
    backend: str
    device: str
    precision: str
    form: str
    preprocessing: Preprocessing
    images: int
    right1: int
    right5: int
    not_finite: int
    seconds: float
    answers: npt.NDArray[np.int64] = field(repr=False)
    correct: npt.NDArray[np.bool_] = field(repr=False)
    matching: Matching = BY_NUMBER

    @property
    def top1_error(self) -> float:
        """In percent."""
        return 100 * (1 - self.right1 / self.images)

    @property
    def top5_error(self) -> float:
        """In percent."""
        return 100 * (1 - self.right5 / self.images)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; errors and their 95 % intervals in percent."""
        kept = ("path", "backend", "device", "precision", "form", "images", "right1", "right5", "not_finite", "seconds")
        return {
            **{name: getattr(self, name) for name in kept},
            "top1_error": self.top1_error,
            "top1_interval": wilson(self.images - self.right1, self.images),
            "top5_error": self.top5_error,
            "top5_interval": wilson(self.images - self.right5, self.images),
            "images_per_second": self.images / self.seconds if self.seconds else None,
            "preprocessing": self.preprocessing.to_dict(),
            "classes_matched": self.matching.how,
            **({"classes_not_by_name": self.matching.problem} if self.matching.problem else {}),
        }


@dataclass(frozen=True)
class Evaluation:
    """The results of all files on the same images. ``refused`` says why an image could not be read; such images are not counted.

    ``not_taken`` names the files among the images that are none. ``tagged`` counts the images with an EXIF tag that turns or mirrors them,
    which was done if ``exif``.
    """

    dataset: str
    split: str
    images: int
    classes: int
    files: tuple[FileResult, ...]
    refused: tuple[str, ...]
    not_taken: tuple[str, ...] = ()
    tagged: int = 0
    exif: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values. ``agreement[i][j]``: the share of images to which files i and j give the same first answer."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "images": self.images,
            "classes": self.classes,
            "refused": list(self.refused),
            "not_taken": list(self.not_taken),
            "tagged_to_be_turned": self.tagged,
            "exif": self.exif,
            "files": [file.to_dict() for file in self.files],
            "agreement": [[float((a.answers == b.answers).mean()) for b in self.files] for a in self.files],
            "difference_to_first": [
                dict(zip(("points", "interval"), difference(self.files[0], file), strict=True)) for file in self.files[1:]
            ],
        }

    def lines(self) -> list[str]:
        """Several lines of text."""
        lines = [f"{self.dataset} ({self.split}): {self.images:,} images, {self.classes} classes"]
        if self.refused:
            lines.append(f"not counted, because they can't be read: {len(self.refused)} images; {'; '.join(self.refused[:NAMED])}")
        if self.not_taken:
            lines.append(not_taken(self.not_taken))
        if self.tagged:
            counted, was, it = ("1 image has", "was", "it") if self.tagged == 1 else (f"{self.tagged:,} images have", "were", "them")
            done = "turned" if self.exif else f"taken as stored, as torchvision does; --exif turns {it}"
            lines.append(f"{counted} an EXIF orientation, and {was} {done}")
        lines += self._matched()
        width = max(len(file.path) for file in self.files)
        for file in self.files:
            (low, high), (low5, high5) = (wilson(self.images - right, self.images) for right in (file.right1, file.right5))
            text = f"{file.path:{width}}  {file.backend} {file.precision}: top-1 error {file.top1_error:.2f} % ({low:.2f} to {high:.2f})"
            text += f", top-5 {file.top5_error:.2f} % ({low5:.2f} to {high5:.2f}), {file.images / file.seconds:,.0f} images/s"
            lines.append(text + (f"; {file.not_finite} ANSWERS ARE NOT FINITE" if file.not_finite else ""))
        first = self.files[0]
        for file in self.files[1:]:
            points, (low, high) = difference(first, file)
            same = float((first.answers == file.answers).mean())
            text = f"{file.path:{width}}  against {first.path}: {points:+.2f} points ({low:+.2f} to {high:+.2f})"
            lines.append(f"{text}, {same:.2%} of answers the same")
        return [printable(line, 2000) for line in lines]

    def _matched(self) -> list[str]:
        """By what the classes were matched: a line for all files, or one for each where they differ. None where nothing has names."""
        ways: dict[tuple[str, str | None], list[str]] = {}
        for file in self.files:
            ways.setdefault((file.matching.how, file.matching.problem), []).append(file.path)
        if list(ways) == [(BY_NUMBER.how, None)]:
            return []
        lines = []
        for (how, problem), files in ways.items():
            which = f" ({', '.join(files)})" if len(ways) > 1 else ""
            lines.append(f"classes matched {how}{f': {problem}' if problem else ''}{which}")
        return lines


def wilson(wrong: int, images: int) -> Interval:
    """The 95 % interval of an error rate in percent (Wilson, 1927). It stays within 0 to 100 and is valid for rates near 0.

    >>> [round(side, 2) for side in wilson(1308, 10_000)]
    [12.43, 13.76]
    """
    share, square = wrong / images, Z * Z / images
    middle = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / images + square / (4 * images)) / (1 + square)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def difference(first: FileResult, other: FileResult) -> tuple[float, Interval]:
    """The top-1 error of ``other`` minus that of ``first`` on the same images, in points, and its 95 % interval (Bonett and Price, 2012:
    paired proportions)."""
    lost, won = int((first.correct & ~other.correct).sum()), int((~first.correct & other.correct).sum())
    return paired_difference(lost, won, first.images)


def paired_difference(lost: int, won: int, images: int) -> tuple[float, Interval]:
    """``difference`` from counts: of ``images``, ``lost`` were right in the first file alone and ``won`` in the other alone.

    >>> points, (low, high) = paired_difference(12, 7, 500)
    >>> round(points, 2), round(low, 2), round(high, 2)
    (1.0, -0.79, 2.78)
    """
    a, b = (lost + 1) / (images + 2), (won + 1) / (images + 2)
    half = Z * math.sqrt((a + b - (a - b) ** 2) / (images + 2))
    return 100 * (lost - won) / images, (100 * max(-1.0, a - b - half), 100 * min(1.0, a - b + half))


def evaluate(
    paths: Sequence[Path | str] | Path | str,
    data: Path | str,
    *,
    split: Split = "val",
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch: int = 64,
    workers: int | None = None,
    preprocessing: Overrides = NO_OVERRIDES,
    skip_corrupt: int = 0,
    exif: bool = False,
    progress: Progress = lambda text, share: None,  # noqa: ARG005
    backends: Sequence[str] = (),
    names: Sequence[str] = (),
    limit: int | None = None,
    **overrides: Any,
) -> Evaluation:
    """Run all files on all images of a dataset (``data``: see ``images.datasets.open_dataset``).

    Images are preprocessed as each file's metadata says; ``preprocessing`` overrides that. ``backend``, ``device``, ``threads``: see
    ``open_session``; ``overrides``: see ``checkpoints.load``. ``exif``: image files are turned as they are tagged, which torchvision does
    not. Classes are matched by name where a file and the dataset have the same names (see ``images.class_names.match_classes``), else in
    their order. ``progress`` gets a line of text and the share that is done. ``backends`` and ``names`` are a backend and a name for each
    file, where these differ. ``limit``: at most so many images, evenly spread over the dataset. Errors are in percent, their 95 % intervals
    Wilson's (1927). Raises InputRefused for files and data that can't be used or don't fit each other, and for more than ``skip_corrupt``
    images that can't be read; Unavailable for a backend that is not installed.
    """
    progress = overrides.pop("told", progress)  # its name until 0.1.0
    steps = overrides.pop("steps", preprocessing)  # likewise
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    each: Sequence[str | None] = backends or [backend] * len(paths)
    for name in {name for name in each if name is not None}:
        resolve_backend(name)
    with contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(open_session(path, name, device, threads, **own))
            for (path, own), name in zip(_opening(paths, overrides), each, strict=True)
        ]
        paths = list(names) or paths  # from here on they are named, and no longer opened
        dataset = open_dataset(data, split, sessions[0].classes, upright=exif)
        for path, session in zip(paths, sessions, strict=True):
            if session.classes != dataset.classes:
                names = ", ".join(dataset.class_names[:3])
                raise InputRefused(
                    f"{data}: the dataset has {dataset.classes:,} classes ({names} …), but {path} has {session.classes:,}; expected the "
                    "same number: give the dataset that the network was trained for"
                )
        preprocessings = []
        for path, session in zip(paths, sessions, strict=True):
            with naming(path):
                preprocessings.append(steps.apply_to(session.preprocessing, session.input_shape[2:], session.input_shape[1]))
        for doubts, doubted in _by_doubts(paths, preprocessings, steps).items():
            log.warning("%s: %s here, or to convert or export, whose files keep it", ", ".join(doubted), doubts)
        tallies = [
            _Tally(str(path), session, own, matching_of(session.class_names, dataset))
            for path, session, own in zip(paths, sessions, preprocessings, strict=True)
        ]
        _warn_of_numbers(tallies, dataset)
        indices = spread(len(dataset), limit)
        refused = _run(tallies, dataset, indices, batch, workers, skip_corrupt, progress)
    return Evaluation(
        dataset.name, split, len(indices) - len(refused), dataset.classes, tuple(tally.result() for tally in tallies), tuple(refused),
        dataset.not_taken, len(dataset.tagged), exif,
    )  # fmt: skip


def _opening(paths: Sequence[Path | str], overrides: Mapping[str, Any]) -> Iterator[tuple[Path | str, Mapping[str, Any]]]:
    """Each file with what to open it with: artifacts beside checkpoints have no other weights than their own."""
    checkpoints = [path for path in paths if overrides.get("weights") is not None and holds_weights(path)]
    for path in paths:
        yield path, {**overrides, "weights": None} if checkpoints and path not in checkpoints else overrides


def matching_of(class_names: Sequence[str], dataset: Dataset) -> Matching:
    """How a dataset's classes correspond to a model's, which have these names, or none. Its ``problem`` says why they may be mixed up."""
    otherwise = "by the sorted order of the folders" if isinstance(dataset, FolderDataset) else BY_NUMBER.how
    found = match_classes(class_names, dataset.class_names if dataset.named else (), otherwise)
    if found.how == otherwise and not found.problem and (odd := _numbers_out_of_order(dataset.class_names)):
        found = Matching(otherwise, problem=f"the folders are numbers, which sort as {odd}; fill them up with zeros to change that")
    return found


def _warn_of_numbers(tallies: Sequence[_Tally], dataset: Dataset) -> None:
    """Warn of classes that could not be matched by name: once for all files with the same reason."""
    ways: dict[tuple[str, str], list[str]] = {}
    for tally in tallies:
        if tally.matching.problem:
            ways.setdefault((tally.matching.how, tally.matching.problem), []).append(tally.path)
    for (how, problem), paths in ways.items():
        which = f"{', '.join(paths)}: {'its' if len(paths) == 1 else 'their'}"
        log.warning("%s classes are matched with those of %s %s, not by name: %s", which, dataset.name, how, problem)


def spread(count: int, limit: int | None) -> range | list[int]:
    """The numbers from 0 to ``count`` - 1, or ``limit`` of them, evenly spread.

    >>> list(spread(4, None)), list(spread(10, 4)), list(spread(2, 4))
    ([0, 1, 2, 3], [0, 2, 5, 7], [0, 1])
    """
    if limit is None or limit >= count:
        return range(count)
    return [number * count // limit for number in range(limit)]


def _by_doubts(paths: Sequence[Path | str], preprocessings: Sequence[Preprocessing], steps: Overrides) -> dict[str, list[str]]:
    """The files whose preprocessing was guessed and is not stated by ``steps``, by what was guessed."""
    files: dict[str, list[str]] = {}
    for path, own in zip(paths, preprocessings, strict=True):
        if doubts := own.doubts(steps):
            files.setdefault(doubts, []).append(str(path))
    return files


def _numbers_out_of_order(names: Sequence[str]) -> str:
    """The first names, if all are numbers whose order as text, which is the folders' order, is not that of their values; else empty."""
    if not all(name.isascii() and name.isdecimal() for name in names) or list(names) == sorted(names, key=lambda name: (len(name), name)):
        return ""
    return ", ".join(names[:4])


class _Tally:
    """A session and its answers so far."""

    def __init__(self, path: str, session: Session, preprocessing: Preprocessing, matching: Matching) -> None:
        self.path, self.session, self.preprocessing, self.matching = path, session, preprocessing, matching
        self.answers: list[Labels] = []
        self.correct: list[npt.NDArray[np.bool_]] = []
        self.right5, self.not_finite, self.seconds = 0, 0, 0.0

    def take(self, pixels: npt.NDArray[np.uint8], labels: Labels) -> None:
        images = self.preprocessing.apply(pixels)
        start = time.perf_counter()
        logits = self.session.run(images)
        self.seconds += time.perf_counter() - start
        if self.matching.order is not None:
            logits = logits[:, self.matching.order]  # in the order of the dataset's classes
        answers, place, finite = ranked(logits, labels)
        self.answers.append(answers)
        self.correct.append(finite & (place == 0))
        self.right5 += int((finite & (place < 5)).sum())
        self.not_finite += int((~finite).sum())

    def result(self) -> FileResult:
        session, correct = self.session, np.concatenate(self.correct)
        return FileResult(
            self.path, session.backend, session.device, _precision(session), session.form, self.preprocessing, len(correct),
            int(correct.sum()), self.right5, self.not_finite, self.seconds, np.concatenate(self.answers), correct, self.matching,
        )  # fmt: skip


def _precision(session: Session) -> str:
    """What it computes in, with the precision of the weights where that is another."""
    weights = session.weights_precision
    return session.precision if weights in (None, session.precision) else f"{session.precision} (weights {weights})"


def ranked(logits: Floats, labels: Labels) -> tuple[Labels, Labels, npt.NDArray[np.bool_]]:
    """For logits [N, classes] and labels [N]: the top class of each row, the rank of its label (0: first; among equal logits the lower
    class comes first), and whether the row is finite."""
    finite = np.logical_and.reduce(np.isfinite(logits), axis=1)
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    place = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return logits.argmax(axis=1), place, finite


def _run(
    tallies: Sequence[_Tally],
    dataset: Dataset,
    indices: Sequence[int],
    size: int,
    workers: int | None,
    skip_corrupt: int,
    progress: Progress,
) -> list[str]:
    """Run all images through all sessions. Returns why some could not be read."""
    own = [replace(tally.preprocessing, guessed=()) for tally in tallies]  # images are the same whether it was guessed or not
    kinds = list(dict.fromkeys(own))
    refused: list[str] = []
    done = 0
    for batch in _named(batches(dataset, kinds, indices, size, workers), refused):
        done += len(batch.labels) + len(batch.refused)
        if len(refused) <= skip_corrupt and len(batch.labels):  # beyond that, go on only to count and name the unreadable ones
            for tally, kind in zip(tallies, own, strict=True):
                tally.take(batch.pixels[kinds.index(kind)], batch.labels)
        progress(f"{done:,} of {len(indices):,} images", done / len(indices))
    if len(refused) > skip_corrupt:
        more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        raise InputRefused(
            f"{len(refused)} of {len(indices)} images can't be read; expected at most {skip_corrupt} (--skip-corrupt): "
            f"{'; '.join(refused[:NAMED])}{more}"
        )
    if len(refused) == len(indices):
        raise InputRefused(f"{dataset.name}: none of its {len(indices)} images can be read: {refused[0]}")
    return refused


def _named(prepared: Iterator[Batch], refused: list[str]) -> Iterator[Batch]:
    for batch in prepared:
        refused += batch.refused
        yield batch
