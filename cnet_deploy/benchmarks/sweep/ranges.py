"""What int8 networks of a run are calibrated with: given images, or random ones, since a latency does not depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.errors import InputRefused, Unavailable, printable
from cnet_deploy.files import exists
from cnet_deploy.models.architecture import INPUT_SIZE, NAMED
from cnet_deploy.program.calibration import Calibration
from cnet_deploy.workflows.inspect import inspect

COUNT = 32  # random images
DATA_COUNT = 256  # of given images, as of `export`
PRECISION = "int8"  # what is calibrated


@dataclass(frozen=True)
class Ranges:
    """``images`` are a dataset's folder, a CIFAR file or images (see ``export``); None: images of random bytes. Each network is calibrated
    once: ``known`` has the calibrations by the network's file or name."""

    images: Path | str | None = None
    known: dict[str, Calibration] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many images there are at most."""
        return COUNT if self.images is None else DATA_COUNT

    def options(self, model: str, folder: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the export of a file or a named network. Random images are written to ``folder``; ``overrides`` are the options
        with which a checkpoint is loaded. Raises InputRefused for a file that can't be read."""
        images = self.images or random_images(folder, shape_of(model, overrides))
        return {"calibrate": images, **({"calibration": self.known[model]} if model in self.known else {})}

    def require_use(self, *, used: bool) -> None:
        """Raise InputRefused for images that are not there, or that nothing is calibrated with."""
        if self.images is None:
            return
        if not used:
            raise InputRefused(
                f"nothing is exported in {PRECISION} here, so no images are needed for it; leave --calibrate out, or choose a backend "
                f"whose name ends in .{PRECISION}"
            )
        if not exists(self.images):
            raise InputRefused(f"{self.images}: no such file or folder; expected images to calibrate with")

    def note(self, *, judged: bool = False) -> str:
        """What results say of their int8 networks. ``judged``: they are evaluated on images of the same file."""
        if self.images is None:
            return (
                f"{PRECISION} was calibrated with {COUNT} images of random bytes. Its latency does not depend on them; its answers do: "
                "--calibrate DATA takes real images."
            )
        also = " Some of these images are among those that it answers." if judged else ""
        return f"{PRECISION} was calibrated with up to {DATA_COUNT} images of {printable(self.images, 200)}.{also}"


def random_images(folder: Path, shape: tuple[int, int, int]) -> Path:
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
    if not exists(model):
        return NAMED[str(model)].image_shape if str(model) in NAMED else (3, *INPUT_SIZE)
    architecture = inspect(model, **overrides).architecture
    return (3, *INPUT_SIZE) if architecture is None else architecture.image_shape
