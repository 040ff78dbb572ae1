"""The answers of a classification: the best classes of an image, with their names and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnet_deploy.errors import printable
from cnet_deploy.images.probabilities import Rows


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
    """The classification of one image: the best ``guesses``, most likely first, or the ``problem`` that prevented it.

    ``image`` is the file's path, or "image 0", "image 1" … for an image in memory.
    """

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


def answers(images: Sequence[str], shares: Rows, names: Sequence[str], top: int) -> list[Answer]:
    """The ``top`` best classes of each image, from probabilities [N, classes]. ``names`` are the classes', or empty.

    A row that is not finite gives an Answer with a ``problem``.
    """
    made = []
    for image, row in zip(images, shares, strict=True):
        if not np.isfinite(row).all():
            made.append(Answer(image, problem=f"{image}: the network's output is not finite; verify the artifact against its model"))
            continue
        best = np.argsort(-row, kind="stable")[:top]
        guesses = tuple(Guess(int(label), names[label] if names else None, float(row[label])) for label in best)
        made.append(Answer(image, guesses))
    return made
