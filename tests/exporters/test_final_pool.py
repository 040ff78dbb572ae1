"""The original's last pooling: torch, Program, ONNX and native libraries compute what a module that pools like the reference computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import cnet_deploy as cd
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.exporters.onnx.graph import OPSETS, build_graph
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.forms import FORMS, rewrite
from cnet_deploy.program.lower import lower
from cnet_deploy.sessions.native import open_file
from tests.builders import TINY, TINY_LGC
from tests.cases import few, long
from tests.exporters.native.helpers import BF16_ERROR, ERROR, images_for, isas, logits_on_neon, network, plan_of

# Last maps: wide 12x12 and narrow 12x12 of windows of 8x8, 8x8 of one of 7x7, 8x12 of 8x8, and 9x11 after a stride of 3.
SMALL = replace(TINY, input_size=(48, 48), final_pool="original")
NARROW = replace(SMALL, growth=(8, 32, 64))
LARGE = Architecture((1,) * 5, (8,) * 5, input_size=(256, 256), classes=10, final_pool="original")
CASES = [SMALL, LARGE, NARROW, replace(TINY_LGC, input_size=(32, 48), final_pool="original"),
         replace(TINY, stem_stride=3, input_size=(108, 130), final_pool="original")]  # fmt: skip
every_case = pytest.mark.parametrize("arch", CASES, ids=lambda arch: arch.summary())


def as_the_reference(model: DenselyConnected, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits as the reference's forward gives them: AvgPool2d with its window, then view (models/condensenet.py)."""
    window = 7 if model.architecture.stem_stride == 2 else 8
    before = [module for name, module in model.features.named_children() if name != "pool_last"]
    body = nn.Sequential(*before, nn.AvgPool2d(window))
    with torch.inference_mode():
        features = body.double()(torch.from_numpy(images).double())
        logits: np.ndarray[Any, Any] = model.classifier.double()(features.view(features.size(0), -1)).numpy()
    model.float()
    return logits


def differ(result: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The largest error, relative to the largest logit."""
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def whole(model: DenselyConnected) -> DenselyConnected:
    """The same weights, the whole map averaged."""
    other = build(replace(model.architecture, final_pool="whole"))
    other.load_state_dict(model.state_dict())
    return other


@every_case
def test_torch_and_program(arch: Architecture) -> None:
    model = network(arch)
    images = images_for(model, 2)
    expected = as_the_reference(model, images)
    with torch.inference_mode():
        assert differ(model(torch.from_numpy(images)).numpy(), expected) <= ERROR
    program = lower(model)
    assert program.pool.window == arch.pool_window and lower(whole(model)).pool.window is None
    for form in FORMS:
        assert differ(rewrite(program, form).run(images.astype(np.float64)), expected) <= ERROR
    assert differ(lower(whole(model)).run(images.astype(np.float64)), expected) > 0.01


@every_case
def test_onnx(arch: Architecture, tmp_path: Path) -> None:
    model = network(arch)
    images = images_for(model, 3)
    expected = as_the_reference(model, images)
    done = cd.export(model, "onnx", tmp_path / "m.onnx")
    for backend in ("onnxruntime", "openvino"):
        with cd.open_session(tmp_path / "m.onnx", backend) as session:
            assert session.architecture == arch == done.manifest.architecture
            assert differ(session.run(images), expected) <= ERROR
    inspection = cd.inspect(tmp_path / "m.onnx")
    assert inspection.architecture == arch and inspection.operators["AveragePool"] == len(arch.stages)
    assert "GlobalAveragePool" not in inspection.operators and ", final pool original (" in inspection.summary()


@pytest.mark.parametrize("opset", few([OPSETS.start, *OPSETS[1:]], 1))
def test_onnx_of_every_opset_and_form(opset: int) -> None:
    program = lower(network(SMALL))
    images = images_for(network(SMALL), 2)
    expected = as_the_reference(network(SMALL), images)
    for form in FORMS:
        data = build_graph(rewrite(program, form), opset=opset).SerializeToString()
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        assert differ(session.run(None, {"input": images})[0], expected) <= ERROR


@long
@pytest.mark.parametrize(("cpu", "precision"), few([("host", "fp32"), (None, "fp32"), ("host", "bf16"), (None, "bf16")]))
def test_native(cpu: str | None, precision: str, tmp_path: Path) -> None:
    for arch in CASES:
        model = network(arch)
        images = images_for(model, 3)  # on two threads, two by images and one by layers
        expected = as_the_reference(model, images)
        done = cd.export(model, "native", tmp_path / "m.so", cpu=cpu, precision=precision, tolerance=1)
        for isa in (name for name in isas(precision) if name in done.manifest.details["isas"]):
            for threads in (1, 2):
                with open_file(read_pair(tmp_path / "m.so"), device="cpu", threads=threads, isa=isa) as session:
                    assert session.architecture == arch
                    assert differ(session.run(images), expected) <= (ERROR if precision == "fp32" else BF16_ERROR)
    assert set(plan_of(network(NARROW), ("baseline",)).layouts) == {"wide", "narrow"}  # both kinds of last maps were there
    assert plan_of(network(SMALL), ("baseline",)).layouts[-1] == "wide" != plan_of(network(NARROW), ("baseline",)).layouts[-1]


@long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_neon(precision: str, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    model = network(NARROW)
    images = images_for(model, 2)
    logits = logits_on_neon(system_tool, model, images, tmp_path, precision)
    assert differ(logits, as_the_reference(model, images)) <= (ERROR if precision == "fp32" else BF16_ERROR)


def test_networks_that_average_the_whole_map_have_the_plan_that_they_had() -> None:
    """Kernels for them are compiled without any knowledge of windows."""
    plan = plan_of(network(replace(SMALL, final_pool="whole")), ("baseline",))
    assert plan.defines == () and ".window" not in plan.source
    windowed = plan_of(network(SMALL), ("baseline",))
    assert windowed.defines == ("-DCNET_WINDOWED=1",) and ".window = 8" in windowed.source
