"""The gate end to end, with real processes. The machines that run this are noisy, so what it must never say is what is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cnet_deploy as cd
from cnet_deploy.benchmarks.gate.run import SETTINGS, gate
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.hardware.cuda import why_no_device
from cnet_deploy.models.build import build_random
from tests.benchmarks.gate.gating import QUICK, run
from tests.builders import TINY
from tests.cases import few, long

pytestmark = pytest.mark.usefixtures("warm")


@long
def test_twice_the_work_never_passes(artifacts: dict[str, Path], tmp_path: Path) -> None:
    done = run(artifacts["base"], artifacts["double"], "--tolerance", "30%", "--allow-changes", "--json", tmp_path / "g.json", *QUICK)
    found = json.loads((tmp_path / "g.json").read_text())
    assert done.exit_code in (1, 3) and done.exit_code == found["exit_code"]
    assert found["verdict"] in done.stdout and found["verdict"] in ("regression", "inconclusive")
    if found["decision"]:
        assert found["decision"]["estimate"] > 1.3
        orders = [part["order"] for part in found["rounds"]]
        assert orders == ["AB", "BA"] * (len(orders) // 2) and len(orders) in (8, 16)
        assert all(len(part["base"]) >= 5 and len(part["head"]) >= 5 for part in found["rounds"])
    assert found["changes"][0]["what"] == "multiply-adds" and found["changes"][0]["worse"]
    unlike = "not the same task: base reads images of 3x96x96 and head of 3x132x136 (channels x height x width)"
    assert done.stdout.splitlines()[0] == found["unlike"] == unlike and unlike in done.stderr  # before anything is measured, too


@long
def test_head_equal_to_base_is_never_a_regression(artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    summary = tmp_path / "summary.md"
    summary.write_text("# Before\n")
    done = run(artifacts["small"], artifacts["small equal"], "--tolerance", "30%", "--summary", summary, *QUICK)
    assert done.exit_code in (0, 3)
    word = {0: "pass", 3: "inconclusive"}[done.exit_code]
    assert f"\n::{'notice' if word == 'pass' else 'error'} title=Latency gate::{word}: " in done.stdout
    assert done.stderr.index("this takes about ") < done.stderr.index("::group::Rounds") < done.stderr.index("self-test 1")
    text = summary.read_text()
    assert text.startswith("# Before\n### Latency gate: ") and "no change" in text
    assert "| self-test 1 | AB |" in text and "Base against itself: " in text


def test_needless_calibration_images_are_refused_before_anything_is_exported(
    checkpoint_path: Path, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnet_deploy.benchmarks.gate.run.make_side", lambda *_, **__: pytest.fail("a side was made"))
    for base, backend in ((checkpoint_path, "native"), (artifacts["base"], None)):
        with pytest.raises(InputRefused, match="nothing is exported in int8 here"):
            gate(str(base), str(base), backend=backend, calibrate=checkpoint_path)
    with pytest.raises(InputRefused, match=r"nowhere: no such file or folder; expected images"):
        gate(str(checkpoint_path), str(checkpoint_path), backend="native.int8", calibrate=Path("nowhere"))


def test_a_missing_base_is_no_pass(artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = run(artifacts["missing"], artifacts["base"], "--json", tmp_path / "g.json", "--summary", tmp_path / "s.md", *QUICK)
    assert done.exit_code == 5
    assert "missing.onnx: no such file" in done.stderr and "so the gate did not pass" in done.stderr
    assert done.stdout.startswith("::error title=Latency gate::not measured: base: ") and done.stdout.count("not measured") == 1
    assert json.loads((tmp_path / "g.json").read_text())["verdict"] == "not measured"
    assert "Latency gate: not measured" in (tmp_path / "s.md").read_text()


@long
def test_between_two_precisions_operators_are_not_compared(tmp_path: Path) -> None:
    paths = [cd.export(build_random(TINY), "onnx", tmp_path / f"{name}.onnx", precision=name).path for name in ("fp32", "fp16")]
    summary = tmp_path / "s.md"
    done = run(*paths, "--tolerance", "30%", "--allow-changes", "--summary", summary, *QUICK)
    words = "operators, multiply-adds and parameters are not compared between fp32 and fp16"
    assert words in done.stderr and words in summary.read_text()
    assert "precision: fp32 -> fp16 (worse)" in done.stderr and "operators: " not in done.stderr


def test_a_damaged_head_is_refused(artifacts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "h.onnx").write_bytes(b"\0damage")
    done = run(artifacts["base"], tmp_path / "h.onnx", *QUICK)
    assert done.exit_code == 4 and done.stderr.splitlines()[-1].startswith(f"Error: head: {tmp_path / 'h.onnx'}: is no readable ONNX model")


def test_a_backend_that_does_not_run_it(artifacts: dict[str, Path]) -> None:
    with pytest.raises(InputRefused, match="base: .* runs on onnxruntime, which is not among native"):
        gate(str(artifacts["base"]), str(artifacts["equal"]), backend="native")
    with pytest.raises(InputRefused, match="base: no backend is called 'tflite'"):
        gate(str(artifacts["base"]), str(artifacts["equal"]), backend="tflite")


def test_a_missing_interpreter(artifacts: dict[str, Path]) -> None:
    with pytest.raises(Unavailable, match=r"/no/python: can't be run .* expected a Python that has cnet-deploy installed"):
        gate(str(artifacts["base"]), str(artifacts["base"]), base_python="/no/python")


@long
def test_a_machine_too_noisy_is_told(artifacts: dict[str, Path]) -> None:
    """No machine is quiet enough for a millionth."""
    hasty = ("--seconds", "0", "--warmup", "0", "--threads", "1", "--max-rounds", "8")
    done = run(artifacts["small"], artifacts["small equal"], "--tolerance", "0.000001", *hasty)
    assert done.exit_code == 3
    assert "inconclusive: this machine is too noisy for a tolerance of 0.0 %" in done.stdout and "in 8 rounds" in done.stdout
    assert "quieter machine" in done.stderr and "--max-rounds, now 8" in done.stderr


@pytest.mark.parametrize("backend", few(["native", "onnxruntime.fp16"]))
@long
def test_a_model_is_gated_on_a_backend_it_is_exported_for(backend: str, tmp_path: Path, converted: Any) -> None:
    from cnet_deploy.checkpoints.save import save

    save(converted, tmp_path / "m.safetensors")
    path = str(tmp_path / "m.safetensors")
    found = gate(path, path, backend=backend, threads=1, tolerance=0.9, max_rounds=8, settings=replace(SETTINGS, seconds=0.0, warmup=0.0))
    assert found.changes == [] and found.backends == (backend, backend) and found.exit_code in (0, 3)


def test_without_a_gpu_it_is_not_measured(artifacts: dict[str, Path]) -> None:
    if why_no_device() is None:
        pytest.skip("a CUDA device is here")
    done = run(artifacts["base"], artifacts["equal"], "--device", "cuda", *QUICK)
    assert done.exit_code == 5 and "base: " in done.stderr and "cuda" in done.stderr.lower()
