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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guess:
    """A class, its name if it is known, and its softmax probability, 0 to 1."""

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

    ``images`` are image files, folders of them, or CIFAR binary files, whose images are named ``FILE#0``, ``FILE#1`` … They are
    preprocessed as the model's metadata says; ``steps`` overrides that. An Answer has the ``top`` most likely classes. Their names come
    from the file ``labels`` (see ``images.class_names.read_labels``), else from the model. ``backend``, ``device``, ``threads``,
    ``sha256``: see ``open_session``; ``overrides``: see ``checkpoints.load``. Raises InputRefused for a model, labels or images that
    can't be used; an image that can't be read gives an Answer with a ``problem``.
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
        waiting: list[tuple[str, Pixels]] = []
        for source in chain.from_iterable(walk_images(path, preprocessing, session.classes) for path in named):
            try:
                waiting.append((source.name, source.read()))
            except InputRefused as error:
                yield from _answers(session, preprocessing, waiting, names, top)  # keeps the order of the images
                waiting = []
                yield Answer(source.name, problem=str(error))
            if len(waiting) == batch:
                yield from _answers(session, preprocessing, waiting, names, top)
                waiting = []
        yield from _answers(session, preprocessing, waiting, names, top)


def _answers(
    session: Session, preprocessing: Preprocessing, images: Sequence[tuple[str, Pixels]], names: Sequence[str], top: int
) -> Iterator[Answer]:  # fmt: skip
    if not images:
        return
    logits = session.run(preprocessing.apply(np.stack([pixels for _, pixels in images]))).astype(np.float64)
    for (name, _), row in zip(images, logits, strict=True):
        if not np.isfinite(row).all():
            yield Answer(name, problem=f"{name}: the network's output is not finite; verify the artifact against its model")
            continue
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        best = np.argsort(-row, kind="stable")[:top]
        yield Answer(name, tuple(Guess(int(label), names[label] if names else None, float(shares[label])) for label in best))
