"""What is compared with what the server answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import cnet_deploy as cd

from .server import Array

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
