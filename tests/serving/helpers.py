"""What is compared with what the server answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import cnet_deploy as cd

from .server import Answer, Array, Sent

CLOSE = 1e-5  # of the largest logit: onnxruntime adds in another order when it runs requests together


def logits_of(path: Path, images: Array) -> Array:
    """What a session computes."""
    with cd.open_session(path, threads=1) as session:
        return session.run(images)


def equal(found: Array | None, expected: Array) -> bool:
    """To the bit."""
    return found is not None and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def close(found: Array | None, expected: Array) -> bool:
    return found is not None and found.shape == expected.shape and bool(np.abs(found - expected).max() <= CLOSE * np.abs(expected).max())


def sizes_run(statistics: dict[str, Any]) -> Counter[int]:
    """How often a model has run with how many images at once."""
    return Counter({found["batch_size"]: found["compute_infer"]["count"] for found in statistics["batch_stats"]})


def images_run(statistics: dict[str, Any]) -> int:
    """How many images a model has run."""
    return sum(size * count for size, count in sizes_run(statistics).items())


def check_the_end(answers: Iterable[Sent], expected: Array, same: Callable[[Array | None, Array], bool], clients: int = 16) -> None:
    """What clients got of a server that was stopped: right answers, and then each once no server."""
    lost = 0
    for which, answer in answers:
        if isinstance(answer, Answer):
            assert answer.status == 200 and same(answer.logits, expected[which : which + 1]), answer
        else:
            assert isinstance(answer, ConnectionError), repr(answer)
            lost += 1
    assert lost == clients
