"""A native library in a repository: its configuration, its backend, the names of its classes; and an ONNX file for another backend."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused, OutputRefused, Unavailable
from cnet_deploy.hardware.cpu import usable_processors
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.version import __version__
from cnet_deploy.workflows.publish import publish
from tests.once import Once

from .helpers import artifact, engine, parsed, schema, tree

THREADS = min(usable_processors(), 32)


@pytest.fixture(scope="session")
def native_path(once: Once, compiled: None, converted: DenselyConnected) -> Path:
    """A native library, which these tests only read."""
    return once("native-artifact", lambda place: cd.export(converted, "native", place / "model.so", cpu="host")) / "model.so"


def named(path: Path, names: list[str], like: Manifest) -> Path:
    """An artifact with names for its ten classes."""
    return artifact(path, like, class_names=tuple(names))


def test_a_native_library(native_path: Path, tmp_path: Path) -> None:
    done = publish(tmp_path / "models", native_path, name="cifar")
    stated = Manifest.from_json(manifest_path(native_path).read_text())
    assert sorted(tree(tmp_path / "models")) == [
        "cifar", "cifar/1", "cifar/1/model.so", "cifar/1/model.so.json", "cifar/config.pbtxt", "cifar/libtriton_cnet.so",
    ]  # fmt: skip
    with cd.open_session(done.model) as session:
        assert session.manifest == stated

    from google.protobuf import json_format

    image = {"dataType": "TYPE_FP32", "dims": ["3", "32", "32"]}
    told = {
        "sha256": stated.sha256, "source_sha256": stated.source_sha256, "precision": "fp32", "tool": f"cnet-deploy {__version__}",
        "threads": str(THREADS),
    }  # fmt: skip
    assert json_format.MessageToDict(parsed(done.config)) == {
        "name": "cifar",
        "backend": "cnet",
        "defaultModelFilename": "model.so",
        "maxBatchSize": 32,
        "input": [{"name": "input", **image}],
        "output": [{"name": "logits", "dataType": "TYPE_FP32", "dims": ["10"]}],
        "instanceGroup": [{"count": 1, "kind": "KIND_CPU"}],
        "versionPolicy": {"latest": {"numVersions": 1}},
        "dynamicBatching": {},
        "modelWarmup": [
            {"name": f"batch {size}", "batchSize": size, "count": 3, "inputs": {"input": {**image, "randomData": True}}} for size in (1, 32)
        ],
        "parameters": {key: {"stringValue": value} for key, value in told.items()},
    }
    told = done.config.read_text() + "".join(done.lines())
    assert "--gpus" not in told and told.count("tritonserver:24.10-py3 ") == 2 and "YY.MM" not in told


def test_versions_of_a_native_library(native_path: Path, tmp_path: Path) -> None:
    first = publish(tmp_path / "r", native_path, name="m")
    before = tree(tmp_path / "r")
    assert publish(tmp_path / "r", native_path, name="m").version == 1 and tree(tmp_path / "r") == before
    backend = first.config.with_name("libtriton_cnet.so")  # one for all versions, since the server keeps each that it has opened
    backend.write_bytes(backend.read_bytes() + b"of an older version of this tool")
    assert publish(tmp_path / "r", native_path, name="m").version == 1 and tree(tmp_path / "r") == before
    backend.unlink()
    assert publish(tmp_path / "r", native_path, name="m").version == 1 and tree(tmp_path / "r") == before


def test_instances_and_threads(native_path: Path, onnx_path: Path, tmp_path: Path, described: Manifest) -> None:
    for number, (options, instances, threads) in enumerate(
        (
            ({"instances": 2}, 2, max(1, THREADS // 2)),
            ({"instances": 100}, 100, 1),
            ({"instances": 3, "threads": 5}, 3, 5),
            ({"max_batch": 1}, 1, THREADS),
        )
    ):
        found = parsed(publish(tmp_path / f"r{number}", native_path, **options).config)
        assert found.instance_group[0].count == instances and found.parameters["threads"].string_value == str(threads)
        assert found.HasField("dynamic_batching") == (options != {"max_batch": 1})
    found = parsed(publish(tmp_path / "onnx", onnx_path, instances=2, threads=4).config)
    assert found.instance_group[0].count == 2 and found.parameters["intra_op_thread_count"].string_value == "4"
    for refused, message in (
        ({"instances": 0}, "the number of instances is 0; expected a number from 1 to 1024"),
        ({"instances": True}, "the number of instances is True"),
        ({"threads": 0}, "the number of threads is 0; expected a number from 1 to 32"),
        ({"threads": 33}, "the number of threads is 33; expected"),
        ({"backend": "onnxruntime"}, "Triton's backend onnxruntime runs no native artifacts; expected cnet"),
    ):
        with pytest.raises(InputRefused, match=rf"model\.so: .*{message}"):
            publish(tmp_path / "refused", native_path, **refused)
    with pytest.raises(InputRefused, match="Triton's backend tensorrt is told no number of threads; leave it out"):
        publish(tmp_path / "refused", engine(tmp_path, described), threads=2)
    assert not (tmp_path / "refused").exists()


def test_an_onnx_file_for_openvino(onnx_path: Path, tmp_path: Path) -> None:
    done = publish(tmp_path / "r", onnx_path, name="m", backend="openvino")
    found = parsed(done.config)
    assert (found.platform, found.backend, found.default_model_filename) == ("", "openvino", "model.onnx")
    assert [group.kind for group in found.instance_group] == [schema.ModelInstanceGroup.KIND_CPU]
    assert found.max_batch_size == 32 and found.HasField("dynamic_batching") and done.model.read_bytes() == onnx_path.read_bytes()
    with pytest.raises(InputRefused, match=r'kind of artifact \(backend: "openvino" there, "onnxruntime" here\)'):
        publish(tmp_path / "r", onnx_path, name="m")
    with pytest.raises(InputRefused, match="Triton's backend openvino is told no number of threads"):
        publish(tmp_path / "n", onnx_path, backend="openvino", threads=2)


def test_the_names_of_the_classes(tmp_path: Path, described: Manifest) -> None:
    names = [f"class {number}" for number in range(9)] + ["of\ntwo\r\nlines ü"]
    done = publish(tmp_path / "r", named(tmp_path / "a/m.onnx", names, described))
    labels = tmp_path / "r/m/labels.txt"
    assert labels.read_text(encoding="utf-8") == "".join(f"{name}\n" for name in [*names[:9], "of two lines ü"])
    assert parsed(done.config).output[0].label_filename == "labels.txt"
    other = named(tmp_path / "b/m.onnx", [*"abcdefghij"], described)
    assert publish(tmp_path / "r", other).version == 1 and labels.read_text() == "".join(f"{name}\n" for name in "abcdefghij")
    (tmp_path / "c").mkdir()
    unnamed = artifact(tmp_path / "c/m.onnx", described, b"without names")
    assert publish(tmp_path / "r", unnamed).version == 2 and not parsed(done.config).output[0].label_filename


@pytest.mark.parametrize("there", [True, False], ids=["names there", "none there"])
def test_names_are_put_back_where_the_rest_fails(tmp_path: Path, described: Manifest, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    names = [*"abcdefghij"]
    publish(tmp_path / "r", named(tmp_path / "a/m.onnx", names, described) if there else artifact(tmp_path / "a/m.onnx", described))
    before = tree(tmp_path / "r")
    other = artifact(tmp_path / "b/m.onnx", described, b"another", class_names=tuple(reversed(names)))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.rename", fail)  # of the version; the names have been written by then
    with pytest.raises(OutputRefused, match="No space left"):
        publish(tmp_path / "r", other)
    assert tree(tmp_path / "r") == before


def test_on_the_command_line(compiled: None, checkpoint_path: Path, tmp_path: Path) -> None:
    line = ["export", str(checkpoint_path), "--native", "--target", "host", "--triton", str(tmp_path / "models")]
    done = CliRunner().invoke(main, [*line, "--triton-instances", "2", "--triton-threads", "1"])
    assert done.exit_code == 0, done.output
    assert "tritonserver --model-repository=/models" in done.output and "--gpus" not in done.output
    found = parsed(tmp_path / "models/reference-cifar10/config.pbtxt")
    assert (found.backend, found.instance_group[0].count, found.parameters["threads"].string_value) == ("cnet", 2, "1")
    assert (tmp_path / "models/reference-cifar10/libtriton_cnet.so").stat().st_size


def test_a_manifest_names_no_program_to_run(tmp_path: Path, described: Manifest) -> None:
    """The name of the machine is part of the name of a compiler."""
    program = tmp_path / "other-linux-gnu-g++"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    program.chmod(0o755)
    for machine in (str(tmp_path / "other"), "x86_64\x1b[2J"):
        made = artifact(tmp_path / "a/m.so", described, target="native", details={"machine": machine})
        with pytest.raises(InputRefused, match=r"m\.so: its manifest names the machine .*; expected x86_64 or aarch64") as error:
            publish(tmp_path / "r", made)
        assert str(error.value).isprintable()
    assert not (tmp_path / "was-run").exists() and not (tmp_path / "r").exists()


def test_without_a_compiler_nothing_is_written(native_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(Unavailable, match=r"model\.so: \$CXX is '/no/such/compiler'"):
        publish(tmp_path / "r", native_path)
    assert not (tmp_path / "r").exists()
