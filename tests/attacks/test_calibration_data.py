"""Calibration data that are none: refused before anything is compiled, in one line, and nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.checkpoints.save import save
from cnet_deploy.exporters.base import Written
from cnet_deploy.models.build import build_random
from cnet_deploy.workflows.inspect import inspect

from .helpers import ARCHITECTURE, refused

RECORD = 1 + 3 * 32 * 32


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def write(*_: object, **__: object) -> Written:
        pytest.fail("it was written")

    monkeypatch.setattr("cnet_deploy.workflows.export.exporter", lambda _: write)
    save(build_random(ARCHITECTURE), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def refuses(model: Path, data: Path, *says: str) -> None:
    refused("export", model, "--native", "--precision", "int8", "--calibrate", data, "-q", file=data, says=says)
    assert not list(model.parent.glob("*.so*"))


def records(labels: list[int]) -> bytes:
    return b"".join(bytes([label]) + bytes(RECORD - 1) for label in labels)


@pytest.mark.parametrize(("content", "says"), [
    (b"", "is empty"),
    (records([0, 10]), "has label 10; expected 0 to 9"),
    (records([255]), "has label 255"),
    (records([1])[:-1], "expected records of 3073 bytes"),
    (b"\x89PNG\r\n\x1a\n" + bytes(100), "expected records of 3073 bytes"),
])  # fmt: skip
def test_a_binary_file(content: bytes, says: str, model: Path, tmp_path: Path) -> None:
    (data := tmp_path / "images.bin").write_bytes(content)
    refuses(model, data, says)


def test_folders_without_images(model: Path, tmp_path: Path) -> None:
    (data := tmp_path / "data").mkdir()
    refuses(model, data, "holds no images")
    (data / "notes.txt").write_text("none")
    refuses(model, data, "holds no images (1 file was not taken for images: notes.txt)")
    (data / "train").mkdir()
    refuses(model, data, "holds no images")
    refuses(model, tmp_path / "nothing", "no such file or folder")


def test_a_dataset_with_a_part_missing_or_damaged(model: Path, tmp_path: Path) -> None:
    (data := tmp_path / "data").mkdir()
    (data / "data_batch_2.bin").write_bytes(records([0]))
    refuses(model, data, "has no data_batch_1.bin")
    for number in range(1, 6):
        (data / f"data_batch_{number}.bin").write_bytes(records([0]))
    refuses(model, data, "holds 1 images; expected 10000")


@pytest.mark.parametrize("content", [b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40), b"GIF89a"])
def test_a_damaged_image_among_others(content: bytes, model: Path, tmp_path: Path) -> None:
    (data := tmp_path / "data").mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(data / "a.png")
    (data / "b.png").write_bytes(content)
    refused("export", model, "--native", "--precision", "int8", "--calibrate", data, "-q", file=data / "b.png")


def test_what_never_ends(model: Path, tmp_path: Path) -> None:
    os.mkfifo(data := tmp_path / "images.png")
    refuses(model, data)
    (loop := tmp_path / "loop").mkdir()
    (loop / "again").symlink_to(loop)
    refuses(model, loop, "holds no images")


HOSTILE = [
    [], "x", {}, {"kept": "x", "accuracy": 3},
    {"kept": {"a\x1b[2J": "\n::error::"}, "accuracy": {"fp32": 1e308, "int8": 0, "agreement": 1}},
    {"accuracy": {"fp32": 10**400, "int8": -1, "agreement": "x"}},
    {"accuracy": {"fp32": 0.5, "int8": 0.5, "agreement": 1}, "method": [1]},
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_a_manifest_that_says_anything_of_quantization(value: object, tmp_path: Path) -> None:
    """It is shown, a line for each of its own, and decides nothing."""
    from cnet_deploy.workflows.export import export

    path = export(build_random(ARCHITECTURE), "onnx", tmp_path / "m.onnx").path
    manifest = json.loads(manifest_path(path).read_text())
    manifest["details"]["quantization"] = value
    manifest_path(path).write_text(json.dumps(manifest))
    text = inspect(path).summary()
    assert all(line.isprintable() for line in text.splitlines()) and "\n::" not in text
    assert any(line.startswith("quantization: ") for line in text.splitlines())
