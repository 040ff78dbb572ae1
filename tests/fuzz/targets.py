"""What is fuzzed, and what must hold of any input: a whole result, or InputRefused in one printable line, in 2 s of processor time.

No torch here, so that an input takes little time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cnet_deploy.artifacts import manifest
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.checkpoints.recognise import architecture_of, expected_shapes, infer_form
from cnet_deploy.errors import InputRefused
from cnet_deploy.images.decode import read_images
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.workflows.inspect import inspect

MAX_SECONDS, MAX_LINE = 2.0, 1000
ARTIFACT = b"\x7fELF"
GIVEN = {"input_size": (8, 8), "stem_stride": 1}  # what a network of one stage doesn't tell
_STEPS = [
    Preprocessing("x", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), None, (32, 32)),
    Preprocessing("x", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 40, (36, 30)),
]


def checkpoint(path: Path) -> None:
    """Weights in any container, their architecture, and all that is told of them."""
    read = read_tensors(path)
    for name, array in read.tensors.items():
        assert isinstance(name, str) and type(array) is np.ndarray and array.flags.c_contiguous and array.flags.writeable, name
        assert array.dtype == np.float32 or array.dtype.kind in "iub", (name, array.dtype)
    found = inspect(path, **GIVEN)
    arch = architecture_of(read, **GIVEN) if found.problem is None else None
    if arch is not None:
        assert found.architecture == arch
        for name, shape in expected_shapes(arch, infer_form(read.tensors)).items():
            assert read.tensors[name].shape == shape and np.isfinite(read.tensors[name]).all(), name
    _told(found.summary(), found.to_dict())


def description(path: Path) -> None:
    """A manifest by itself, and beside the artifact that it describes."""
    artifact = path.with_name("model.so")
    if not artifact.exists():
        artifact.write_bytes(ARTIFACT)
    manifest.manifest_path(artifact).write_bytes(path.read_bytes())
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        text = ""
    if text:
        found = manifest.Manifest.from_json(text)
        assert manifest.Manifest.from_json(found.to_json()) == found
    looked_at = inspect(artifact)
    _told(looked_at.summary(), looked_at.to_dict())


def image(path: Path) -> None:
    """An image of any format, and CIFAR's records."""
    for steps in _STEPS:
        try:
            read = read_images(path, steps, 10)
        except InputRefused as error:
            _line(str(error))
            continue
        assert read.pixels.shape == (1, 3, *steps.crop) and read.pixels.dtype == np.uint8 and read.labels is None
    records = path.with_suffix(".bin")
    records.write_bytes(path.read_bytes())
    read = read_images(records, _STEPS[0], 10)
    assert (
        read.labels is not None and read.pixels.shape == (len(read.labels), 3, 32, 32) and 0 <= read.labels.min() <= read.labels.max() < 10
    )


TARGETS: dict[str, Callable[[Path], None]] = {"checkpoint": checkpoint, "manifest": description, "image": image}


def try_one(target: str, path: Path, data: bytes) -> bool:
    """Whether this input was read whole; False where it was refused as it should be. Anything else raises."""
    path.write_bytes(data)
    start = time.process_time()
    try:
        TARGETS[target](path)
        accepted = True
    except InputRefused as error:
        _line(str(error))
        accepted = False
    used = time.process_time() - start
    assert used < MAX_SECONDS, f"{used:.1f} s of processor time"
    return accepted


def _told(summary: str, values: dict[str, object]) -> None:
    for line in summary.split("\n"):
        _line(line)
    json.dumps(values, allow_nan=False)


def _line(text: str) -> None:
    assert text.isprintable() and len(text) <= MAX_LINE, text[:300]
