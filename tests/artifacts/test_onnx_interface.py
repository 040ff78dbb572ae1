"""ONNX files of others: what fixes, splits or mends them, the same for every runtime of ONNX files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.tools.update_model_dims
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.benchmarks.sweep.results import read_report
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build_random
from cnet_deploy.sessions import backends
from tests.builders import TINY

RUNTIMES = [name for name, backend in backends().items() if "onnx" in backend.opens]
Sides = Sequence[int | str | None]
SIZE = (8, 8)


def classifier(
    path: Path, image: Sides = ("n", 3, 8, 8), logits: Sides | None = ("n", 10), *, reshape: Sequence[int] = (), channels: int = 3,
    bias: bool = False, outputs: Sequence[onnx.ValueInfoProto] = (),
) -> Path:  # fmt: skip
    """A network of another tool: a convolution, the mean of each map, a matrix product."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((4, channels, 3, 3)).astype(np.float32),
        "v": random.standard_normal((4, 10)).astype(np.float32),
        **({"s": np.array(reshape, np.int64)} if reshape else {}),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["maps"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "s"], ["f"]) if reshape else helper.make_node("Flatten", ["pooled"], ["f"]),
        helper.make_node("Gemm", ["f", "v", *(["bias"] if bias else [])], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", image), ("bias", [10]))[: 1 + bias]],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, logits), *outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def images(count: int, channels: int = 3) -> Any:
    return np.random.default_rng(1).standard_normal((count, channels, *SIZE), np.float32)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, list(map(str, arguments)))


def identity(path: Path, dtype: int, image: Sides, logits: Sides, node: str = "Identity") -> Path:
    graph = helper.make_graph(
        [helper.make_node(node, ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", dtype, image)],
        [helper.make_tensor_value_info("y", dtype, logits)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


# ---- one reader ------------------------------------------------------------------------------------------------------


def described(session: Any) -> tuple[Any, ...]:
    return session.preprocessing, session.class_names, session.input_shape, session.classes, session.architecture


@pytest.mark.parametrize("manifest", [True, False])
def test_every_runtime_tells_the_same_of_our_files(tmp_path: Path, manifest: bool) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(f"name {number}" for number in range(10)))
    path = cd.export(build_random(TINY), "onnx", tmp_path / "m.onnx", labels=tmp_path / "labels.txt").path
    if not manifest:
        manifest_path(path).unlink()
    told = []
    for runtime in RUNTIMES:
        with cd.open_session(path, runtime) as session:
            told.append(described(session))
    assert len(told) > 1 and all(one == told[0] for one in told)
    assert told[0][0] is not None and len(told[0][1]) == 10 and told[0][4] is not None


@pytest.mark.parametrize(
    ("image", "options"),
    [(("n", 3, 8, 8), {}), ((2, 3, 8, 8), {}), (("n", 3, "h", "w"), {"input_size": SIZE}), ((1, 3, None, 8), {"input_size": SIZE})],
)  # fmt: skip
def test_every_runtime_tells_the_same_of_others_files(tmp_path: Path, image: Sides, options: dict[str, Any]) -> None:
    path = classifier(tmp_path / "m.onnx", image, (image[0], 10))
    told, answers = [], []
    for runtime in RUNTIMES:
        with cd.open_session(path, runtime, **options) as session:
            told.append(described(session))
            answers.append(session.run(images(2)))
    batch = image[0] if isinstance(image[0], int) else None
    assert told == [(None, (), (batch, 3, *SIZE), 10, None)] * len(RUNTIMES)
    assert all(np.abs(answer - answers[0]).max() < 1e-5 for answer in answers)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(tmp_path: Path, runtime: str, channels: int) -> None:
    path = classifier(tmp_path / "m.onnx", ("n", channels, 8, 8), channels=channels)
    with cd.open_session(path, runtime) as session:
        assert session.input_shape == (None, channels, *SIZE)
        assert session.run(images(3, channels)).shape == (3, 10)
        with pytest.raises(InputRefused, match=rf"expected float32 \[N, {channels}, 8, 8\]"):
            session.run(images(3))


# ---- a size that is free ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_free_size_is_fixed_by_an_option(tmp_path: Path, runtime: str) -> None:
    path = classifier(tmp_path / "m.onnx", ("n", 3, "h", "w"))
    with pytest.raises(InputRefused, match="reads images of any size; expected one size: give it with --input-size 224"):
        cd.open_session(path, runtime)
    with cd.open_session(path, runtime, input_size=SIZE) as session:
        assert session.input_shape == (None, 3, *SIZE)
    classifier(path, ("n", 3, 8, "w"))
    with pytest.raises(InputRefused, match="reads images of 8xany pixels, fixed in its graph; expected no other input size"):
        cd.open_session(path, runtime, input_size=(16, 8))


def test_the_size_on_the_command_line(tmp_path: Path, first_images: Any) -> None:
    free, fixed = classifier(tmp_path / "free.onnx", ("n", 3, "h", "w")), classifier(tmp_path / "fixed.onnx", ("n", 3, 32, 32))
    data = first_images(20)
    size, steps = ("--input-size", 32), ("--statistics", "cifar10")
    for command in (("run", free, data, *steps), ("evaluate", free, "--data", data, *steps), ("verify", free, fixed)):
        refused = run(*command)
        assert refused.exit_code == 4 and "give it with --input-size" in refused.stderr, refused.output
    assert run("verify", free, fixed, *size).exit_code == 0
    assert run("run", free, data, *steps, *size).exit_code == 0
    quick = ("--rounds", 1, "--seconds", 0, "--warmup", 0, "--threads", 1)
    results = tmp_path / "results.json"
    assert run("bench", free, *quick, *size, "--json", results).exit_code == 0
    (row,) = read_report(results).rows
    assert row.results[0].samples and row.results[0].cell.options == {"input_size": [32, 32]}


def test_files_of_two_sizes_are_not_compared(tmp_path: Path) -> None:
    small, large = (classifier(tmp_path / f"{side}.onnx", ("n", 3, side, side)) for side in (8, 16))
    with pytest.raises(InputRefused, match="reads images of 8x8 RGB and the model of 16x16 RGB; expected the same input size"):
        cd.verify(small, large)


def test_a_size_that_bench_can_not_use() -> None:
    done = run("bench", "condensenet-74-g4", "--backend", "native", "--input-size", 64)
    assert done.exit_code == 4 and "is the name of a network" in done.stderr


def test_a_checkpoint_is_exported_for_bench_at_the_size(checkpoint_path: Path) -> None:
    done = run("bench", checkpoint_path, "--backend", "onnxruntime", "--input-size", 64, "--rounds", 1, "--seconds", 0, "--warmup", 0)
    assert done.exit_code == 0 and " 46.0 " in done.stdout, done.stderr  # M FLOPs of the group-conv form, four times those of 32 pixels


# ---- a batch that is free in name only -------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("reshape", [(1, -1), (1, 4)], ids=str)
def test_a_batch_free_in_name_only(tmp_path: Path, runtime: str, reshape: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    path = classifier(tmp_path / "m.onnx", reshape=reshape)
    honest = classifier(tmp_path / "honest.onnx")
    batch = images(3)
    with cd.open_session(path, runtime) as session, cd.open_session(honest, runtime) as other:
        assert np.abs(session.run(batch) - other.run(batch)).max() < 1e-5
        assert session.run(batch).shape == (3, 10)
        with pytest.raises(InputRefused, match="batch has 3 images"):
            session.bind(batch)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]  # once, and from then on as for a fixed batch
    assert "m.onnx: its graph fails on 3 images at once, although its batch is free (" in record.getMessage()
    assert "one image is run at a time" in record.getMessage()


def test_a_batch_free_in_name_only_in_every_command(tmp_path: Path, first_images: Any) -> None:
    path, honest = (
        classifier(tmp_path / f"{name}.onnx", ("n", 3, 32, 32), reshape=reshape) for name, reshape in (("bad", (1, -1)), ("good", ()))
    )
    data = first_images(20)
    steps = ("--statistics", "cifar10")
    for command in (("run", path, data, *steps), ("verify", path, honest), ("verify", honest, path)):
        done = run(*command)
        assert done.exit_code == 0 and "one image is run at a time" in done.stderr, done.output
    with cd.open_session(path) as session:
        binding = session.bind(np.zeros((2, 3, 32, 32), np.float32))
        with pytest.raises(InputRefused, match="run one image at a time, or export it with a batch that is free in every node"):
            binding.enqueue()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_graph_that_fails_on_one_image_too(tmp_path: Path, runtime: str) -> None:
    path = classifier(tmp_path / "m.onnx", reshape=(1, 5))
    with pytest.raises(InputRefused, match="can't (load|run) it"), cd.open_session(path, runtime) as session:
        session.run(images(2))


# ---- what is refused, and mended as the message says -----------------------------------------------------------------

VALUE = helper.make_tensor_value_info
FLOAT, HALF, BYTES = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("dtype", "image", "logits", "message"),
    [
        (HALF, ["n", 3, 8, 8], ["n", 3, 8, 8], r"reads float16 \[any, 3, 8, 8\]; expected float32 .*keep_io_types=True"),
        (BYTES, ["n", 3, 8, 8], ["n", 3, 8, 8], r"reads uint8 .*onnx.utils.extract_model"),
        (TensorProto.DOUBLE, [1, 3, 8, 8], [1, 3, 8, 8], r"reads float64 \[1, 3, 8, 8\]"),
        (FLOAT, ["n", 224, 224, 3], ["n", 224, 224, 3], r"channels first: convert it with tf2onnx and --inputs-as-nchw x, or .*compose"),
        (FLOAT, ["n", 7, 8, 8], ["n", 7, 8, 8], "with 1, 3 or 4 channels: give a network of images"),
        (FLOAT, ["n", "c", 8, 8], ["n", "c", 8, 8], "channels: write its shapes into it: onnx.save"),
        (FLOAT, [1, 3, 8], [1, 3, 8], r"reads float32 \[1, 3, 8\]; expected float32 \[N, channels, height, width\]: export it again"),
        (FLOAT, ["n", 3, 8, 8], ["n", 3, 8, 8], r"gives float32 \[any, 3, 8, 8\].*torch.nn.Flatten"),
    ],
)
def test_refusals(tmp_path: Path, runtime: str, dtype: int, image: Sides, logits: Sides, message: str) -> None:
    path = identity(tmp_path / "m.onnx", dtype, image, logits)
    with pytest.raises(InputRefused, match=f"m.onnx: .*{message}"):
        cd.open_session(path, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_two_outputs_and_the_command_that_cuts_them(tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    classifier(Path("model.onnx"), outputs=[VALUE("maps", FLOAT, ["n", 4, 8, 8])])
    with pytest.raises(InputRefused, match=r"has 1 input and 2 outputs \(y, maps\)") as caught:
        cd.open_session("model.onnx", runtime)
    command = str(caught.value).rpartition("with ")[2]
    assert command == "onnx.utils.extract_model('model.onnx', 'classifier.onnx', ['x'], ['y'])"
    eval(command)
    with cd.open_session("classifier.onnx", runtime) as session:
        assert session.run(images(2)).shape == (2, 10)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_two_inputs(tmp_path: Path, runtime: str) -> None:
    path = classifier(tmp_path / "m.onnx", bias=True)
    with pytest.raises(InputRefused, match=r"has 2 inputs \(x, bias\) and 1 output; expected an image in and logits out"):
        cd.open_session(path, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_classes_that_are_not_known_and_the_line_that_writes_them(tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {"nought": np.float32(0), "many": np.float32(192), "one": np.array([1], np.int64), "rest": np.array([-1], np.int64)}
    nodes = [  # the number of classes follows from the pixels, so that nobody knows it beforehand
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "nought"], ["zero"]),
        helper.make_node("Add", ["zero", "many"], ["count"]),
        helper.make_node("Cast", ["count"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "one"], ["classes"]),
        helper.make_node("Concat", ["rest", "classes"], ["s"], axis=0),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [VALUE("x", FLOAT, ["n", 3, 8, 8])], [VALUE("y", FLOAT, ["n", "k"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model.onnx")
    with pytest.raises(InputRefused, match=r"gives float32 \[any, any\]; expected float32 logits \[N, classes\]: write its") as caught:
        cd.open_session("model.onnx", runtime)
    exec(str(caught.value).rpartition("into it: ")[2].replace("CLASSES", "192"))
    with cd.open_session("fixed.onnx", runtime) as session:
        assert session.run(images(2)).shape == (2, 192)


def test_a_transpose_in_front_mends_channels_last(tmp_path: Path) -> None:
    classifier(tmp_path / "good.onnx")
    good = onnx.load(tmp_path / "good.onnx")
    turn = helper.make_graph(
        [helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2])], "t", [VALUE("image", FLOAT, ["n", 8, 8, 3])],
        [VALUE("turned", FLOAT, ["n", 3, 8, 8])],
    )  # fmt: skip
    last = onnx.compose.merge_models(helper.make_model(turn, opset_imports=good.opset_import, ir_version=8), good, [("turned", "x")])
    onnx.save(last, tmp_path / "last.onnx")
    with pytest.raises(InputRefused, match="channels first"):
        cd.open_session(tmp_path / "last.onnx")
    back = helper.make_graph(
        [helper.make_node("Transpose", ["first"], ["back"], perm=[0, 2, 3, 1])], "b", [VALUE("first", FLOAT, ["n", 3, 8, 8])],
        [VALUE("back", FLOAT, ["n", 8, 8, 3])],
    )  # fmt: skip
    mended = onnx.compose.merge_models(helper.make_model(back, opset_imports=good.opset_import, ir_version=8), last, [("back", "image")])
    onnx.save(mended, tmp_path / "mended.onnx")
    with cd.open_session(tmp_path / "good.onnx") as one, cd.open_session(tmp_path / "mended.onnx") as other:
        assert np.array_equal(one.run(images(2)), other.run(images(2)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_in_other_files_and_the_lines_that_join_them(tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = onnx.load(classifier(tmp_path / "whole.onnx"))
    onnx.save_model(whole, "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(InputRefused, match="keeps weights in other files") as caught:
        cd.open_session("model.onnx", runtime)
    exec(str(caught.value).rpartition("are: ")[2])
    with cd.open_session("joined.onnx", runtime) as one, cd.open_session("whole.onnx", runtime) as other:
        assert np.array_equal(one.run(images(2)), other.run(images(2)))
