"""A check that an artifact carries with it: images that anyone can make again, and the logits that its model gives for them.

For artifacts that can't be run where they are made: whoever opens one first, where it can, verifies it without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import CheckFailed, InputRefused

Floats = npt.NDArray[np.float32]
IMAGES = 2
_SEED = 20180618


def make(run: Callable[[Floats], Floats], shape: tuple[int, ...], tolerance: float) -> dict[str, Any]:
    """What ``run`` gives for the images of ``shape`` [3, H, W]; ``tolerance`` is relative to the largest logit."""
    logits = run(images(shape, _SEED, IMAGES))
    return {"seed": _SEED, "tolerance": tolerance, "logits": [[float(f"{value:.8g}") for value in row] for row in logits]}


def check(run: Callable[[Floats], Floats], shape: tuple[int, ...], proof: Mapping[str, Any]) -> dict[str, Any]:
    """Compare on the images of ``shape`` [3, H, W]; an entry for the manifest's verification.

    Raises CheckFailed where they differ, InputRefused for a damaged proof.
    """
    try:
        expected = np.array(proof["logits"], np.float64)
        tolerance, seed = float(proof["tolerance"]), proof["seed"]
        if expected.ndim != 2 or not np.isfinite(expected).all() or type(seed) is not int or not 0 < len(expected) <= 64:
            raise ValueError("no logits")
        batch = images(shape, seed, len(expected))
    except (KeyError, TypeError, ValueError) as error:
        raise InputRefused(f"the manifest's proof is damaged ({type(error).__name__}: {error}); export the model again") from None
    found = run(batch).astype(np.float64)
    if found.shape != expected.shape:
        raise CheckFailed(f"the artifact gives logits {list(found.shape)}, its model {list(expected.shape)}; export the model again")
    worst, scale = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not worst <= tolerance * scale:  # NaN fails
        raise CheckFailed(
            f"the artifact computes something else than its model: max error {worst:.2e} on logits up to {scale:.3g} "
            f"(tolerance {tolerance * scale:.2e}); export the model again, on this machine if you can"
        )
    return {
        "inputs": "the manifest's proof", "images": len(expected), "max_error": worst, "scale": scale, "tolerance": tolerance,
        "passed": True,
        "agreement": float((found.argmax(1) == expected.argmax(1)).mean()),
    }  # fmt: skip


def images(shape: tuple[int, ...], seed: int, count: int) -> Floats:
    """Uniform noise [count, 3, H, W] of variance 1, from the raw bits of PCG64, which are the same in every version of numpy."""
    bits = np.random.PCG64(seed).random_raw(count * int(np.prod(shape)))
    uniform = (bits >> np.uint64(40)).astype(np.float64) / 2**24
    return ((2 * uniform - 1) * 3**0.5).astype(np.float32).reshape(count, *shape)
