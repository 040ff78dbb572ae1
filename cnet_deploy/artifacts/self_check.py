"""A check that an artifact carries with it: images that anyone can make again, and the logits that its model gives for them.

For artifacts that can't be run where they are made: whoever opens one first, where it can, verifies it without the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from cnet_deploy.errors import CheckFailed, InputRefused
from cnet_deploy.files.strict_json import Finite, InvalidValue, Whole, convert, reading

Floats = npt.NDArray[np.float32]
# Largest difference of two logits, relative to the largest logit. Rounding in fp32, tf32 and fp16 stays well below it. In bf16, 0.023 was
# met in a thousand random networks, so 0.03 is no more than a bound that honest networks keep: it does not tell small faults from rounding.
# In int8 a single logit can be far off (0.31 of the largest was met in 66 random networks, 0.1 in the example), so the cosine counts too.
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 3e-2, "int8": 0.4}
# The least cosine of the logits in int8 with the model's: 0.975 was met in the same random networks, 0.997 in the example on random images.
COSINE = 0.95
EXACT = 1e-6  # the tolerance for what is exact: a proof's numbers have eight digits
IMAGES = 2
MAX_NUMBERS = 1 << 24  # of one image: 2364x2364 pixels in RGB
_SEED = 20180618
_MOST = 4  # images that an artifact may ask to be run on
_Rows = Annotated[list[list[Finite]], Meta(min_length=1, max_length=_MOST, description=f"a list of 1 to {_MOST} rows of numbers")]
_Tolerance = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]


@dataclass(frozen=True)
class _Proof:
    seed: Whole
    tolerance: _Tolerance
    logits: _Rows


def tolerance_of(*precisions: str | None) -> float:
    """The tolerance for a network whose weights and layers have these precisions: that of the least exact. Unknown ones are left out.

    >>> tolerance_of("fp32", "bf16", None)
    0.03
    """
    return max((TOLERANCES[name] for name in precisions if name in TOLERANCES), default=TOLERANCES["fp32"])


def cosine_of(*precisions: str | None) -> float | None:
    """The least cosine of logits with the model's, for a network with weights or layers in these precisions; None where none is asked.

    >>> cosine_of("fp32", None), cosine_of("int8")
    (None, 0.95)
    """
    return COSINE if "int8" in precisions else None


def make(run: Callable[[Floats], Floats], shape: tuple[int, ...], tolerance: float) -> dict[str, Any]:
    """A proof: what ``run`` gives for the images of ``shape`` [3, H, W]; ``tolerance`` is relative to the largest logit.

    Raises InputRefused for images that are too large to be checked when the artifact is opened.
    """
    _require_size(shape)
    logits = run(images(shape, _SEED, IMAGES))
    return {"seed": _SEED, "tolerance": tolerance, "logits": [[float(f"{value:.8g}") for value in row] for row in logits]}


def check(
    run: Callable[[Floats], Floats], shape: tuple[int, ...], proof: Mapping[str, Any], *, classes: int | None = None,
    most: float = TOLERANCES["fp32"], least_cosine: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare what ``run`` gives for the images of ``shape`` [3, H, W] with a proof; an entry for the manifest's verification.

    ``classes`` is the number of logits that the artifact gives, ``most`` the tolerance of its precision (see ``tolerance_of``): a proof is
    a stranger's, so the smaller of the two tolerances counts. ``least_cosine`` is as from ``cosine_of``. Raises CheckFailed where they
    differ, InputRefused for a damaged proof and for images of more than ``MAX_NUMBERS`` numbers, before any are made.
    """
    with reading("the manifest's proof", "export the model again"):
        values = convert(proof, _Proof, "proof")
        if len({len(row) for row in values.logits}) > 1:
            raise InvalidValue("proof.logits has rows of different lengths; expected one logit for each class")
    _require_size(shape)
    if classes is not None and len(values.logits[0]) != classes:
        given, wanted = [len(values.logits), classes], [len(values.logits), len(values.logits[0])]
        raise CheckFailed(f"the artifact gives logits {given}, its model {wanted}; export the model again")
    expected, tolerance = np.array(values.logits, np.float64), min(values.tolerance, most)
    logits = run(images(shape, values.seed, len(expected))).astype(np.float64)
    if logits.shape != expected.shape:
        raise CheckFailed(f"the artifact gives logits {list(logits.shape)}, its model {list(expected.shape)}; export the model again")
    worst, scale = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
    norms = float(np.linalg.norm(logits) * np.linalg.norm(expected))
    cosine = float((logits * expected).sum() / norms) if norms else 1.0
    if least_cosine is not None and not cosine >= least_cosine:
        raise CheckFailed(
            f"the artifact computes something else than its model: the cosine of their logits is {cosine:.3f}, in int8 at least "
            f"{least_cosine:g}; export the model again, on this machine if you can"
        )
    if not worst <= tolerance * scale:  # NaN fails
        raise CheckFailed(
            f"the artifact computes something else than its model: max error {worst:.2e} on logits up to {scale:.3g} "
            f"(tolerance {tolerance * scale:.2e}); export the model again, on this machine if you can"
        )
    return {
        "inputs": "the manifest's proof", "images": len(expected), "max_error": worst, "scale": scale, "tolerance": tolerance,
        "passed": True,
        "agreement": float((logits.argmax(1) == expected.argmax(1)).mean()),
    }  # fmt: skip


def _require_size(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_NUMBERS:
        sides = "x".join(map(str, shape[1:]))
        raise InputRefused(
            f"reads images of {sides} pixels, which are too large for a self-check (at most {MAX_NUMBERS:,} numbers each); "
            "export it where it can be run, so that it is verified there"
        )


def images(shape: tuple[int, ...], seed: int, count: int) -> Floats:
    """Uniform noise [count, 3, H, W] of variance 1, from the raw bits of PCG64, which are the same in every version of numpy."""
    random, made = np.random.PCG64(seed), np.empty((count, *shape), np.float32)
    for image in made:
        uniform = (random.random_raw(image.size) >> np.uint64(40)).astype(np.float64) / 2**24
        image[...] = ((2 * uniform - 1) * 3**0.5).astype(np.float32).reshape(shape)
    return made
