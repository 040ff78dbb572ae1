"""trial.py: strangers' graphs that never end or crash are ended in a process of their own; ours open as quickly as ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import cnet_deploy as cd
from cnet_deploy import subprocesses
from cnet_deploy.benchmarks.measure.cells import Cell, worker
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.onnx.graph import build_graph
from cnet_deploy.models.build import build_random
from cnet_deploy.program.lower import lower
from cnet_deploy.sessions import trial
from tests.builders import TINY
from tests.cases import few, long


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_PASSED", set())


def model(
    path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any] | None = None, functions: tuple[onnx.FunctionProto, ...] = ()
) -> Path:
    """A file of these nodes, from images x to logits y."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 48])],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid("own", 1)] if functions else [])]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def loop(path: Path, turns: int = 2**62) -> Path:
    """A Loop of so many turns over the image."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Relu", ["before"], ["after"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("before", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_tensor_value_info("after", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Loop", ["turns", "true", "flat"], ["y"], body=body)]
    return model(path, nodes, {"turns": np.array(turns, np.int64), "true": np.array(True)})


def functions(path: Path, depth: int = 26) -> Path:
    """Functions that each call the next twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = []
    for level in range(depth):
        operator = f"f{level + 1}" if level + 1 < depth else "Relu"
        domain = "own" if level + 1 < depth else ""
        nodes = [helper.make_node(operator, ["a"], ["b"], domain=domain), helper.make_node(operator, ["b"], ["c"], domain=domain)]
        made.append(helper.make_function("own", f"f{level}", ["a"], ["c"], nodes, opsets))
    nodes = [helper.make_node("f0", ["x"], ["z"], domain="own"), helper.make_node("Flatten", ["z"], ["y"])]
    return model(path, nodes, functions=tuple(made))


ENDLESS = [loop, functions]


@pytest.mark.parametrize("make", few(ENDLESS))
def test_a_graph_that_never_ends_is_refused(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "m.onnx")
    what = r"it has Loop \(1\)" if make is loop else r"it has functions of its own \(26\), operators of own"
    with pytest.raises(InputRefused, match=rf"m.onnx: onnxruntime did not open it and run it once within 3 s; {what}; if you trust"):
        cd.open_session(path, timeout=3)


@long
def test_a_limit_for_what_takes_no_argument(tmp_path: Path) -> None:
    with trial.time_limit(3), pytest.raises(InputRefused, match="within 3 s"):
        list(cd.classify(loop(tmp_path / "m.onnx"), tmp_path))


def test_a_graph_that_ends_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = loop(tmp_path / "m.onnx", turns=3)
    started = []
    start = subprocesses.run
    monkeypatch.setattr(subprocesses, "run", lambda *words, **how: (started.append(words), start(*words, **how))[1])
    for _ in range(2):
        with cd.open_session(path) as session:
            assert session.run(np.ones((1, 3, 4, 4), np.float32)).shape == (1, 48)
        trial._PASSED.clear()  # another process
    assert len(started) == 1
    with cd.open_session(loop(tmp_path / "other.onnx", turns=4), timeout=None):
        pass
    assert len(started) == 1


def test_our_own_artifacts_and_plain_graphs_are_not_tried(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_passes", lambda *_: pytest.fail("it was tried"))
    for backend in ("onnxruntime", "openvino"):
        with cd.open_session(onnx_path, backend):
            pass


def test_a_graph_that_crashes_its_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash.py"
    crash.write_text(f"import os\nos.kill(os.getpid(), {int(signal.SIGSEGV)})\n")
    python = subprocesses.python
    monkeypatch.setattr(subprocesses, "python", lambda *_: python(str(crash)))
    with pytest.raises(InputRefused, match=r"it crashed openvino \(signal 11\), in a process of its own; it has Loop \(1\); export"):
        cd.open_session(loop(tmp_path / "m.onnx", turns=3), "openvino")


def test_what_is_wrong_otherwise_is_said_as_ever(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", [helper.make_node("NoSuchOperator", ["x"], ["y"])])
    with pytest.raises(InputRefused, match="onnxruntime can't load it"):
        cd.open_session(path)


@long
def test_a_measuring_process_is_not_given_what_never_ends(tmp_path: Path) -> None:
    path = loop(tmp_path / "m.onnx")
    began = time.monotonic()
    with trial.time_limit(3), worker(Cell("m", os.fspath(path), "onnxruntime", 1)) as held:
        found = held.open()
    assert found["exit_code"] == 4 and "did not open it and run it once within 3 s" in found["error"]
    assert time.monotonic() - began < 300


def changed(change: Callable[[onnx.ModelProto], None]) -> bytes:
    made = build_graph(lower(build_random(TINY)))
    change(made)
    return made.SerializeToString()


def side(number: int, value: int) -> Callable[[onnx.ModelProto], None]:
    def change(made: onnx.ModelProto) -> None:
        made.graph.input[0].type.tensor_type.shape.dim[number].dim_value = value

    return change


DAMAGED = {
    "other channels": lambda: changed(side(1, 4)),
    "no image": lambda: changed(side(0, 0)),
    "too many images": lambda: changed(side(0, 2**40)),
    "no pixels": lambda: changed(side(2, 0)),
    "no type": lambda: changed(lambda made: made.graph.input[0].ClearField("type")),
    "a key that is no text": lambda: changed(lambda _: None).replace(b"cnet_deploy.tool", b"cnet_\xff\xff\xff\xff\xff\xff.tool"),
    "a producer that is no text": lambda: changed(lambda _: None).replace(b"cnet-deploy", b"cnet\xff\xff\xff\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_damaged_networks_are_refused(backend: str, tmp_path: Path) -> None:
    for name, make in DAMAGED.items():
        (tmp_path / "m.onnx").write_bytes(make())
        try:
            with cd.open_session(tmp_path / "m.onnx", backend, timeout=None) as session:
                session.run(np.zeros((1, *session.input_shape[1:]), np.float32))
            assert name == "a producer that is no text" or backend == "openvino", name
        except InputRefused as error:
            assert "m.onnx" in str(error)


def test_damaged_text_is_refused_by_inspect(tmp_path: Path) -> None:
    for name in ("a key that is no text", "a producer that is no text"):
        (tmp_path / "m.onnx").write_bytes(DAMAGED[name]())
        with pytest.raises(InputRefused, match=r"m.onnx: is no readable ONNX model \(its text is damaged\); export it again"):
            cd.inspect(tmp_path / "m.onnx")


def test_inspect_names_what_a_file_runs_and_does_not_run_it(tmp_path: Path) -> None:
    for make, remark in ((loop, "Loop (1)"), (functions, "functions of its own (26), operators of own")):
        found = cd.inspect(make(tmp_path / "m.onnx"))
        assert found.details["runs"] == remark and f"runs: {remark}" in found.summary()


def test_compiled_code_in_a_graph_is_refused(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("EPContext", ["x"], ["z"], domain="com.microsoft")], "inner", [], [])
    for nodes in (
        [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")],
        [helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)],
    ):
        path = model(tmp_path / "m.onnx", nodes)
        for backend in ("onnxruntime", "openvino"):
            with pytest.raises(InputRefused, match=r"m.onnx: has a node EPContext, which holds code that was compiled for some device"):
                cd.open_session(path, backend, timeout=None)
        with pytest.raises(InputRefused, match="EPContext"):
            cd.inspect(path)


def test_onnxruntimes_own_format_is_not_run_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x1c\0\0\0ORTM" + bytes(100))
    with pytest.raises(InputRefused, match=r"m.onnx: is an ORT file \(.ort\); expected .*an ONNX file"):
        cd.open_session(tmp_path / "m.onnx")


def doublings(path: Path, count: int) -> Path:
    """The image, joined to itself again and again, and summed."""
    nodes = [helper.make_node("Flatten", ["x"], ["d0"])]
    nodes += [helper.make_node("Concat", [f"d{k}", f"d{k}"], [f"d{k + 1}"], axis=0) for k in range(count)]
    nodes += [helper.make_node("ReduceSum", [f"d{count}", "axis"], ["y"], keepdims=1)]
    return model(path, nodes, {"axis": np.array([0])})


@pytest.mark.parametrize("backend", few(["onnxruntime", "openvino"]))
def test_a_graph_that_fills_the_memory_is_refused(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """192 bytes, doubled until they are 48 GiB; a few times are no harm."""
    monkeypatch.setattr(trial, "MOST_MEMORY", 1 << 30)
    if backend == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(InputRefused, match=r"needs more than 1 GiB of memory for an image|did not open it"):
        cd.open_session(doublings(tmp_path / "m.onnx", 28), backend=backend)
    with cd.open_session(doublings(tmp_path / "few.onnx", 3), backend=backend) as session:
        assert session.run(np.ones((1, 3, 4, 4), np.float32)).tolist() == [[8.0] * 48]
