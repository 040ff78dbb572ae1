"""onnx_outline.py: what is plain, and that nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cnet_deploy.exporters.onnx.graph import build_graph
from cnet_deploy.files.onnx_outline import NotPlain, outline, require_plain
from cnet_deploy.models.build import build_random
from cnet_deploy.program.forms import dense_pointwise, rewrite
from cnet_deploy.program.lower import lower
from tests.builders import TINY, TINY_V2
from tests.cases import examples, few
from tests.sessions.test_trial import functions, loop


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return build_graph(lower(build_random(TINY)))


@pytest.mark.parametrize("precision", few(["fp32", "fp16", "bf16"]))
@pytest.mark.parametrize("form", few([lambda program: program, dense_pointwise, lambda program: rewrite(program, "absorbed")]))
@pytest.mark.parametrize("arch", [TINY, TINY_V2], ids=lambda arch: arch.kind)
def test_whatever_export_writes_is_plain(arch, form, precision: str) -> None:  # type: ignore[no-untyped-def]
    made = build_graph(form(lower(build_random(arch))), precision=precision)
    require_plain(made.SerializeToString())
    found = outline(made.SerializeToString())
    assert found.remarks() == [] and sum(found.operators.values()) == len(made.graph.node)


def altered(graph: onnx.ModelProto, operator: str, **attributes: object) -> bytes:
    copy = onnx.ModelProto.FromString(graph.SerializeToString())
    node = next(node for node in copy.graph.node if node.op_type == operator)
    for name, value in attributes.items():
        kept = [one for one in node.attribute if one.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return copy.SerializeToString()


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("Conv", {"group": 3}), ("Conv", {"group": 0}), ("Conv", {"pads": [2**40] * 4}), ("Conv", {"pads": [1, 1]}),
     ("Conv", {"strides": [0, 1]}), ("Conv", {"dilations": [2, 2]}), ("Conv", {"kernel_shape": [1, 9]}), ("Conv", {"auto_pad": "VALID"}),
     ("Concat", {"axis": 0}), ("Gather", {"axis": 0}), ("AveragePool", {"kernel_shape": [-1, 2]}), ("AveragePool", {"kernel_shape": [2]}),
     ("Flatten", {"axis": 0}), ("Gemm", {"transA": 1}), ("Gemm", {"transB": 0}), ("BatchNormalization", {"training_mode": 1})],
    ids=str,
)  # fmt: skip
def test_attributes_that_do_not_fit(graph: onnx.ModelProto, operator: str, attributes: dict[str, object]) -> None:
    with pytest.raises(NotPlain):
        require_plain(altered(graph, operator, **attributes))


@pytest.mark.parametrize("second", [(1, 3, 8, 8), (1, 3, 1, 1), (1, 1, 8, 8), (1, 3, 8, 1), (4, 3, 8, 8)], ids=str)
def test_what_products_are_plain(second: tuple[int, ...]) -> None:
    """Of images with their channels, as excitation has; no others, whose result could be larger than either."""
    inputs = [helper.make_tensor_value_info(*given) for given in (("a", TensorProto.FLOAT, [1, 3, 8, 8]), ("b", TensorProto.FLOAT, second))]
    made = helper.make_graph(
        [helper.make_node("Mul", ["a", "b"], ["c"])], "g", inputs, [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)]
    )  # fmt: skip
    data = helper.make_model(made).SerializeToString()
    if second in ((1, 3, 8, 8), (1, 3, 1, 1)):
        require_plain(data)
    else:
        with pytest.raises(NotPlain, match="a product is not of two tensors of one shape"):
            require_plain(data)


def doubling(turns: int) -> bytes:
    """A tensor that is joined to itself again and again: 2^turns of its size."""
    nodes = [helper.make_node("Concat", [name, name], [f"t{k + 1}"], axis=1) for k in range(turns) for name in [f"t{k}"]]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("t0", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info(f"t{turns}", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return helper.make_model(made).SerializeToString()


def test_sizes_and_work_are_bounded(graph: onnx.ModelProto) -> None:
    require_plain(doubling(8))
    for turns in (17, 30, 70):
        with pytest.raises(NotPlain):
            require_plain(doubling(turns))
    copy = onnx.ModelProto.FromString(graph.SerializeToString())
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 10**6
    with pytest.raises(NotPlain, match="very much memory or time"):
        require_plain(copy.SerializeToString())


def test_what_runs_other_code_is_not_plain_and_is_named(tmp_path: Path) -> None:
    for path, remark in ((loop(tmp_path / "a.onnx"), "Loop (1)"), (functions(tmp_path / "b.onnx"), "functions of its own (26)")):
        with pytest.raises(NotPlain):
            require_plain(path.read_bytes())
        assert outline(path.read_bytes()).remarks()[0] == remark
    node = helper.make_node("Thing", ["x"], ["y"], domain="com.example")
    found = outline(helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString())
    assert found.remarks() == ["operators of com.example"] and found.operators == {"com.example::Thing": 1}


def test_a_second_graph_an_external_weight_and_a_sparse_one_are_not_plain(graph: onnx.ModelProto) -> None:
    data = graph.SerializeToString()
    with pytest.raises(NotPlain):
        require_plain(data + data)  # protobuf merges both
    copy = onnx.ModelProto.FromString(data)
    copy.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(NotPlain):
        require_plain(copy.SerializeToString())
    copy = onnx.ModelProto.FromString(data)
    copy.graph.sparse_initializer.add().values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    with pytest.raises(NotPlain):
        require_plain(copy.SerializeToString())


@given(data=st.data())
@examples(300)
def test_damage_is_no_crash_and_what_stays_plain_is_an_onnx_file_to_others(graph: onnx.ModelProto, data: st.DataObject) -> None:
    whole = bytearray(graph.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole), 6000) - 1))] = data.draw(st.integers(0, 255))
    try:
        outline(bytes(whole))
        require_plain(bytes(whole))
    except NotPlain:
        return
    parsed = onnx.ModelProto.FromString(bytes(whole))  # else it raises
    assert not parsed.functions and {node.op_type for node in parsed.graph.node} <= {node.op_type for node in graph.graph.node} | {
        "Identity"
    }


def quantized(axis: int = 1, scale: tuple[int, ...] = (), **attributes: int) -> bytes:
    """An image that is quantised and back."""
    tensors = [numpy_helper.from_array(np.ones(scale, np.float32), "scale"), numpy_helper.from_array(np.zeros(scale, np.int8), "zero")]
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["whole"], axis=axis, **attributes),
        helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["logits"], axis=axis),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("input", "logits")]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)).SerializeToString()


def test_what_is_quantised_is_plain() -> None:
    require_plain(quantized())
    require_plain(quantized(scale=(3,)))
    for wrong in (quantized(scale=(4,)), quantized(axis=7), quantized(block_size=2), quantized(axis=-1, scale=(3,))):
        with pytest.raises(NotPlain):
            require_plain(wrong)
