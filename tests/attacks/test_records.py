"""What stands beside an artifact is a stranger's too: it decides neither how much is allocated, nor what passes, nor what is answered."""

from __future__ import annotations

import json
import os
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import cnet_deploy as cd
from cnet_deploy.artifacts import self_check
from cnet_deploy.artifacts.manifest import MAX_BYTES, Manifest, engine_name, manifest_path, named_as
from cnet_deploy.artifacts.pair import read_manifest, update_manifest
from cnet_deploy.benchmarks.gate.baseline import find_baseline
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.sweep.results import Journal, Report, Row, read_report
from cnet_deploy.cli import main
from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused, printable
from cnet_deploy.files import digest
from cnet_deploy.files.onnx_weights import weights_precision
from cnet_deploy.models.build import build_random
from tests.benchmarks.helpers import result
from tests.cases import few, long

from .helpers import ARCHITECTURE, group_conv_state, one_line, refused, written


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "model.onnx"
    cd.export(build_random(ARCHITECTURE), "onnx", out)
    return out.read_bytes(), json.loads(manifest_path(out).read_text())


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    folder = tmp_path / "reference"
    folder.mkdir()
    return written(folder, group_conv_state())


def pair(folder: Path, content: bytes, manifest: dict[str, Any], name: str = "model.onnx", **changes: Any) -> Path:
    path = folder / name
    path.write_bytes(content)
    values = {**manifest, "sha256": digest(content), "bytes": len(content), **changes}
    manifest_path(path).write_text(json.dumps(values))
    return path


def unverified(manifest: dict[str, Any], **proof: Any) -> dict[str, Any]:
    """The fields of a manifest whose artifact is verified at its next opening, by a proof that holds unless it is changed."""
    with_logits = {"seed": 1, "tolerance": 1e-4, "logits": [[0.0] * 10] * 2, **proof}
    return {"details": {**manifest["details"], "verified": False, "reason": "x"}, "verification": [], "proof": with_logits}


def pooled(side: int) -> bytes:
    """A whole classifier for images of any size, in a kilobyte: the mean of a pooled image."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input"], ["mean"]), helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight"], ["logits"]),
        ],
        "x", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")],
    )  # fmt: skip
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    return made


# ---- proofs ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, 64])
def test_a_proof_makes_nobody_allocate(tmp_path: Path, exported: tuple[bytes, dict[str, Any]], rows: int) -> None:
    """3.5 kB asked for 64 images of 5792x5792 pixels: 24 GB."""
    manifest = {**exported[1], "architecture": None, "preprocessing": None}
    path = pair(tmp_path, pooled(5792), manifest, **unverified(manifest, logits=[[0.0, 0.0]] * rows))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputRefused, match=r"too large for a self-check|expected a list of 1 to 4 rows"):
        cd.open_session(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


def test_a_model_too_large_for_a_self_check_gets_none() -> None:
    with pytest.raises(InputRefused, match="5792x5792 pixels, which are too large for a self-check"):
        self_check.make(lambda batch: batch, (3, 5792, 5792), 1e-4)


@pytest.mark.parametrize("tolerance", ["Infinity", "1e300", "2", "-1", "NaN", "null", "true", '"1"'])
def test_tolerances_that_are_none(tmp_path: Path, exported: tuple[bytes, dict[str, Any]], tolerance: str) -> None:
    manifest = exported[1]
    path = pair(tmp_path, exported[0], manifest, **unverified(manifest, tolerance="HERE"))
    text = manifest_path(path).read_text().replace('"HERE"', tolerance)
    manifest_path(path).write_text(text)
    with pytest.raises(InputRefused, match="damaged"):
        cd.open_session(path)
    assert manifest_path(path).read_text() == text


def test_a_proof_allows_no_more_than_the_precision_of_the_file(tmp_path: Path, exported: tuple[bytes, dict[str, Any]]) -> None:
    manifest = exported[1]
    path = pair(tmp_path, exported[0], manifest)
    with cd.open_session(path) as session:
        images = self_check.images(session.input_shape[1:], 1, 2)
        logits = session.run(images).astype(np.float64)
    for factor, holds in ((1.00001, True), (1.02, False)):
        lies = unverified(manifest, tolerance=1.0, logits=(logits * factor).tolist())
        pair(tmp_path, exported[0], manifest, precision="bf16", **lies)
        if holds:
            with cd.open_session(path) as session:
                assert session.manifest is not None and session.manifest.verification[-1]["tolerance"] == 1e-4
        else:
            with pytest.raises(CheckFailed, match="computes something else than its model"):
                cd.open_session(path)


def test_rows_of_another_number_of_classes(tmp_path: Path, exported: tuple[bytes, dict[str, Any]]) -> None:
    path = pair(tmp_path, exported[0], exported[1], **unverified(exported[1], logits=[[0.0] * 100_000] * 2))
    with pytest.raises(CheckFailed, match=r"gives logits \[2, 10\], its model \[2, 100000\]"):
        cd.open_session(path)


# ---- what is rewritten -------------------------------------------------------------------------------------------------------------


def nested(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = [value]
    return value


@long
@pytest.mark.parametrize("filler", few([[nested(25, n % 10) for n in range(5_000)], "\U0001f600" * 900_000]), ids=["nested", "emoji"])
def test_a_rewritten_manifest_can_be_read_again(tmp_path: Path, exported: tuple[bytes, dict[str, Any]], filler: Any) -> None:
    """Indented, or with each sign in twelve characters, it was four to five times as large as its reader allows."""
    path = pair(tmp_path, *exported)
    before = read_manifest(path)
    assert before is not None
    large = {**exported[1], "details": {**exported[1]["details"], "filler": filler}}
    text = json.dumps(large, ensure_ascii=False, separators=(",", ":"))
    assert len(text.encode()) < MAX_BYTES
    manifest_path(path).write_text(text, encoding="utf-8")
    stated = read_manifest(path)
    assert stated is not None
    after = replace(stated, verification=(*stated.verification, {"passed": True}))
    update_manifest(path, stated, after)
    assert read_manifest(path) == after
    # and while the artifact is replaced, when the manifest speaks of both
    cd.export(build_random(ARCHITECTURE, 1), "onnx", path)
    assert read_manifest(path) is not None


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, exported: tuple[bytes, dict[str, Any]]) -> None:
    path = pair(tmp_path, *exported)
    before, text = read_manifest(path), manifest_path(path).read_bytes()
    assert before is not None
    for details in ({"x": "y" * (MAX_BYTES + 1)}, {"x": nested(40, 1)}):
        with pytest.raises(OutputRefused, match="could not be read again"):
            update_manifest(path, before, replace(before, details=details))
        assert manifest_path(path).read_bytes() == text


# ---- precision ---------------------------------------------------------------------------------------------------------------------


def with_weights(content: bytes, factor: float, dtype: str = "float32", name: str = "weight") -> bytes:
    proto = onnx.load_model_from_string(content)
    for tensor in proto.graph.initializer:
        if name in tensor.name and tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(dtype), tensor.name))
    made: bytes = proto.SerializeToString()
    return made


def test_weights_off_by_two_per_cent_under_a_manifest_of_bf16(
    tmp_path: Path, exported: tuple[bytes, dict[str, Any]], reference: Path
) -> None:
    path = pair(tmp_path, with_weights(exported[0], 1.02), exported[1], precision="bf16")
    with cd.open_session(path) as session:
        assert session.precision == "fp32"
    assert not all(comparison.passed for comparison in cd.verify(path, reference))
    done = CliRunner().invoke(main, ["verify", str(path), str(reference)])
    assert done.exit_code == 1 and "tolerance" in done.output


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_precision_of_what_is_multiplied(tmp_path: Path, precision: str) -> None:
    made = cd.export(build_random(ARCHITECTURE), "onnx", tmp_path / "m.onnx", precision=precision).path.read_bytes()
    assert weights_precision(made) == precision
    proto = onnx.load_model_from_string(made)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((500, 500), np.float16), "unread.weight"))
    assert weights_precision(proto.SerializeToString()) == precision


@pytest.mark.parametrize("data", [b"", b"x", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x02\x2a\x7f", bytes(1 << 22), b"\x3a\x00" * 10], ids=len)
def test_no_precision(data: bytes) -> None:
    assert weights_precision(data) is None


@pytest.mark.parametrize("cut", range(0, 3000, 137))
def test_the_precision_of_a_part(exported: tuple[bytes, dict[str, Any]], cut: int) -> None:
    assert weights_precision(exported[0][:cut]) in (None, "fp32")


# ---- what a pin covers -------------------------------------------------------------------------------------------------------------


def test_a_pinned_onnx_file_answers_by_what_stands_in_it(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra: cnet-deploy[openvino]")
    model = build_random(ARCHITECTURE)
    model.class_names = tuple(f"class {number}" for number in range(10))
    path = cd.export(model, "onnx", tmp_path / "m.onnx").path
    values = json.loads(manifest_path(path).read_text())
    values["class_names"] = values["class_names"][::-1]
    values["preprocessing"]["mean"] = [0.0, 0.0, 0.0]
    manifest_path(path).write_text(json.dumps(values))
    for backend in ("onnxruntime", "openvino"):
        with cd.open_session(path, backend, sha256=digest(path.read_bytes())) as session:
            assert session.class_names == model.class_names and session.preprocessing == model.preprocessing


def test_an_engine_s_name_holds_what_decides_its_answers() -> None:
    model = build_random(ARCHITECTURE)
    names = tuple("abcdefghij")
    manifest = Manifest("tensorrt", "", 1, "fp32", "", ARCHITECTURE, model.preprocessing, class_names=names)
    name = engine_name(ARCHITECTURE, model.preprocessing, names)
    assert named_as(manifest, name) is True and len(name) < 4096
    assert named_as(manifest, "main_graph") is None  # of version 0.1.0
    other = replace(model.preprocessing, mean=(0.0, 0.0, 0.0))
    for lie in (replace(manifest, class_names=names[::-1]), replace(manifest, preprocessing=other), replace(manifest, preprocessing=None)):
        assert named_as(lie, name) is False


def test_an_engine_keeps_its_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra: cnet-deploy[rtx]")
    model = build_random(ARCHITECTURE)
    model.class_names = tuple("abcdefghij")
    path = cd.export(model, "tensorrt", tmp_path / "m.engine", flavour="tensorrt-rtx").path
    assert engine_name(ARCHITECTURE, model.preprocessing, model.class_names).encode() in path.read_bytes()


# ---- records of bench --------------------------------------------------------------------------------------------------------------


def stored(path: Path, **changes: Any) -> Path:
    """A baseline of a network that was measured here, with other settings."""
    turns = [[0.01 + 0.0001 * ((7 * n + turn) % 5) for n in range(5)] for turn in range(8)]
    row = Row(NETWORK, 5, 6, None, None, [result(*turns, label=NETWORK, backend="onnxruntime")])
    values = Report([row], Settings(rounds=8, fresh=True), after=environment()).to_dict()
    values["settings"] |= changes.pop("settings", {})
    values["rows"][0]["cells"][0] |= changes.pop("cell", {})
    path.write_text(json.dumps({**values, **changes}).replace('"1e-300"', "1e-300"))
    return path


NETWORK = "condensenet-74-g8"
LIES: list[tuple[dict[str, Any], str]] = [
    ({"settings": {"least": 10**12}}, "settings.least is 1000000000000; expected a whole number from 0 to 1000000"),
    ({"settings": {"least": 900_000}}, "settings.least is 900000, and a round has 5 samples"),
    ({"settings": {"seconds": 900_000}}, "settings.seconds is 900000; expected seconds, from 0 to 300"),
    ({"settings": {"warmup": 1e9}}, "settings.warmup is 1000000000.0; expected seconds, from 0 to 300"),
    ({"settings": {"rounds": 10**9}}, "settings.rounds is 1000000000; expected a whole number from 1 to 100000"),
    ({"cell": {"rounds": [["1e-300"]] * 8}}, "expected seconds, from a nanosecond"),
    ({"cell": {"rounds": [[0.01, -0.01]] * 8}}, "rounds[0][1] is -0.01; expected seconds, from a nanosecond"),
    ({"cell": {"rounds": [[None]] * 8}}, "rounds[0][0] is null; expected seconds"),
    ({"cell": {"rounds": [["x"]] * 8}}, 'rounds[0][0] is "x"; expected seconds'),
    ({"cell": {"rounds": {"a": 1}}}, "rounds is an object; expected a list"),
    ({"cell": {"batch": 10**9}}, "batch is 1000000000; expected a whole number from 1 to 65535"),
    ({"environment": None}, "environment is null; expected an object"),
    ({"environment": {"cpu": None}}, "environment.cpu is null; expected the name of a processor"),
]


@pytest.mark.parametrize(("lie", "says"), LIES, ids=[says for _, says in LIES])
def test_a_baseline_that_lies(tmp_path: Path, lie: dict[str, Any], says: str) -> None:
    done = CliRunner().invoke(main, ["gate", "--baseline", str(stored(tmp_path / "b.json", **lie)), NETWORK])
    line = one_line(done.stderr)
    assert done.exit_code == 4 and f"{tmp_path / 'b.json'} is damaged: " in line and says in line, line


def test_an_honest_baseline(tmp_path: Path) -> None:
    found = find_baseline(stored(tmp_path / "b.json"), Path(NETWORK), backend=None, threads=None, new_artifact=False)
    assert found.least == 3 and len(found.medians) == 8


@pytest.mark.parametrize("values", [{"seconds": 900_000}, {"rounds": 0}, {"least": 10**12}, {"warmup": float("nan")}], ids=str)
def test_settings_that_no_file_could_keep(values: dict[str, Any]) -> None:
    """Else they were measured with, and what came of it could not be read again."""
    with pytest.raises(InputRefused, match="expected"):
        Settings(**values)


def test_results_that_could_not_be_read_again_are_not_written(tmp_path: Path) -> None:
    made = Report([Row("x", 5, 6, None, None, [result([0.01])])], Settings(rounds=1), after=environment())
    journal = Journal(tmp_path / "r.json")
    journal.close(made)
    before = (tmp_path / "r.json").read_bytes()
    made.rows[0].results[0].rounds[0][0] = 1e-12
    message = r"r\.json: what would be written could not be read again: it is damaged: .*rounds\[0\]\[0\] is 1e-12"
    with pytest.raises(OutputRefused, match=message):
        Journal(tmp_path / "r.json", resumed=tmp_path / "r.json").close(made)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("r.json", before)]


def test_names_that_are_no_utf_8_can_be_read_again(tmp_path: Path) -> None:
    label = os.fsdecode(b"m\xff.onnx")
    made = Report([Row(label, 5, 6, None, None, [result([0.01], label=label)])], Settings(rounds=1), after=environment())
    Journal(tmp_path / "r.json").close(made)
    assert read_report(tmp_path / "r.json").rows[0].label == printable(label) == r"m\xff.onnx"


# ---- weights -----------------------------------------------------------------------------------------------------------------------


def test_metadata_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    model = build_random(ARCHITECTURE)
    model.class_names = ("x" * 300, *"abcdefghi")
    with pytest.raises(OutputRefused, match="the model's metadata could not be read again"):
        cd.save(model, tmp_path / "m.safetensors")
    model.class_names = tuple(f"{number}" + "\U0001f600" * 199 for number in range(10))
    cd.save(model, tmp_path / "m.safetensors")
    assert cd.load(tmp_path / "m.safetensors").class_names == model.class_names


def test_weights_that_could_not_be_read_again_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnet_deploy.checkpoints.formats.safetensors.MAX_HEADER", 1000)
    with pytest.raises(OutputRefused, match="could not be read again"):
        cd.save(build_random(ARCHITECTURE), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["empty tensors", "one shape", "dimensions", "nested", "a list"])
def test_headers_beyond_any_network(tmp_path: Path, kind: str) -> None:
    """30 MB of empty tensors took 10 s and 1.2 GB, one shape of millions of ones 3.5 s: refused before they are parsed."""
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {
        "empty tensors": lambda: json.dumps({f"{number}": none for number in range(25_000)}, separators=(",", ":")),
        "one shape": lambda: json.dumps({"x": {**none, "shape": [1] * 500_000}}),
        "dimensions": lambda: json.dumps({"x": {**none, "shape": [1] * 8 + [0]}}),
        "nested": lambda: "{" + '"x":[' * 100_000,
        "a list": lambda: "{}" + " " * 100,
    }[kind]()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    start = time.process_time()
    refused("inspect", path)
    assert time.process_time() - start < 2
