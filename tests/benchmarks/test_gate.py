"""The gate end to end, with real processes. The machines that run this are noisy, so what it must never say is what is asserted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cnet_deploy as cd
from cnet_deploy.benchmarks.gate import SETTINGS, gate
from cnet_deploy.cli import main
from cnet_deploy.device_memory import why_no_device
from cnet_deploy.errors import InputRefused, OutputRefused, Unavailable
from cnet_deploy.models import build_random
from tests.builders import TINY

from .helpers import interruptible

ROOT = Path(__file__).parents[2]
QUICK = ("--seconds", "0.05", "--warmup", "0.05", "--threads", "1", "--max-rounds", "16")
NETWORK = replace(TINY, stages=(6, 6, 6))


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(main, ["gate", *map(str, arguments)])
    print(done.stdout, done.stderr)  # each verdict in the log
    return done


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network, the same again, and one that does twice the work on as many operators."""
    folder = tmp_path_factory.mktemp("gate")
    size = (96, 96)
    larger = (int(96 * 2**0.5) // 4 * 4, int(96 * 2**0.5) // 4 * 4 + 4)
    made = {"base": replace(NETWORK, input_size=size), "double": replace(NETWORK, input_size=larger)}
    paths = {name: cd.export(build_random(arch), "onnx", folder / f"{name}.onnx").path for name, arch in made.items()}
    assert 1.8 < made["double"].cost().macs / made["base"].cost().macs < 2.3
    for suffix in ("", ".json"):
        shutil.copy(f"{paths['base']}{suffix}", folder / f"equal.onnx{suffix}")
    return {**paths, "equal": folder / "equal.onnx", "missing": folder / "missing.onnx"}


@pytest.mark.slow
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


@pytest.mark.slow
def test_head_equal_to_base_is_never_a_regression(artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    summary = tmp_path / "summary.md"
    summary.write_text("# Before\n")
    done = run(artifacts["base"], artifacts["equal"], "--tolerance", "30%", "--summary", summary, *QUICK)
    assert done.exit_code in (0, 3)
    word = {0: "pass", 3: "inconclusive"}[done.exit_code]
    assert f"\n{word}: " in done.stdout
    assert f"::{'notice' if word == 'pass' else 'warning'} title=Latency gate::{word}: " in done.stdout
    text = summary.read_text()
    assert text.startswith("# Before\n### Latency gate: ") and "no change" in text
    assert "| self-test 1 | AB |" in text or (word == "inconclusive" and "base against itself: " in text)


def test_a_missing_base_is_no_pass(artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = run(artifacts["missing"], artifacts["base"], "--json", tmp_path / "g.json", "--summary", tmp_path / "s.md", *QUICK)
    assert done.exit_code == 5
    assert "missing.onnx: no such file" in done.stderr and "that is no pass" in done.stderr
    assert done.stdout.startswith("not measured: base: ") and "::error title=Latency gate::not measured" in done.stdout
    assert json.loads((tmp_path / "g.json").read_text())["verdict"] == "not measured"
    assert "Latency gate: not measured" in (tmp_path / "s.md").read_text()


def test_a_damaged_head_is_refused(artifacts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "h.onnx").write_bytes(b"damage")
    done = run(artifacts["base"], tmp_path / "h.onnx", *QUICK)
    assert done.exit_code == 4 and done.stderr.splitlines()[-1].startswith(f"Error: head: {tmp_path / 'h.onnx'}: is no ONNX model")


def test_a_backend_that_does_not_run_it(artifacts: dict[str, Path]) -> None:
    with pytest.raises(InputRefused, match="base: .* runs on onnxruntime, which is not among native"):
        gate(str(artifacts["base"]), str(artifacts["equal"]), backend="native")
    with pytest.raises(InputRefused, match="base: no backend is called 'tflite'"):
        gate(str(artifacts["base"]), str(artifacts["equal"]), backend="tflite")


def test_a_missing_interpreter(artifacts: dict[str, Path]) -> None:
    with pytest.raises(Unavailable, match=r"/no/python: can't be run .* expected a Python that has cnet-deploy installed"):
        gate(str(artifacts["base"]), str(artifacts["base"]), base_python="/no/python")


def test_a_machine_too_noisy_is_told(artifacts: dict[str, Path]) -> None:
    """No machine is quiet enough for a millionth."""
    done = run(artifacts["base"], artifacts["equal"], "--tolerance", "0.000001", "--seconds", "0", "--warmup", "0", "--max-rounds", "8")
    assert done.exit_code == 3
    assert "inconclusive: this machine can't tell 0.0 %" in done.stdout and "in 8 rounds" in done.stdout
    assert "quieter machine" in done.stderr and "--max-rounds, now 8" in done.stderr


@pytest.fixture(scope="module")
def slow_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that finds a copy of the package in which every inference is run three times."""
    folder = tmp_path_factory.mktemp("slow")
    shutil.copytree(ROOT / "cnet_deploy", folder / "cnet_deploy", ignore=shutil.ignore_patterns("__pycache__", "results"))
    source = folder / "cnet_deploy" / "sessions" / "onnxruntime.py"
    text = source.read_text()
    line = "        self._logits = self._session.infer(self._batch)\n"
    assert line in text
    source.write_text(text.replace(line, line * 3))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


class TestTwoInstallations:
    """Another revision's Python, whose backend is slower: what changed is the code, not the file."""

    @pytest.mark.slow
    def test_slower_code_never_passes(self, artifacts: dict[str, Path], slow_python: str, tmp_path: Path) -> None:
        done = run(artifacts["base"], "--head-python", slow_python, "--tolerance", "30%", "--json", tmp_path / "g.json", *QUICK)
        found = json.loads((tmp_path / "g.json").read_text())
        assert done.exit_code in (1, 3) and found["changes"] == []
        if found["decision"]:
            assert found["decision"]["estimate"] > 1.5
            assert found["installations"]["base"] != found["installations"]["head"]

    @pytest.mark.slow
    def test_a_network_is_exported_by_each_sides_own_installation(self, slow_python: str, tmp_path: Path) -> None:
        """Here head's exporter writes another graph: the figures show it before any clock does."""
        graph = Path(slow_python).parent / "cnet_deploy" / "exporters" / "onnx.py"
        original = graph.read_text()
        wrapper = "def write(network, path, **options):\n    from cnet_deploy.rewriting import dense_pointwise\n"
        wrapper += "    return _write(dense_pointwise(network), path, **options)\n\n\ndef _write("
        graph.write_text(original.replace("def write(", wrapper, 1))
        said: list[str] = []
        try:
            found = gate(
                "condensenet-50", "condensenet-50", backend="onnxruntime", threads=1, head_python=slow_python, max_rounds=8, tolerance=0.9,
                settings=replace(SETTINGS, seconds=0.0, warmup=0.0), say=said.append,
            )  # fmt: skip
        finally:
            graph.write_text(original)
        assert [text for text in said if "exporting" in text] == [
            f"{side}: exporting condensenet-50 for onnxruntime" for side in ("base", "head")
        ]
        assert found.exit_code == 1 and "multiply-adds" in [change.what for change in found.worse]

    def test_one_installation_under_two_names_compares_nothing(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        other = tmp_path / "python"
        other.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        other.chmod(0o755)
        done = run(artifacts["base"], "--head-python", other, "--tolerance", "99%", *QUICK)
        assert done.exit_code == 5 and "nothing to compare" in done.stderr


@pytest.mark.parametrize("backend", ["native", "onnxruntime.fp16"])
def test_a_model_is_gated_on_a_backend_it_is_exported_for(backend: str, tmp_path: Path, converted: Any) -> None:
    from cnet_deploy.checkpoint import save

    save(converted, tmp_path / "m.safetensors")
    path = str(tmp_path / "m.safetensors")
    found = gate(path, path, backend=backend, threads=1, tolerance=0.9, max_rounds=8, settings=replace(SETTINGS, seconds=0.0, warmup=0.0))
    assert found.changes == [] and found.backends == (backend, backend) and found.exit_code in (0, 3)


def test_without_a_gpu_it_is_not_measured(artifacts: dict[str, Path]) -> None:
    if why_no_device() is None:
        pytest.skip("a CUDA device is here")
    done = run(artifacts["base"], artifacts["equal"], "--device", "cuda", *QUICK)
    assert done.exit_code == 5 and "base: " in done.stderr and "cuda" in done.stderr.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument"),
        (["a.onnx"], "expected BASE and HEAD"),
        (["a", "b", "c"], "expected BASE and HEAD"),
        (["a", "b", "--tolerance", "5"], "expected a percentage as 5%"),
        (["a", "b", "--tolerance", "nan"], "expected a percentage as 5%"),
        (["a", "b", "--tolerance", "0%"], "expected a percentage as 5%"),
        (["a", "b", "--max-rounds", "7"], "x>=8"),
        (["a", "b", "--new-artifact"], "is an option of --baseline"),
        (["a", "b", "--baseline", "x.json"], "takes one model"),
        (["a", "--baseline", "x.json", "--head-python", "p"], "--head-python is no option of --baseline"),
        (["a", "--baseline", "x.json", "--seconds", "1"], "no options of --baseline"),
        (["a", "--baseline", "x.json", "--device", "cuda"], "--device is no option of --baseline"),
        (["a", "b", "--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.stderr


@pytest.mark.parametrize("place", ["--json", "--summary"])
def test_a_verdict_is_not_written_over_a_model(place: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    head = tmp_path / "h.onnx"
    shutil.copy(artifacts["base"], head)
    done = run(artifacts["base"], head, place, head, *QUICK)
    assert done.exit_code == 4 and head.read_bytes() == artifacts["base"].read_bytes()


@pytest.fixture(scope="module")
def stored(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("baseline") / "b.json"
    options = ["--threads", "1", "--rounds", "8", "--seconds", "0.02", "--warmup", "0.02", "--save-baseline", str(path)]
    done = CliRunner().invoke(main, ["bench", str(artifacts["base"]), *options])
    assert done.exit_code == 0, done.output
    return path


class TestBaseline:
    def test_the_same_artifact_on_the_same_machine(self, stored: Path, artifacts: dict[str, Path]) -> None:
        done = run("--baseline", stored, artifacts["equal"], "--tolerance", "60%", "--max-rounds", "16")
        assert done.exit_code in (0, 3) and "regression" not in done.stdout

    def test_another_artifact_takes_saying_so(self, stored: Path, artifacts: dict[str, Path]) -> None:
        done = run("--baseline", stored, artifacts["double"])
        assert done.exit_code == 5 and "cannot compare" in done.stderr and "--new-artifact" in done.stderr
        done = run("--baseline", stored, artifacts["double"], "--new-artifact", "--tolerance", "30%", "--max-rounds", "16")
        assert done.exit_code in (1, 3)

    @pytest.mark.parametrize("change", [{"cpu": "Another"}, {"packages": {"torch": "0.1"}}, {"affinity": [77]}, {"driver": "1"}], ids=str)
    def test_another_machine_is_never_a_regression(
        self, change: dict[str, Any], stored: Path, artifacts: dict[str, Path], tmp_path: Path
    ) -> None:
        values = json.loads(stored.read_text())
        values["environment"] |= change
        path = tmp_path / "b.json"
        path.write_text(json.dumps(values))
        done = run("--baseline", path, artifacts["equal"])
        assert done.exit_code == 5 and "cannot compare: it was measured elsewhere" in done.stderr and next(iter(change)) in done.stderr

    @pytest.mark.parametrize(("flag", "value"), [("--threads", 2), ("--backend", "native")])
    def test_threads_and_backend_are_part_of_it(self, flag: str, value: object, stored: Path, artifacts: dict[str, Path]) -> None:
        done = run("--baseline", stored, artifacts["equal"], flag, value)
        assert done.exit_code == 5 and "cannot compare" in done.stderr

    def test_a_run_of_lasting_processes_is_no_baseline(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        options = ["--threads", "1", "--rounds", "1", "--seconds", "0", "--json", str(path)]
        assert CliRunner().invoke(main, ["bench", str(artifacts["base"]), *options]).exit_code == 0
        done = run("--baseline", path, artifacts["equal"])
        assert done.exit_code == 5 and "--save-baseline" in done.stderr
        refused = CliRunner().invoke(main, ["bench", str(artifacts["base"]), "--rounds", "7", "--save-baseline", str(path)])
        assert refused.exit_code == 2 and "8 rounds" in refused.stderr

    def test_missing_or_damaged(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        done = run("--baseline", tmp_path / "none.json", artifacts["equal"])
        assert done.exit_code == 5 and "record a baseline with" in done.stderr
        (tmp_path / "b.json").write_text("{}")
        assert run("--baseline", tmp_path / "b.json", artifacts["equal"]).exit_code == 4
        assert run("--baseline", tmp_path / "b.json", artifacts["missing"]).exit_code == 5


def test_ctrl_c_ends_the_gate_and_its_processes(artifacts: dict[str, Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "cnet_deploy",
        "gate",
        str(artifacts["base"]),
        str(artifacts["equal"]),
        "--json",
        str(tmp_path / "g.json"),
    ]
    process = subprocess.Popen(
        interruptible(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    assert process.stderr is not None and process.stderr.readline().startswith("self-test 1")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in stderr and list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


class TestBadDays:
    @pytest.mark.parametrize("target", ["/dev/full", "closed"])
    def test_output_that_nobody_takes_changes_no_verdict(self, target: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "cnet_deploy",
            "gate",
            str(artifacts["missing"]),
            str(artifacts["base"]),
            "--json",
            str(tmp_path / "g.json"),
        ]
        if target == "closed":
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            stderr = process.stderr.read()
            process.stderr.close()
            assert process.wait(60) == 5
        else:
            with open(target, "w") as full:
                done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            stderr = done.stderr
            assert done.returncode == 5
        assert stderr.count("\n") == 1 and stderr.startswith("Error: base: ")
        assert json.loads((tmp_path / "g.json").read_text())["verdict"] == "not measured"

    @pytest.mark.parametrize("says", ["echo hello; cat", "echo '[1]'; cat", "exit 0", "yes"])
    def test_an_interpreter_that_is_none(self, says: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{says}\n")
        python.chmod(0o755)
        done = run(artifacts["base"], "--head-python", python, *QUICK)
        assert done.exit_code == 5 and "head: the measuring process" in done.stderr and "Traceback" not in done.stderr

    def test_a_place_that_holds_an_input(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        baseline = tmp_path / "b.json"
        baseline.write_text("precious")
        head = tmp_path / "h.onnx"
        shutil.copy(artifacts["base"], head)
        for arguments in (
            ["--baseline", baseline, head, "--json", baseline],
            ["--baseline", baseline, head, "--summary", tmp_path / ".." / tmp_path.name / "b.json"],
            [artifacts["base"], head, "--json", tmp_path / "h.onnx.json"],
            [artifacts["base"], head, "--json", tmp_path / "v.json", "--summary", tmp_path / "v.json"],
        ):
            assert run(*arguments).exit_code == 4
        assert baseline.read_text() == "precious" and {path.name for path in tmp_path.iterdir()} == {"b.json", "h.onnx"}

    def test_a_summary_is_written_though_the_json_is_not(
        self, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OutputRefused("g.json: No space left on device")

        monkeypatch.setattr("cnet_deploy.benchmarks.verdicts.write_text", full)
        done = run(artifacts["missing"], artifacts["base"], "--json", tmp_path / "g.json", "--summary", tmp_path / "s.md")
        assert done.exit_code == 4 and "Latency gate: not measured" in (tmp_path / "s.md").read_text()

    def test_names_that_can_not_be_paths(self, artifacts: dict[str, Path]) -> None:
        long = "x" * 300 + ".onnx"
        assert run(long, artifacts["base"]).exit_code == 5
        assert run("--baseline", long, artifacts["base"]).exit_code == 5
        assert CliRunner().invoke(main, ["bench", long]).exit_code == 4

    def test_batches_that_differ_are_not_compared(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        other = cd.export(build_random(NETWORK), "onnx", tmp_path / "b4.onnx", batch=4).path
        done = run(artifacts["base"], other, *QUICK)
        assert done.exit_code == 5 and "base takes 1 images an inference and head 4" in done.stderr

    def test_formats_that_differ_have_no_figures_in_common(self, tmp_path: Path, onnx_path: Path) -> None:
        native = cd.export(build_random(TINY), "native", tmp_path / "m.so").path
        settings = replace(SETTINGS, seconds=0.0, warmup=0.0)
        found = gate(str(native), str(onnx_path), threads=1, max_rounds=8, tolerance=0.9, settings=settings)
        assert found.changes == [] and found.compared == "not compared: .so and .onnx are counted in different ways"

    def test_a_file_that_is_replaced_meanwhile(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        """What runs is what was named when the gate began."""
        head = tmp_path / "h.onnx"
        shutil.copy(artifacts["base"], head)

        def replaced(text: str) -> None:
            if text == "self-test 2":
                head.write_bytes(b"another file")

        settings = replace(SETTINGS, seconds=0.0, warmup=0.0)
        found = gate(str(artifacts["base"]), str(head), threads=1, max_rounds=8, tolerance=0.9, settings=settings, say=replaced)
        assert found.changes == [] and found.exit_code in (0, 3)
