"""Images -> class names, with anything that opens as a session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cnet_deploy.images.answers import Answer
from cnet_deploy.images.inputs import Given
from cnet_deploy.images.preprocessing import NO_OVERRIDES, Overrides
from cnet_deploy.sessions import open_session, resolve_backend


def classify(
    path: Path | str,
    images: Iterable[Given] | Given,
    *,
    labels: Path | str | None = None,
    top: int = 5,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch: int = 16,
    preprocessing: Overrides = NO_OVERRIDES,
    sha256: str | None = None,
    **overrides: Any,
) -> Iterator[Answer]:
    """Classify images with a checkpoint, a model or an artifact. Yields one Answer per image, as the images are read.

    ``images`` are one or several of: image files, folders of them, CIFAR binary files (whose images are named ``FILE#0``, ``FILE#1`` …),
    images of Pillow, and numpy arrays of uint8 [height, width, channels]. They are turned as their EXIF data say and prepared as the
    model's metadata says (see ``Preprocessing.read``); ``preprocessing`` overrides the latter. An Answer has the ``top`` most likely
    classes. Their names come from the file ``labels`` (see ``images.class_names.read_labels``), else from the model. ``backend``,
    ``device``, ``threads``, ``sha256``: see ``open_session``; ``overrides``: see ``checkpoints.load``. Raises InputRefused for a model,
    labels or images that can't be used; an image that can't be read gives an Answer with a ``problem``. To classify again and again,
    open a session once and call its ``classify``.
    """
    preprocessing = overrides.pop("steps", preprocessing)  # its name until 0.1.0
    if backend is not None:
        resolve_backend(backend)
    with open_session(path, backend, device, threads, sha256=sha256, **overrides) as session:
        yield from session.answers(images, top=top, batch=batch, labels=labels, preprocessing=preprocessing)
