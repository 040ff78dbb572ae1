"""Images -> class names, with anything that opens as a session."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.errors import InputRefused, naming, printable
from cnet_deploy.images.class_names import read_labels
from cnet_deploy.images.decode import Pixels, walk_images
from cnet_deploy.images.preprocessing import NO_OVERRIDES, Overrides, Preprocessing
from cnet_deploy.sessions import open_session, resolve_backend
from cnet_deploy.sessions.base import Session
from cnet_deploy.workflows.probabilities import are_probabilities, softmax

log = logging.getLogger(__name__)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guess:
    """A class, its name if it is known, and its probability, 0 to 1: the softmax, or what the network answers if it ends in one."""

    label: int
    name: str | None
    probability: float

    @property
    def words(self) -> str:
        """The class's name, or its number if the name is not known."""
        return self.name or f"class {self.label}"


@dataclass(frozen=True)
class Answer:
    """The classification of one image: the best ``guesses``, most likely first, or the ``problem`` that prevented it."""

    image: str
    guesses: tuple[Guess, ...] = ()
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        guesses = [{"class": guess.label, "name": guess.name, "probability": guess.probability} for guess in self.guesses]
        return {"image": self.image, "guesses": guesses, **({"problem": self.problem} if self.problem else {})}

    def lines(self) -> list[str]:
        """For people: the image, and a line for each guess."""
        return [printable(self.image), *(f"  {100 * guess.probability:5.1f} %  {printable(guess.words)}" for guess in self.guesses)]


def classify(
    path: Path | str,
    images: Iterable[Path | str] | Path | str,
    *,
    labels: Path | str | None = None,
    top: int = 5,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch: int = 16,
    steps: Overrides = NO_OVERRIDES,
    sha256: str | None = None,
    **overrides: Any,
) -> Iterator[Answer]:
    """Classify images with a checkpoint, a model or an artifact. Yields one Answer per image, as the images are read.

    ``images`` are image files, folders of them, or CIFAR binary files, whose images are named ``FILE#0``, ``FILE#1`` … They are turned as
    their EXIF data say and preprocessed as the model's metadata says; ``steps`` overrides the latter. An Answer has the ``top`` most likely
    classes. Their names come from the file ``labels`` (see ``images.class_names.read_labels``), else from the model. ``backend``,
    ``device``, ``threads``, ``sha256``: see ``open_session``; ``overrides``: see ``checkpoints.load``. Raises InputRefused for a model,
    labels or images that can't be used; an image that can't be read gives an Answer with a ``problem``.
    """
    named = [Path(image) for image in ([images] if isinstance(images, (str, Path)) else images)]
    if backend is not None:
        resolve_backend(backend)
    with open_session(path, backend, device, threads, sha256=sha256, **overrides) as session:
        with naming(path):
            preprocessing = steps.apply_to(session.preprocessing, session.input_shape[2:], session.input_shape[1])
        if doubts := preprocessing.doubts(steps):
            log.warning("%s: %s here, or to convert or export, whose files keep it", path, doubts)
        names = session.class_names if labels is None else read_labels(labels, session.classes)
        answered = _Answers(session, preprocessing, names, top, str(path))
        waiting: list[tuple[str, Pixels]] = []
        for source in chain.from_iterable(walk_images(image, preprocessing, session.classes, upright=True) for image in named):
            try:
                waiting.append((source.name, source.read()))
            except InputRefused as error:
                yield from answered(waiting)  # keeps the order of the images
                waiting = []
                yield Answer(source.name, problem=str(error))
            if len(waiting) == batch:
                yield from answered(waiting)
                waiting = []
        yield from answered(waiting)


class _Answers:
    """The answers of a session. Its first batch shows whether its outputs are logits or probabilities."""

    def __init__(self, session: Session, preprocessing: Preprocessing, names: Sequence[str], top: int, path: str) -> None:
        self.session, self.preprocessing, self.names, self.top, self.path = session, preprocessing, names, top, path
        self.probabilities: bool | None = None

    def __call__(self, images: Sequence[tuple[str, Pixels]]) -> Iterator[Answer]:
        if not images:
            return
        rows = self.session.run(self.preprocessing.apply(np.stack([pixels for _, pixels in images]))).astype(np.float64)
        finite = np.logical_and.reduce(np.isfinite(rows), axis=1)
        if self.probabilities is None and finite.any():
            self.probabilities = are_probabilities(rows[finite])
            if self.probabilities:
                log.warning("%s: answers with probabilities (it ends in a softmax), which are printed as they are", self.path)
        shares = rows if self.probabilities else softmax(rows)
        for (name, _), row, valid in zip(images, shares, finite, strict=True):
            if not valid:
                yield Answer(name, problem=f"{name}: the network's output is not finite; verify the artifact against its model")
                continue
            best = np.argsort(-row, kind="stable")[: self.top]
            yield Answer(
                name, tuple(Guess(int(label), self.names[label] if self.names else None, float(row[label])) for label in best)
            )  # fmt: skip
