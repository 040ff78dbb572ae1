"""workflows/doctor.py and `doctor`: real backends, real absences, real crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cnet_deploy.cli import main
from cnet_deploy.hardware.cpu import host_isas, host_machine
from cnet_deploy.hardware.cuda import why_no_device
from tests.cases import few, long


def doctor(*arguments: str, path: Path | None = None) -> tuple[int, dict[str, Any], str]:
    surroundings = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    command = [sys.executable, "-m", "cnet_deploy", "doctor", "--json", *arguments]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.stdout.startswith("[") else []
    return done.returncode, {entry["name"]: entry for entry in found}, done.stderr


@pytest.mark.parametrize("wanted", few([["native", "onnxruntime", "openvino"], []]), ids=lambda names: " ".join(names) or "all")
@long
def test_what_works(wanted: list[str], compiled: None) -> None:
    code, found, _ = doctor(*wanted)
    assert code == 0
    assert found["native"]["works"] and found["openvino"]["works"]
    assert found["native, int8"]["works"] and found["native, int8"]["version"] in host_isas()
    assert found["onnxruntime, int8"]["works"] and found["openvino, int8"]["works"]
    assert found["onnxruntime"]["works"] and found["onnxruntime"]["version"]
    for entry in found.values():
        assert entry["works"] or len(entry["reason"]) > 20
    if why_no_device():
        for name in ("onnxruntime on cuda", "onnxruntime on cuda, tensorrt"):
            assert not found[name]["works"] and "pip install" in found[name]["reason"]
    if not wanted:
        everything_works(found)


def everything_works(found: dict[str, Any]) -> None:
    assert {"torch", "native", "onnxruntime", "tensorrt", "tensorrt-rtx", "CUDA device"} <= set(found)
    assert all(name in found["processor"]["version"] for name in (host_machine(), *host_isas()))
    assert found["torch"]["works"] and found["torch.compile"]["works"]
    if why_no_device():
        assert found["tensorrt-rtx"]["builds"] and "CUDA driver" in found["tensorrt-rtx"]["reason"]
        assert "CUDA" in found["torch on cuda"]["reason"] and not found["CUDA device"]["works"]


@long
def test_a_library_that_crashes_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    code, found, said = doctor("openvino", path=tmp_path)
    assert code == 5 and "crashed (signal 11); reinstall it: pip install 'cnet-deploy[openvino]'" in found["openvino"]["reason"]
    assert "does not work" in said


@long
def test_a_library_that_can_not_be_imported_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libsomething.so.2 is missing')\n")
    code, found, _ = doctor("openvino", path=tmp_path)
    assert code == 5 and "libsomething.so.2 is missing" in found["openvino"]["reason"]


@long
def test_two_packages_in_one_place(tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        folder = tmp_path / f"{name.replace('-', '_')}-1.30.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.30.0\n")
    code, found, _ = doctor("onnxruntime", path=tmp_path)
    entry = found["onnxruntime and onnxruntime-gpu"]
    assert code == 5 and not entry["works"] and "pip uninstall -y onnxruntime onnxruntime-gpu" in entry["reason"]


@long
def test_for_people_and_unknown_names() -> None:
    shown = CliRunner().invoke(main, ["doctor", "tensorrt", "native"])
    if why_no_device():  # what works comes first, and a reason below its line
        first, *others = shown.output.splitlines()
        assert shown.exit_code == 5 and first.split()[:2] == ["native", "works"]
        reason = others[others.index(f"{'tensorrt':<30} no") + 1]
        assert reason.startswith("    tensorrt can't be loaded")
    wrong = CliRunner().invoke(main, ["doctor", "nativ"])
    assert wrong.exit_code == 2 and "expected some of native, tensorrt, onnxruntime" in wrong.output
