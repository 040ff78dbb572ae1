"""ONNX files of a few kilobytes that ask for gigabytes: a fixed batch of millions, constants of any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.onnx_bounds import require_bounded
from cnet_deploy.sessions import open_session
from tests.cases import few

SIZE = 3 << 28  # floats: 3 GB


def model(nodes: list[NodeProto], batch: int | str = 1, classes: int = 10, **constants: Any) -> bytes:
    """A classifier that adds the tensor "big" of ``nodes`` to its logits."""
    values = {"w": np.ones((192, classes), np.float32), **constants}
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["m"]), *nodes]
    nodes += [helper.make_node("ReduceSum", ["big"], ["s"], keepdims=0), helper.make_node("Add", ["m", "s"], ["y"])]
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "g", [images], [logits], weights)
    made: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def one(operator: str, *inputs: str, **attributes: Any) -> list[NodeProto]:
    return [helper.make_node(operator, inputs, ["big"], **attributes)]


def shape(*sides: int) -> Any:
    return np.array(sides, np.int64)


def inside() -> bytes:
    """In the branch of an If."""
    inner = helper.make_graph(one("ConstantOfShape", "n"), "b", [], [helper.make_tensor_value_info("big", TensorProto.FLOAT, ["k"])])
    node = helper.make_node("If", ["c"], ["big"], then_branch=inner, else_branch=inner)
    return model([node], c=np.array(True), n=shape(SIZE))


LARGE: dict[str, Callable[[], bytes]] = {
    "ConstantOfShape": lambda: model(one("ConstantOfShape", "n"), n=shape(SIZE)),
    "ConstantOfShape of sides": lambda: model(one("ConstantOfShape", "n"), n=shape(1 << 10, 3 << 9, 1 << 9)),
    "ConstantOfShape of a Constant": lambda: model(
        [helper.make_node("Constant", [], ["n"], value_ints=[SIZE]), *one("ConstantOfShape", "n")]),
    "Expand": lambda: model(one("Expand", "v", "n"), v=np.ones(1, np.float32), n=shape(SIZE)),
    "Tile": lambda: model(one("Tile", "v", "n"), v=np.ones(1, np.float32), n=shape(SIZE)),
    "Pad": lambda: model(one("Pad", "v", "n"), v=np.ones(1, np.float32), n=shape(0, SIZE)),
    "Range": lambda: model(one("Range", "a", "b", "c"), a=np.float32(0), b=np.float32(SIZE), c=np.float32(1)),
    "RandomNormal": lambda: model(one("RandomNormal", shape=[SIZE])),
    "Resize": lambda: model(one("Resize", "v", "", "", "n"), v=np.ones((1, 1, 2, 2), np.float32), n=shape(1, 1, 1 << 15, 3 << 13)),
    "If": inside,
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_constants_of_gigabytes_are_refused(name: str) -> None:
    with pytest.raises(
        InputRefused, match=f"has a node {name.split(maxsplit=1)[0] if name != 'If' else 'ConstantOfShape'} that makes a tensor of"
    ):
        require_bounded(LARGE[name]())


@pytest.mark.parametrize("backend", few(["onnxruntime", "openvino"]))
@pytest.mark.parametrize(("batch", "classes", "words"), [
    (10**7, 10, "it would read 1,920,000,000 numbers at once"),
    (1 << 40, 10, "it would read 211,106,232,532,992 numbers at once|can't load it"),
    (1 << 20, 1024, "it would give 1,073,741,824 numbers at once"),
])  # fmt: skip
def test_a_fixed_batch_of_millions_is_refused(tmp_path: Path, backend: str, batch: int, classes: int, words: str) -> None:
    pytest.importorskip(backend)
    (tmp_path / "m.onnx").write_bytes(model(one("Identity", "v"), batch, classes, v=np.ones(1, np.float32)))
    with pytest.raises(InputRefused, match=words):
        open_session(tmp_path / "m.onnx", backend)


def test_what_is_small_is_run(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model(one("ConstantOfShape", "n"), "N", n=shape(1000)))
    with open_session(tmp_path / "m.onnx", "onnxruntime") as session:
        assert session.run(np.ones((2, 3, 8, 8), np.float32)).tolist() == [[192.0] * 10] * 2


def test_a_session_refuses_before_anything_is_allocated(tmp_path: Path) -> None:
    for backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
        (tmp_path / "m.onnx").write_bytes(LARGE["ConstantOfShape"]())
        with pytest.raises(InputRefused, match=r"m.onnx: has a node ConstantOfShape that makes a tensor of 805,306,368 numbers"):
            open_session(tmp_path / "m.onnx", backend)
