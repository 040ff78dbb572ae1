"""What is written for an artifact, against Triton's own schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import Manifest
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.version import __version__
from cnet_deploy.workflows.publish import publish
from tests.cases import long

from .helpers import artifact, engine, parsed, schema, tree

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_an_onnx_file(onnx_path: Path, tmp_path: Path, described: Manifest) -> None:
    done = publish(tmp_path / "models", onnx_path, name="cifar")
    assert (done.name, done.version) == ("cifar", 1)
    assert done.model == tmp_path / "models/cifar/1/model.onnx" and done.config == tmp_path / "models/cifar/config.pbtxt"
    assert sorted(tree(tmp_path / "models")) == [
        "cifar", "cifar/1", "cifar/1/model.onnx", "cifar/1/model.onnx.json", "cifar/config.pbtxt",
    ]  # fmt: skip
    assert done.model.read_bytes() == onnx_path.read_bytes()
    with cd.open_session(done.model) as session:
        assert session.manifest == described

    from google.protobuf import json_format

    image = {"dataType": "TYPE_FP32", "dims": ["3", "32", "32"]}
    told = {"sha256": described.sha256, "source_sha256": described.source_sha256, "precision": "fp32", "tool": f"cnet-deploy {__version__}"}
    assert json_format.MessageToDict(parsed(done.config)) == {  # every field, and none besides
        "name": "cifar",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "defaultModelFilename": "model.onnx",
        "maxBatchSize": 32,
        "input": [{"name": "input", **image}],
        "output": [{"name": "logits", "dataType": "TYPE_FP32", "dims": ["10"]}],
        "instanceGroup": [{"count": 1}],  # KIND_AUTO is the default
        "versionPolicy": {"latest": {"numVersions": 1}},
        "dynamicBatching": {},  # no delay: Triton prefers the largest size, and a lone request would wait for it
        "modelWarmup": [
            {"name": f"batch {size}", "batchSize": size, "count": 3, "inputs": {"input": {**image, "randomData": True}}} for size in (1, 32)
        ],
        "parameters": {key: {"stringValue": value} for key, value in told.items()},
    }


def test_names_and_shapes_are_the_file_s_own(onnx_path: Path, tmp_path: Path) -> None:
    import onnx

    done = publish(tmp_path / "r", onnx_path)
    found, graph = parsed(done.config), onnx.load(done.model).graph
    for said, tensors in ((found.input, graph.input), (found.output, graph.output)):
        assert [(one.name, list(one.dims)) for one in said] == [
            (tensor.name, [dim.dim_value for dim in tensor.type.tensor_type.shape.dim][1:]) for tensor in tensors
        ]


def test_the_largest_batch_can_be_told(onnx_path: Path, tmp_path: Path, described: Manifest) -> None:
    found = parsed(publish(tmp_path / "r", onnx_path, max_batch=7).config)
    assert found.max_batch_size == 7 and [warm.batch_size for warm in found.model_warmup] == [1, 7]
    found = parsed(publish(tmp_path / "r", onnx_path, max_batch=1).config)
    assert found.max_batch_size == 1 and not found.HasField("dynamic_batching") and len(found.model_warmup) == 1
    found = parsed(publish(tmp_path / "r", engine(tmp_path, described), max_batch=4).config)
    assert found.max_batch_size == 4  # a preferred size above it would be refused by the server
    assert found.HasField("dynamic_batching") and not found.dynamic_batching.preferred_batch_size
    for size in (0, -1, True, 1 << 40):
        with pytest.raises(InputRefused, match="the largest batch is .*; expected a number from 1 to"):
            publish(tmp_path / "r", onnx_path, max_batch=size)
    with pytest.raises(InputRefused, match="expected at most 64, which the engine takes"):
        publish(tmp_path / "r", engine(tmp_path, described), max_batch=65)


def test_an_onnx_file_of_fixed_batch(converted: DenselyConnected, tmp_path: Path) -> None:
    path = cd.export(converted, "onnx", tmp_path / "m.onnx", batch=2).path
    found = parsed(publish(tmp_path / "models", path).config)
    assert found.max_batch_size == 0 and list(found.input[0].dims) == [2, 3, 32, 32] and list(found.output[0].dims) == [2, 10]
    assert not found.HasField("dynamic_batching")
    (warm,) = found.model_warmup
    assert warm.batch_size == 1 and list(warm.inputs["input"].dims) == [2, 3, 32, 32]  # of a batch size 0 Triton makes no sample
    with pytest.raises(InputRefused, match="takes exactly 2 images"):
        publish(tmp_path / "models", path, max_batch=4)


def test_an_engine(tmp_path: Path, described: Manifest) -> None:
    done = publish(tmp_path, engine(tmp_path, described))
    found = parsed(done.config)
    assert done.model == tmp_path / "net/1/model.plan" and done.model.read_bytes() == b"an engine"
    assert Manifest.from_json((tmp_path / "net/1/model.plan.json").read_text()).target == "tensorrt"
    assert (found.platform, found.backend, found.default_model_filename) == ("tensorrt_plan", "tensorrt", "model.plan")
    assert found.max_batch_size == 64 and list(found.input[0].dims) == [3, 32, 32] and list(found.output[0].dims) == [10]
    assert list(found.dynamic_batching.preferred_batch_size) == [8] and found.dynamic_batching.max_queue_delay_microseconds == 100
    assert [(group.count, group.kind) for group in found.instance_group] == [(1, schema.ModelInstanceGroup.KIND_GPU)]
    assert [warm.batch_size for warm in found.model_warmup] == [1, 8, 64]
    assert "# The engine is for TensorRT 10.13.0 on compute capability 8.9 (NVIDIA L4)" in done.config.read_text()


def test_an_engine_for_single_images(tmp_path: Path, described: Manifest) -> None:
    found = parsed(publish(tmp_path, engine(tmp_path, described, profiles=[{"min": 1, "opt": 1, "max": 1}])).config)
    assert found.max_batch_size == 1 and not found.HasField("dynamic_batching")
    assert [warm.batch_size for warm in found.model_warmup] == [1]


@pytest.mark.parametrize(
    "profiles",
    [None, [], {}, "x", [1], [{}], [{"min": 1, "opt": "8", "max": 64}], [{"min": 1, "opt": True, "max": 2}],
     [{"min": 0, "opt": 1, "max": 2}], [{"min": 1, "opt": 9, "max": 8}], [{"min": 1, "opt": 2, "max": 10**30}],
     [{"min": 1, "opt": 2, "max": 4}] * 2],
    ids=str,
)  # fmt: skip
def test_profiles_that_can_not_be(tmp_path: Path, described: Manifest, profiles: Any) -> None:
    with pytest.raises(InputRefused, match=r"net\.engine: its manifest has damaged profiles.*export it again"):
        publish(tmp_path / "r", engine(tmp_path, described, profiles=profiles))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("batch", [None, 0, -2, True, "2", "1 } evil {", [2], 1.0, 10**30])
def test_batches_that_can_not_be(tmp_path: Path, described: Manifest, batch: Any) -> None:
    path = artifact(tmp_path / "m.onnx", described, details={"batch": batch})
    with pytest.raises(InputRefused, match="its manifest has (batch|no batch).*export it again"):
        publish(tmp_path / "r", path)


def test_the_paper_s_other_networks(tmp_path: Path, described: Manifest) -> None:
    path = artifact(tmp_path / "vgg-16.onnx", described, architecture=None, preprocessing=None)
    found = parsed(publish(tmp_path / "r", path).config)
    assert found.name == "vgg-16" and list(found.input[0].dims) == [3, 224, 224] and list(found.output[0].dims) == [1000]


def test_what_is_told_can_be_run_by_a_shell(onnx_path: Path, tmp_path: Path) -> None:
    done = publish(tmp_path / "my models; touch evil", onnx_path)
    wrote, line = done.lines()
    assert str(done.model) in wrote
    shell = f"docker() {{ printf '%s\\n' \"$@\"; }}; {line}"
    said = subprocess.run(["sh", "-c", shell], check=True, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
    image = "nvcr.io/nvidia/tritonserver:YY.MM-py3"
    assert said[-5:] == ["-v", f"{done.config.parent.parent}:/models", image, "tritonserver", "--model-repository=/models"]
    assert not (tmp_path / "evil").exists()
    comment = done.config.read_text().splitlines()[1]
    assert comment.startswith("# docker run ") and "-v $PWD:/models" in comment  # a repository may be moved


def test_no_torch_is_needed(onnx_path: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from cnet_deploy.workflows.publish import publish; publish(*sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "r", onnx_path], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_on_the_command_line(checkpoint_path: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["export", str(checkpoint_path), "--triton", str(tmp_path / "models")])
    assert done.exit_code == 0, done.output
    assert "tritonserver --model-repository=/models" in done.output
    assert parsed(tmp_path / "models/reference-cifar10/config.pbtxt").platform == "onnxruntime_onnx"
    both = CliRunner().invoke(main, ["export", str(checkpoint_path), "--triton", "x", "-o", "y.onnx"])
    assert both.exit_code == 2 and "--triton and --output were both given" in both.output
    assert "--gpus" not in done.output
    native = CliRunner().invoke(main, ["export", str(checkpoint_path), "--native", "--triton", str(tmp_path / "models")])
    assert native.exit_code == 4 and 'kind of artifact (backend: "onnxruntime" there, "cnet" here)' in native.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--onnx", "--triton-instances", "2"], "--triton-instances is an option of --triton FOLDER alone"),
        (["--native", "--triton", "r", "--triton-backend", "openvino"], "--triton-backend openvino is no backend of --native"),
        (["--onnx", "--triton", "r", "--triton-backend", "cnet"], "is not one of 'onnxruntime', 'openvino'"),
        (
            ["--triton", "r", "--triton-backend", "openvino", "--triton-threads", "2"],
            "--triton-threads is no option of --onnx with Triton's backend openvino",
        ),
        (["--native", "--triton", "r", "--triton-threads", "33"], "33 is not in the range 1<=x<=32"),
    ],
)
def test_options_that_do_not_fit(checkpoint_path: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["export", str(checkpoint_path), *options])
    assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output


@long
def test_an_onnx_file_in_int8(checkpoint_path: Path, tmp_path: Path) -> None:
    """Images and logits are float32, as of any other; the server quantises what the graph says."""
    arguments = ["export", str(checkpoint_path), "--precision", "int8", "--calibrate", str(EXAMPLES / "cifar10-test-500.bin")]
    done = CliRunner().invoke(main, [*arguments, "--triton", str(tmp_path / "models")])
    assert done.exit_code == 0, done.output
    config = parsed(tmp_path / "models/reference-cifar10/config.pbtxt")
    assert config.parameters["precision"].string_value == "int8" and config.max_batch_size == 32
    assert [(value.data_type, list(value.dims)) for value in (*config.input, *config.output)] == [(11, [3, 32, 32]), (11, [10])]
    with cd.open_session(tmp_path / "models/reference-cifar10/1/model.onnx") as session:
        assert session.precision == "int8" and session.run(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 10)
