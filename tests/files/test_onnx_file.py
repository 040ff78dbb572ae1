"""A tensor that an ONNX file keeps elsewhere is found wherever it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.onnx_file import require_one_file


def elsewhere(location: str = "/etc/passwd") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def model(nodes: list[onnx.NodeProto], weights: list[TensorProto], **fields: list[onnx.FunctionProto]) -> bytes:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    return helper.make_model(helper.make_graph(nodes, "g", [], [out], weights), **fields).SerializeToString()


CONSTANT = helper.make_node("Constant", [], ["y"], value=elsewhere())
BRANCH = helper.make_graph([CONSTANT], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])])
SPARSE = helper.make_node(
    "Constant", [], ["y"], sparse_value=helper.make_sparse_tensor(elsewhere(), numpy_helper.from_array(np.array([0], np.int64), "i"), [4])
)
FUNCTION = helper.make_function("d", "F", [], ["y"], [CONSTANT], [helper.make_opsetid("", 17)])
PLACES = {
    "initializer": model([], [elsewhere()]),
    "into memory": model([], [elsewhere("*/_ORT_MEM_ADDR_/*")]),
    "constant": model([CONSTANT], []),
    "branch": model([helper.make_node("If", ["c"], ["y"], then_branch=BRANCH, else_branch=BRANCH)], []),
    "sparse": model([SPARSE], []),
    "function": model([], [], functions=[FUNCTION]),
}


@pytest.mark.parametrize("place", PLACES)
def test_tensors_elsewhere_are_refused(place: str) -> None:
    with pytest.raises(InputRefused, match="keeps weights in other files; expected one file"):
        require_one_file(PLACES[place])


def test_whole_files_are_not(onnx_path: Path) -> None:
    require_one_file(onnx_path.read_bytes())
    require_one_file(model([], [numpy_helper.from_array(np.zeros(4, np.float32), "location")]))
    with pytest.raises(InputRefused, match="is no readable ONNX model"):
        require_one_file(b"\xfflocation")
