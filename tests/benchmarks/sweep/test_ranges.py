"""What int8 networks of a run are calibrated with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.benchmarks.gate.run import gate
from cnet_deploy.benchmarks.gate.sides import make_side
from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.rounds import Result
from cnet_deploy.benchmarks.sweep.plan import backends_of, bench, is_calibrated, prepare
from cnet_deploy.benchmarks.sweep.ranges import COUNT, Ranges, random_images, shape_of
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.files.onnx_weights import weights_precision
from tests.benchmarks.helpers import QUICK
from tests.cases import long

IMAGES = Path(__file__).parents[3] / "examples" / "cifar10-test-500.bin"


@pytest.mark.parametrize(("shape", "mode"), [((1, 5, 7), "L"), ((3, 32, 32), "RGB"), ((4, 6, 6), "RGBA")])
def test_random_images_are_the_same_every_time(shape: tuple[int, int, int], mode: str, tmp_path: Path) -> None:
    files = sorted(random_images(tmp_path, shape).iterdir())
    assert len(files) == COUNT and random_images(tmp_path, shape) == files[0].parent
    with Image.open(files[0]) as image:
        assert image.mode == mode and image.size == (shape[2], shape[1])
    (tmp_path / "again").mkdir()
    again = sorted(random_images(tmp_path / "again", shape).iterdir())
    pixels = [np.asarray(Image.open(file)) for file in (*files, *again)]
    assert all(np.array_equal(one, other) for one, other in zip(pixels[:COUNT], pixels[COUNT:], strict=True))
    assert not np.array_equal(pixels[0], pixels[1])
    with pytest.raises(Unavailable, match="can't be written: .*; set TMPDIR"):
        random_images(tmp_path / "no" / "folder", shape)


def test_the_shape_of_a_network_s_images(checkpoint_path: Path) -> None:
    assert shape_of(checkpoint_path, {}) == (3, 32, 32) == shape_of("condensenet-50", {})
    assert shape_of("condensenet-74-g4", {}) == (3, 224, 224) == shape_of("vgg-16", {})
    assert shape_of(checkpoint_path, {"input_size": (64, 48)}) == (3, 64, 48)


def test_images_that_nothing_is_calibrated_with(checkpoint_path: Path, onnx_path: Path, tmp_path: Path) -> None:
    refused = pytest.raises(InputRefused, match="nothing is exported in int8 here, so no images .* whose name ends in .int8")
    with refused:
        bench([str(checkpoint_path)], backends=["native"], calibrate=IMAGES)
    with refused:
        bench([str(onnx_path)], backends=["onnxruntime"], calibrate=IMAGES)
    with refused:
        cd.compare(checkpoint_path, backends=["onnxruntime"], precisions=["fp16"], calibrate=IMAGES)
    with pytest.raises(InputRefused, match="none: no such file or folder; expected images to calibrate with"):
        bench([str(checkpoint_path)], backends=["native.int8"], calibrate=tmp_path / "none")


def test_only_what_is_exported_in_int8_is_calibrated(checkpoint_path: Path, onnx_path: Path) -> None:
    assert is_calibrated("native.int8", str(checkpoint_path)) and is_calibrated("openvino.int8", "condensenet-50")
    assert not is_calibrated("native.bf16", str(checkpoint_path)) and not is_calibrated("onnxruntime.int8", str(onnx_path))
    # The paper's other networks have no ranges: they are not made from a Program.
    assert backends_of("vgg-16", ["torch", "native.int8", "onnxruntime.int8", "onnxruntime"]) == ("torch", "onnxruntime")


def test_what_results_say() -> None:
    assert Ranges().note().startswith(f"int8 was calibrated with {COUNT} images of random bytes. Its latency does not depend on them")
    assert Ranges("a/data").note() == "int8 was calibrated with up to 256 images of a/data."
    assert Ranges("data").note(judged=True).endswith("Some of these images are among those that it answers.")
    assert (Ranges().count, Ranges("data").count) == (COUNT, 256)


@long
def test_a_network_is_calibrated_once(checkpoint_path: Path, tmp_path: Path, compiled: None) -> None:
    ranges = Ranges(IMAGES)
    made = {}
    for name in ("native.int8", "onnxruntime.int8", "openvino.int8"):
        result = Result(Cell("m", str(checkpoint_path), name, 1))
        prepare(result, tmp_path, {}, source=str(checkpoint_path), ranges=ranges)
        assert result.error is None
        made[name] = Path(result.cell.model)
        (calibration,) = ranges.known.values()
        assert calibration.images == 256
    assert made["onnxruntime.int8"] == made["openvino.int8"] and weights_precision(made["openvino.int8"].read_bytes()) == "int8"
    with cd.open_session(made["native.int8"]) as session:
        assert session.precision == "int8"


@long
def test_bench_of_a_named_network(compiled: None) -> None:
    report = bench(["condensenet-50"], backends=["native", "native.int8"], threads=[1], settings=QUICK)
    assert [result.error for result in report.results] == [None, None] and report.notes == [Ranges().note()]
    assert report.to_dict()["notes"] == report.notes


@long
def test_a_gate_exports_in_int8(checkpoint_path: Path, tmp_path: Path, compiled: None) -> None:
    lines: list[str] = []
    path = str(checkpoint_path)
    for name, calibrate in (("base", None), ("head", IMAGES)):
        side = make_side(name, path, "native.int8", 1, sys.executable, tmp_path, lines.append, "cpu", calibrate=calibrate)
        assert side.figures is not None and side.figures.precision == "int8"
    assert [line for line in lines if "calibrated" in line] == [f"base: {Ranges().note()}", f"head: {Ranges(IMAGES).note()}"]
    manifests = [read_pair(tmp_path / f"{name}.so").manifest for name in ("base", "head")]
    assert [m.details["quantization"]["images"] for m in manifests if m is not None] == [COUNT, 256]
    with pytest.raises(InputRefused, match="nothing is exported in int8 here"):
        gate(path, path, backend="torch", calibrate=IMAGES)
