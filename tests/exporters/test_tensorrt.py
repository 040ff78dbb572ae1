"""exporters/tensorrt.py, with real engines: tensorrt-rtx builds them where no GPU is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.cli import main
from cnet_deploy.errors import CheckFailed, InputRefused, Unavailable
from cnet_deploy.exporters import tensorrt
from cnet_deploy.exporters.onnx.graph import build_graph
from cnet_deploy.exporters.onnx.quantized import build_quantized
from cnet_deploy.hardware import tensorrt as tensorrt_flavours
from cnet_deploy.hardware.cuda import why_no_device
from cnet_deploy.models.build import build_named, build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.calibration import calibrate
from cnet_deploy.program.lower import lower
from cnet_deploy.program.quantize import Quantization
from tests.builders import TINY_V2
from tests.cases import few, long
from tests.old_outputs import old_output

pytest.importorskip("tensorrt_rtx", reason="needs the extra: cnet-deploy[rtx]")
RTX = {"flavour": "tensorrt-rtx"}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_the_real_checkpoint_in_every_precision(converted: DenselyConnected, tmp_path: Path, precision: str) -> None:
    done = cd.export(converted, "tensorrt", tmp_path / "m.engine", precision=precision, **RTX)
    found = Manifest.from_json(manifest_path(done.path).read_text())
    assert found == done.manifest and (found.target, found.precision) == ("tensorrt", precision)
    layers = "fp32" if precision == "tf32" else precision
    # 12 layers of a 1x1 and a 3x3, the first convolution, the classifier.
    assert found.details["multiplying_layers"] == {layers: 26}
    assert list(found.details["layers"]) == [layers]
    assert found.details["flavour"] == "tensorrt-rtx" and found.details["version"] in found.libraries.values()
    assert {"8.0", "8.6", "8.9", "12.0"} <= set(found.details["compute_capabilities"])
    assert found.details["profiles"] == [{"min": 1, "opt": 1, "max": 32}]
    assert found.details["opset"] == (22 if precision == "bf16" else 17)
    if why_no_device():
        assert found.details["precision_source"] == "network" and found.unverified and done.unverified
        assert found.proof is not None and len(found.proof["logits"]) == 2
    assert found.source_sha256


@pytest.mark.parametrize("precision", few(["bf16", "fp32", "fp16"]))
def test_condensenet_v2(tmp_path: Path, precision: str) -> None:
    done = tensorrt.write(lower(build_random(TINY_V2)), tmp_path / "m.engine", precision=precision, batch=1, **RTX)
    # 5 layers of a 1x1, a 3x3 and an update, two with the 2 matrices of an excitation, the first convolution, 3 matrices, the classifier.
    assert done.details["multiplying_layers"] == {precision: 24} and list(done.details["layers"]) == [precision]


def test_int8_with_a_layer_that_is_kept(converted: DenselyConnected, tmp_path: Path) -> None:
    program = lower(converted)
    images = np.random.default_rng(0).standard_normal((4, *program.architecture.image_shape), np.float32)
    quantization = Quantization(calibrate(program, images), frozenset([program.body[0].name]))
    with pytest.raises(InputRefused, match="--calibrate DATA"):
        tensorrt.write(program, tmp_path / "m.engine", precision="int8", **RTX)
    done = tensorrt.write(program, tmp_path / "m.engine", precision="int8", batch=1, quantization=quantization, **RTX)
    # 11 layers of a 1x1 and a 3x3 in int8; the first layer, the first convolution and the classifier are not.
    assert done.precision == "int8" and done.details["multiplying_layers"] == {"fp32": 4, "int8": 22}
    assert (tmp_path / "m.engine").stat().st_size > 0 and done.details["opset"] == 17


def test_the_flag_for_int8_where_types_are_not_the_graph_s(converted: DenselyConnected, monkeypatch: pytest.MonkeyPatch) -> None:
    """8.6 has a flag; a network in int8 that is not strongly typed needs it."""
    program = lower(converted)
    quantization = Quantization(calibrate(program, np.zeros((2, *program.architecture.image_shape), np.float32)))
    found = tensorrt_flavours.find("tensorrt-rtx")
    build = tensorrt._Build(found, build_quantized(program, quantization), program)
    given: list[str] = []

    class Stop(Exception):
        pass

    def stop(flag: str) -> None:
        given.append(flag)
        raise Stop

    old = tensorrt_flavours.Flavour("tensorrt", found.module, "8.6.1", (8, 6, 1))
    monkeypatch.setattr(build, "_flavour", old)
    monkeypatch.setattr(build, "_trt", SimpleNamespace(BuilderFlag=SimpleNamespace(TF32="TF32", INT8="INT8")))
    monkeypatch.setattr(
        build, "_builder", SimpleNamespace(create_builder_config=lambda: SimpleNamespace(set_flag=stop, clear_flag=lambda _: None))
    )
    with pytest.raises(Stop):
        build.configure("int8", (1, 1, 1), None)
    assert given == ["INT8"]


@pytest.mark.parametrize("name", few(["condensenet-74-g8", "condensenet-74-g4"]))
@pytest.mark.parametrize("precision", few(["fp16", "fp32"]))
@long
def test_condensenet_74_twice_the_same_bytes(name: str, precision: str, tmp_path: Path) -> None:
    """With a fixed batch: with a free one tensorrt-rtx 1.7 itself gives other bytes each time, of nearly the same size."""
    program = lower(build_named(name))  # type: ignore[arg-type]
    for number in range(2):
        tensorrt.write(program, tmp_path / f"{number}.engine", precision=precision, batch=1, **RTX)
    first = (tmp_path / "0.engine").read_bytes()
    assert first == (tmp_path / "1.engine").read_bytes()
    free = tensorrt.write(program, tmp_path / "free.engine", precision=precision, batch=(1, 8, 16), **RTX)
    assert free.details["profiles"] == [{"min": 1, "opt": 8, "max": 16}]
    # 36 layers of a 1x1 and a 3x3, the first convolution, the classifier.
    assert free.details["multiplying_layers"] == {precision: 74}


@long
def test_another_network_of_the_table(tmp_path: Path) -> None:
    done = cd.export("mobilenet-1.0-224", "tensorrt", tmp_path / "m.engine", precision="fp16", batch=1, **RTX)
    assert done.manifest.details["multiplying_layers"] == {"fp16": 28}
    assert done.manifest.details["profiles"] == [{"min": 1, "opt": 1, "max": 1}]
    with pytest.raises(InputRefused, match="expected fp32 or fp16 for a network that is exported through torch"):
        cd.export("mobilenet-1.0-224", "tensorrt", tmp_path / "n.engine", precision="bf16", **RTX)


def test_an_operator_that_tensorrt_does_not_know(converted: DenselyConnected) -> None:
    program = lower(converted)
    model = build_graph(program)
    node = next(node for node in model.graph.node if node.name == "features.denseblock_2.denselayer_1.conv_1.relu")
    node.op_type = "Nonsense"
    with pytest.raises(InputRefused) as refused:
        tensorrt._Build(tensorrt_flavours.find("tensorrt-rtx"), model, program)
    text = str(refused.value)
    assert "'features.denseblock_2.denselayer_1.conv_1.relu' (Nonsense) of layer features.denseblock_2.denselayer_1:" in text
    assert "Plugin not found" in text and "INVALID_NODE" in text


def test_an_engine_that_is_not_what_was_asked_for(converted: DenselyConnected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a graph that somebody forgot to write in fp16: a real fp32 engine, asked for in fp16."""
    monkeypatch.setattr("cnet_deploy.exporters.onnx.graph.build_graph", lambda program, precision: build_graph(program))
    with pytest.raises(CheckFailed, match="the engine is not fp16: of its layers that multiply, 0 are in fp16, 26 in fp32"):
        cd.export(converted, "tensorrt", tmp_path / "m.engine", precision="fp16", **RTX)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": (2, 1, 4)}, "batch 2:1:4; expected least:best:most"),
        ({"batch": (0, 1, 4)}, "expected least:best:most"),
        ({"precision": "int4"}, "has no precision int4; expected one of fp32, tf32, fp16, bf16, int8"),
        ({"workspace": 0}, "workspace 0; expected a number of bytes"),
        ({"flavour": "tensorrt-lite"}, "has no flavour tensorrt-lite; expected one of tensorrt, tensorrt-rtx"),
        ({"timing_cache": Path("t.cache")}, "has no timing cache"),
    ],
)
def test_options_that_can_not_be(converted: DenselyConnected, tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputRefused, match=words):
        cd.export(converted, "tensorrt", tmp_path / "m.engine", **{**RTX, **options})
    assert list(tmp_path.iterdir()) == []


def test_progress_comes_to_its_end(converted: DenselyConnected, tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    cd.export(converted, "tensorrt", tmp_path / "m.engine", progress=lambda text, share: heard.append((text, share)), **RTX)
    assert len(heard) > 10 and heard[-1][1] > 0.8 and all(0 <= share <= 1 for _, share in heard)


def test_a_bf16_graph_is_more_than_an_old_parser_reads() -> None:
    found = tensorrt_flavours.find("tensorrt-rtx")
    old = tensorrt_flavours.Flavour("tensorrt", found.module, "8.6.1", (8, 6, 1))
    with pytest.raises(Unavailable, match=r"tensorrt 8.6.1 reads ONNX opsets up to 17, but bf16 needs 22") as refused:
        old.require_precision("bf16", 22)
    assert refused.value.exit_code == 5
    old.require_precision("fp16", 17)


@long
@pytest.mark.parametrize("sent", few([signal.SIGINT, signal.SIGKILL]))
def test_a_build_killed_half_way_leaves_what_was_there(tmp_path: Path, sent: signal.Signals) -> None:
    for name in ("m.engine", "m.engine.json"):
        old_output(tmp_path / name)
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cnet_deploy.exporters import tensorrt\n"
        "import cnet_deploy.workflows.export as d, time\n"
        "def told(text, share):\n"
        "    print(text, flush=True); time.sleep(0.05)\n"
        "d.export('condensenet-74-g8', 'tensorrt', sys.argv[1], flavour='tensorrt-rtx', progress=told)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "m.engine"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # TensorRT is at work
    time.sleep(0.2)
    os.kill(process.pid, sent)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    if sent is signal.SIGINT:
        assert "KeyboardInterrupt" in said
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.engine", "m.engine.json"]
    assert all(b"old" in (tmp_path / name).read_bytes() for name in ("m.engine", "m.engine.json"))


def test_on_the_command_line(checkpoint_path: Path, tmp_path: Path) -> None:
    command = ["export", str(checkpoint_path), "--tensorrt", "--tensorrt-flavour", "tensorrt-rtx", "--precision", "fp16"]
    done = CliRunner().invoke(main, [*command, "--batch", "1:4:8", "--workspace", "256M", "-o", str(tmp_path / "m.engine")])
    assert done.exit_code == 0, done.output
    assert "built by tensorrt-rtx" in done.output and "fp16 (read from the" in done.output
    found = Manifest.from_json((tmp_path / "m.engine.json").read_text())
    assert found.details["profiles"] == [{"min": 1, "opt": 4, "max": 8}] and found.details["workspace"] == 256 << 20
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.engine")])
    assert "TensorRT engine" in shown.output and "multiplying_layers: fp16 26" in shown.output
    if reason := why_no_device():
        assert f"not verified: {reason}" in done.output and f"reason: {reason}" in shown.output
    for wrong in ("1:2", "4:2:1:3", "a", "0", "-1"):
        assert CliRunner().invoke(main, [*command, "--batch", wrong]).exit_code == 2
    assert CliRunner().invoke(main, [*command, "--opset", "17"]).exit_code == 2


def test_tensorrt_itself_needs_its_device(converted: DenselyConnected, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    try:
        found = tensorrt_flavours.find("tensorrt")
    except Unavailable as error:
        assert "tensorrt can't be loaded" in str(error) and "pip install 'cnet-deploy[gpu]'" in str(error)
    else:
        reason = found.why_not_build()
        assert (reason is None) == (why_no_device() is None)


def test_one_logger_for_the_process_and_one_build_s_errors_alone(converted: DenselyConnected, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT keeps the first logger as everybody's, and still writes to it when what was made with it is freed."""
    found = tensorrt_flavours.find("tensorrt-rtx")
    logger = found.logger()
    assert tensorrt_flavours.find("tensorrt-rtx").logger() is logger
    logger.errors.append("of an earlier build")
    build = tensorrt._Build(found, build_graph(lower(converted)), lower(converted))
    assert build._log is logger and logger.errors == []
    monkeypatch.setattr(build, "_builder", SimpleNamespace(build_serialized_network=lambda *_: logger.errors.append("of this one")))
    monkeypatch.setattr(build, "_config", SimpleNamespace(), raising=False)
    with pytest.raises(Unavailable, match=r"TensorRT built no engine \(tensorrt-rtx [\d.]+\): of this one$"):
        build.run(lambda *_: None)


def test_what_8_6_lacks() -> None:
    """Its contexts share no profile unless that is asked for, and it refuses the timing caches that it wrote."""
    set_to: dict[str, bool] = {}
    config = SimpleNamespace(set_preview_feature=lambda feature, on: set_to.update({feature: on}))
    tensorrt._share_the_profile(SimpleNamespace(PreviewFeature=SimpleNamespace(PROFILE_SHARING_0806="sharing")), config)
    assert set_to == {"sharing": True}
    tensorrt._share_the_profile(tensorrt_flavours.find("tensorrt-rtx").module, config)  # which always shares it
    assert set_to == {"sharing": True}


@pytest.mark.parametrize(("version", "shared"), [("8.6.1", False), ("10.3.0", True)])
def test_a_comparison_s_timing_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, shared: bool) -> None:
    release = tuple(map(int, version.split(".")))
    made = tensorrt_flavours.Flavour("tensorrt", tensorrt_flavours.find("tensorrt-rtx").module, version, release)
    monkeypatch.setattr(tensorrt_flavours, "find", lambda _: made)
    assert tensorrt.comparable({"precision": "fp16"}, tmp_path) == {
        "precision": "fp16", **({"timing_cache": tmp_path / "timing.cache"} if shared else {})
    }  # fmt: skip
    assert tensorrt.comparable({"timing_cache": Path("mine")}, tmp_path) == {"timing_cache": Path("mine")}


def test_no_graph_holds_what_the_runtime_s_parser_never_saw(converted: DenselyConnected) -> None:
    assert {node.op_type for node in build_graph(lower(converted), precision="fp16").graph.node} == {
        "Cast", "Conv", "Gather", "BatchNormalization", "Relu", "Concat", "AveragePool", "GlobalAveragePool", "Flatten", "Gemm",
    }  # fmt: skip
    assert onnx.__version__
