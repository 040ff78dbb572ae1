"""A check that an artifact carries with it: images that anyone can make again, and the logits that its model gives for them.

For artifacts that can't be run where they are made: whoever opens one first, where it can, verifies it without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from cnet_deploy.errors import CheckFailed
from cnet_deploy.files.strict_json import Finite, InvalidValue, Whole, convert, reading

Floats = npt.NDArray[np.float32]
IMAGES = 2
_SEED = 20180618
_MOST = 64  # images that an artifact may ask to be run on
_Rows = Annotated[list[list[Finite]], Meta(min_length=1, max_length=_MOST, description=f"a list of 1 to {_MOST} rows of numbers")]


@dataclass(frozen=True)
class _Proof:
    seed: Whole
    tolerance: Finite
    logits: _Rows


def make(run: Callable[[Floats], Floats], shape: tuple[int, ...], tolerance: float) -> dict[str, Any]:
    """A proof: what ``run`` gives for the images of ``shape`` [3, H, W]; ``tolerance`` is relative to the largest logit."""
    logits = run(images(shape, _SEED, IMAGES))
    return {"seed": _SEED, "tolerance": tolerance, "logits": [[float(f"{value:.8g}") for value in row] for row in logits]}


def check(run: Callable[[Floats], Floats], shape: tuple[int, ...], proof: Mapping[str, Any]) -> dict[str, Any]:
    """Compare what ``run`` gives for the images of ``shape`` [3, H, W] with a proof; an entry for the manifest's verification.

    Raises CheckFailed where they differ, InputRefused for a damaged proof.
    """
    with reading("the manifest's proof", "export the model again"):
        values = convert(proof, _Proof, "proof")
        if len({len(row) for row in values.logits}) > 1:
            raise InvalidValue("proof.logits has rows of different lengths; expected one logit for each class")
    expected, tolerance = np.array(values.logits, np.float64), values.tolerance
    found = run(images(shape, values.seed, len(expected))).astype(np.float64)
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
