"""triton.py, against Triton's own schema."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy import __version__
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused, OutputRefused, Unavailable
from cnet_deploy.files import digest
from cnet_deploy.manifest import Manifest, manifest_path
from cnet_deploy.models import DenselyConnected
from cnet_deploy.triton import write_repository

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")


def parsed(config: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(config.read_text(), schema.ModelConfig())


def artifact(path: Path, like: Manifest, content: bytes = b"an engine", **changes: Any) -> Path:
    """Bytes, and the manifest that says so."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    made = replace(like, sha256=digest(content), bytes=len(content), **changes)
    manifest_path(path).write_text(made.to_json())
    return path


def engine(folder: Path, like: Manifest, content: bytes = b"an engine", **details: Any) -> Path:
    """Bytes with the manifest that an engine of ``tensorrt`` has."""
    profiles = [{"min": 1, "opt": 8, "max": 64}]
    said = {"flavour": "tensorrt", "version": "10.13.0", "gpu": "NVIDIA L4", "compute_capability": "8.9", "profiles": profiles, **details}
    return artifact(folder / "net.engine", like, content, target="tensorrt", details=said)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture
def described(onnx_path: Path) -> Manifest:
    return Manifest.from_json(manifest_path(onnx_path).read_text())


@pytest.fixture
def other(converted: DenselyConnected, tmp_path: Path) -> Path:
    """The same network in other bytes, called ``m``."""
    (tmp_path / "other").mkdir()
    return cd.export(converted, "onnx", tmp_path / "other" / "m.onnx", opset=19).path


def test_an_onnx_file(onnx_path: Path, tmp_path: Path, described: Manifest) -> None:
    done = write_repository(tmp_path / "models", onnx_path, name="cifar")
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
        "dynamicBatching": {"maxQueueDelayMicroseconds": "100"},  # without preferred sizes Triton prefers the largest
        "modelWarmup": [
            {"name": f"batch {size}", "batchSize": size, "count": 3, "inputs": {"input": {**image, "randomData": True}}} for size in (1, 32)
        ],
        "parameters": {key: {"stringValue": value} for key, value in told.items()},
    }


def test_names_and_shapes_are_the_file_s_own(onnx_path: Path, tmp_path: Path) -> None:
    import onnx

    done = write_repository(tmp_path / "r", onnx_path)
    found, graph = parsed(done.config), onnx.load(done.model).graph
    for said, tensors in ((found.input, graph.input), (found.output, graph.output)):
        assert [(one.name, list(one.dims)) for one in said] == [
            (tensor.name, [dim.dim_value for dim in tensor.type.tensor_type.shape.dim][1:]) for tensor in tensors
        ]


def test_the_largest_batch_can_be_told(onnx_path: Path, tmp_path: Path, described: Manifest) -> None:
    found = parsed(write_repository(tmp_path / "r", onnx_path, max_batch=7).config)
    assert found.max_batch_size == 7 and [warm.batch_size for warm in found.model_warmup] == [1, 7]
    found = parsed(write_repository(tmp_path / "r", onnx_path, max_batch=1).config)
    assert found.max_batch_size == 1 and not found.HasField("dynamic_batching") and len(found.model_warmup) == 1
    found = parsed(write_repository(tmp_path / "r", engine(tmp_path, described), max_batch=4).config)
    assert found.max_batch_size == 4  # a preferred size above it would be refused by the server
    assert found.HasField("dynamic_batching") and not found.dynamic_batching.preferred_batch_size
    for size in (0, -1, True, 1 << 40):
        with pytest.raises(InputRefused, match="a largest batch of .*; expected 1 to"):
            write_repository(tmp_path / "r", onnx_path, max_batch=size)
    with pytest.raises(InputRefused, match="takes at most 64 images"):
        write_repository(tmp_path / "r", engine(tmp_path, described), max_batch=65)


def test_an_onnx_file_of_fixed_batch(converted: DenselyConnected, tmp_path: Path) -> None:
    path = cd.export(converted, "onnx", tmp_path / "m.onnx", batch=2).path
    found = parsed(write_repository(tmp_path / "models", path).config)
    assert found.max_batch_size == 0 and list(found.input[0].dims) == [2, 3, 32, 32] and list(found.output[0].dims) == [2, 10]
    assert not found.HasField("dynamic_batching")
    (warm,) = found.model_warmup
    assert warm.batch_size == 1 and list(warm.inputs["input"].dims) == [2, 3, 32, 32]  # of a batch size 0 Triton makes no sample
    with pytest.raises(InputRefused, match="takes 2 images, no more and no fewer"):
        write_repository(tmp_path / "models", path, max_batch=4)


def test_an_engine(tmp_path: Path, described: Manifest) -> None:
    done = write_repository(tmp_path, engine(tmp_path, described))
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
    found = parsed(write_repository(tmp_path, engine(tmp_path, described, profiles=[{"min": 1, "opt": 1, "max": 1}])).config)
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
    with pytest.raises(InputRefused, match=r"net\.engine: its manifest has profiles .*export it again"):
        write_repository(tmp_path / "r", engine(tmp_path, described, profiles=profiles))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("batch", [None, 0, -2, True, "2", "1 } evil {", [2], 1.0, 10**30])
def test_batches_that_can_not_be(tmp_path: Path, described: Manifest, batch: Any) -> None:
    path = artifact(tmp_path / "m.onnx", described, details={"batch": batch})
    with pytest.raises(InputRefused, match="its manifest has batch .*export it again"):
        write_repository(tmp_path / "r", path)


def test_the_paper_s_other_networks(tmp_path: Path, described: Manifest) -> None:
    path = artifact(tmp_path / "vgg-16.onnx", described, architecture=None, preprocessing=None)
    found = parsed(write_repository(tmp_path / "r", path).config)
    assert found.name == "vgg-16" and list(found.input[0].dims) == [3, 224, 224] and list(found.output[0].dims) == [1000]


def test_versions(onnx_path: Path, other: Path, tmp_path: Path) -> None:
    assert write_repository(tmp_path / "r", onnx_path, name="m").version == 1
    before = tree(tmp_path / "r")
    assert write_repository(tmp_path / "r", onnx_path, name="m").version == 1  # the same bytes
    assert tree(tmp_path / "r") == before
    second = write_repository(tmp_path / "r", other)
    assert second.version == 2 and digest(other.read_bytes()) == parsed(second.config).parameters["sha256"].string_value
    assert write_repository(tmp_path / "r", onnx_path, name="m").version == 3  # those of an older version: it shall be served again
    for name in ("10", "099", "12x", str(10**30), "warmup"):  # the server takes none but the first for a version it could use
        (tmp_path / "r/m" / name).mkdir()
    assert write_repository(tmp_path / "r", other).version == 11
    assert (tmp_path / "r/m/1/model.onnx").read_bytes() == onnx_path.read_bytes()


def test_another_model_beside_it(onnx_path: Path, other: Path, tmp_path: Path) -> None:
    first = write_repository(tmp_path / "r", onnx_path, name="a")
    before = tree(tmp_path / "r/a")
    assert write_repository(tmp_path / "r", other, name="b").version == 1
    assert tree(tmp_path / "r/a") == before and first.model.is_file()


def test_refusals(onnx_path: Path, tmp_path: Path, described: Manifest) -> None:
    with pytest.raises(
        Unavailable, match=r"net\.engine: Triton\'s backend .* this is one of tensorrt-rtx; export with --tensorrt-flavour tensorrt"
    ):
        write_repository(tmp_path / "r", engine(tmp_path, described, flavour="tensorrt-rtx"))
    with pytest.raises(InputRefused, match="takes no fewer than 4 images"):
        write_repository(tmp_path / "r", engine(tmp_path, described, profiles=[{"min": 4, "opt": 4, "max": 4}]))
    with pytest.raises(InputRefused, match="Triton serves no native artifacts"):
        write_repository(tmp_path / "r", artifact(tmp_path / "m.so", described, target="native"))
    (tmp_path / "bare.onnx").write_bytes(onnx_path.read_bytes())
    with pytest.raises(InputRefused, match="has no manifest"):
        write_repository(tmp_path / "r", tmp_path / "bare.onnx")
    shutil.copy(manifest_path(onnx_path), tmp_path / "bare.onnx.json")
    (tmp_path / "bare.onnx").write_bytes(onnx_path.read_bytes() + b"x")
    with pytest.raises(InputRefused, match="the pair does not belong together"):
        write_repository(tmp_path / "r", tmp_path / "bare.onnx")
    assert not (tmp_path / "r").exists()


def test_one_configuration_serves_one_network(onnx_path: Path, tmp_path: Path, described: Manifest) -> None:
    assert described.architecture is not None
    write_repository(tmp_path / "r", onnx_path, name="net")
    before = tree(tmp_path / "r")
    larger = replace(described.architecture, classes=100)
    wider = replace(described.architecture, input_size=(32, 64))
    for path, what in (
        (engine(tmp_path / "a", described), "platform: \"onnxruntime_onnx\" there, \"tensorrt_plan\" here"),
        (artifact(tmp_path / "b/net.onnx", described, architecture=larger), "output: .* dims 10 } there, .* dims 100 } here"),
        (artifact(tmp_path / "c/net.onnx", described, architecture=wider), "input: .* dims 3 32 32 } there, .* dims 3 32 64 } here"),
        (artifact(tmp_path / "d/net.onnx", described, details={"batch": 2}), "input: "),
    ):  # fmt: skip
        with pytest.raises(InputRefused, match=f"belongs to another network or kind of artifact .{what}.*give another name or folder"):
            write_repository(tmp_path / "r", path)
        assert tree(tmp_path / "r") == before


def test_a_configuration_in_somebody_s_own_hand(onnx_path: Path, other: Path, tmp_path: Path) -> None:
    first = write_repository(tmp_path / "r", onnx_path, name="m")
    first.config.write_text("""# input [ { dims: 7 } ]
        instance_group { count: 4 }  input: [{name:"input",data_type:TYPE_FP32,dims:[3,32,32]}]
        output { name: "logits"  # the classes: }
          data_type: TYPE_FP32
          dims: [ 10 ]
        }
        backend: "onnxruntime" """)
    parsed(first.config)
    assert write_repository(tmp_path / "r", other).version == 2
    for text in ("name: 'm'", 'input "', "}}} input { dims: [3, 32, 32] }", "\x00\xff", "#"):
        first.config.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputRefused, match="give another name or folder"):
            write_repository(tmp_path / "r", onnx_path, name="m")
        assert first.config.read_bytes() == text.encode("latin-1") and not (tmp_path / "r/m/3").exists()


@pytest.mark.parametrize(
    ("name", "made"),
    [("../x", "_x"), ('a"b\n', "a_b_"), ("ü", "_"), ("..", "model"), ("", "model"), ("/etc/x", "_etc_x"), (".hidden", "hidden"),
     ("v1.2-a_b", "v1.2-a_b")],
)  # fmt: skip
def test_hostile_names_stay_in_the_folder(onnx_path: Path, tmp_path: Path, name: str, made: str) -> None:
    done = write_repository(tmp_path / "r", onnx_path, name=name)
    assert done.name == made and done.config.parent == tmp_path / "r" / made and parsed(done.config).name == made
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_the_name_of_a_hostile_file(onnx_path: Path, tmp_path: Path) -> None:
    path = tmp_path / 'a"b }\nevil: 1.onnx'
    shutil.copy(onnx_path, path)
    shutil.copy(manifest_path(onnx_path), manifest_path(path))
    assert parsed(write_repository(tmp_path / "r", path).config).name == "a_b___evil__1"


@pytest.mark.parametrize("text", ['"', "\\", '\\"', "a\nname: 'evil'", "\x00\x1b[31m", "ü€😀", "\ud800", "", "'} ]"])
def test_what_a_manifest_says_is_text(tmp_path: Path, described: Manifest, text: str) -> None:
    said = {"version": text, "gpu": text, "compute_capability": [text]}
    path = engine(tmp_path, described, **said)
    made = replace(Manifest.from_json(manifest_path(path).read_text()), source_sha256=text, precision=text)
    manifest_path(path).write_text(made.to_json())
    found = parsed(write_repository(tmp_path / "r", path).config)
    expected = text.replace("\ud800", "?")
    assert found.name == "net" and found.parameters["source_sha256"].string_value == found.parameters["precision"].string_value == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("call", ["os.rename", "os.replace", "os.fsync", "pathlib.Path.mkdir", "pathlib.Path.write_text"])
def test_a_full_or_read_only_disk_leaves_what_was_there(
    onnx_path: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    write_repository(tmp_path / "r", onnx_path, name="m")
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        for folder in ("r", "new"):
            with pytest.raises(OutputRefused, match=os.strerror(number)):
                write_repository(tmp_path / folder, other)
    assert tree(tmp_path) == before
    assert write_repository(tmp_path / "r", other).version == 2


def test_an_interruption_leaves_what_was_there(onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)  # the version has its name by then, the configuration has not
    with pytest.raises(KeyboardInterrupt):
        write_repository(tmp_path / "r", onnx_path)
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_somebody_else_made_meanwhile(onnx_path: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(tmp_path / "r", onnx_path, name="m")
    rename: Callable[..., None] = os.rename

    def late(source: Path, target: Path) -> None:
        (tmp_path / "r/m/2").mkdir()
        (tmp_path / "r/m/2/model.onnx").write_bytes(b"theirs")
        rename(source, target)

    before = tree(tmp_path / "r")
    monkeypatch.setattr("os.rename", late)
    with pytest.raises(OutputRefused, match="not empty"):
        write_repository(tmp_path / "r", other)
    assert tree(tmp_path / "r") == {**before, "m/2": b"", "m/2/model.onnx": b"theirs"}


def test_places_that_can_not_be_written_to(onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "r").mkdir()
    (tmp_path / "r/m").write_text("")
    before = tree(tmp_path)
    for folder, message in (
        (tmp_path / "file", "can't be written"), (tmp_path / "r", "can't be written"), (tmp_path / "none/r", "make it first"),
        (tmp_path / "a\0b", "can't be written"), (Path("/proc/r"), "can't be written"),
    ):  # fmt: skip
        with pytest.raises(OutputRefused, match=message):
            write_repository(folder, onnx_path, name="m")
    with pytest.raises(OutputRefused, match="too long"):
        write_repository(tmp_path / "new", onnx_path, name="n" * 300)
    assert tree(tmp_path) == before


def test_what_is_told_can_be_run_by_a_shell(onnx_path: Path, tmp_path: Path) -> None:
    done = write_repository(tmp_path / "my models; touch evil", onnx_path)
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
        "import sys; from cnet_deploy.triton import write_repository; write_repository(*sys.argv[1:]); "
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
    assert both.exit_code == 2 and "--triton and --output name two places" in both.output
    native = CliRunner().invoke(main, ["export", str(checkpoint_path), "--native", "--triton", str(tmp_path / "models")])
    assert native.exit_code == 4 and "Triton serves no native artifacts" in native.output
