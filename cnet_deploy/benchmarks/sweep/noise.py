"""Images of random bytes, to calibrate an int8 network with where no others are given: its latency does not depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.errors import InputRefused, Unavailable, printable
from cnet_deploy.files import exists
from cnet_deploy.models.architecture import INPUT_SIZE, NAMED
from cnet_deploy.workflows.inspect import inspect

COUNT = 32
DATA_COUNT = 256  # of a dataset's images that `export` calibrates with
PRECISION = "int8"  # what is calibrated


def noise_images(folder: Path, shape: tuple[int, int, int]) -> Path:
    """A folder inside ``folder`` with images of ``shape`` [channels, H, W], always the same. Made once. Raises Unavailable."""
    from PIL import Image

    channels, height, width = shape
    place = folder / f"random-{channels}x{height}x{width}"
    if not place.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (COUNT, height, width, channels), np.uint8)
        try:
            place.mkdir()
            for number, image in enumerate(pixels):
                Image.fromarray(image[:, :, 0] if channels == 1 else image).save(place / f"{number}.png", compress_level=0)
        except OSError as error:
            raise Unavailable(f"{place}: can't be written: {error.strerror}; set TMPDIR") from None
    return place


def shape_of(model: Path | str, overrides: Mapping[str, Any]) -> tuple[int, int, int]:
    """The shape [channels, H, W] of a network's images; that of ImageNet's where the file does not tell. ``model`` is a file or a name."""
    if str(model) in NAMED and not exists(model):
        return NAMED[str(model)].image_shape
    architecture = inspect(model, **overrides).architecture if exists(model) else None
    return (3, *INPUT_SIZE) if architecture is None else architecture.image_shape


def require_use(calibrate: Path | str | None, *, used: bool) -> None:
    """Raise InputRefused for calibration images that are not there, or that nothing is calibrated with."""
    if calibrate is None:
        return
    if not used:
        raise InputRefused(f"nothing is exported in {PRECISION}, so no images are needed; leave --calibrate out, or give such a --backend")
    if not exists(calibrate):
        raise InputRefused(f"{calibrate}: no such file or folder; expected images to calibrate with")


def note_of(calibrate: Path | str | None, *, judged: bool = False) -> str:
    """What results say of their int8 networks. ``judged``: they are evaluated on images of the same file."""
    if calibrate is None:
        return (
            f"{PRECISION} was calibrated with {COUNT} images of random bytes: that does not change its latency, but its answers. "
            "--calibrate DATA takes real images."
        )
    also = " Some of these images are among those that it answers." if judged else ""
    return f"{PRECISION} was calibrated with up to {DATA_COUNT} images of {printable(calibrate, 200)}.{also}"
