"""Wrong command lines, interruptions, full disks and interpreters that are none: no verdict is made of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.benchmarks.gate.run import SETTINGS, gate
from cnet_deploy.cli import main
from cnet_deploy.errors import OutputRefused
from cnet_deploy.models.build import build_random
from tests.benchmarks.gate.gating import NETWORK, QUICK, apart, run
from tests.builders import TINY
from tests.cases import few, long
from tests.processes import interruptible

pytestmark = pytest.mark.usefixtures("warm")


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
        (["a", "b", "--new-artifact"], "can only be used with --baseline"),
        (["a", "b", "--baseline", "x.json"], "takes one model"),
        (["a", "--baseline", "x.json", "--head-python", "p"], "--head-python can't be used with --baseline"),
        (["a", "--baseline", "x.json", "--seconds", "1"], "can't be used with --baseline"),
        (["a", "--baseline", "x.json", "--device", "cuda"], "--device can't be used with --baseline"),
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


@long
def test_ctrl_c_ends_the_gate_and_its_processes(artifacts: dict[str, Path], tmp_path: Path) -> None:
    command = apart(artifacts["base"], artifacts["equal"], "--json", tmp_path / "g.json")
    process = subprocess.Popen(
        interruptible(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    assert process.stderr is not None and process.stderr.readline().startswith("this takes about ")
    assert process.stderr.readline().startswith("self-test 1")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in stderr and list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


class TestBadDays:
    @pytest.mark.parametrize("target", few(["/dev/full", "closed"]))
    @long
    def test_output_that_nobody_takes_changes_no_verdict(self, target: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
        command = apart(artifacts["missing"], artifacts["base"], "--json", tmp_path / "g.json")
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

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize(
        ("name", "content", "what"),
        [
            ("page.md", b"\x08\0\0\0\0\0\0\0{}", "a safetensors file"),
            ("page.md", b"\x89PNG\r\n\x1a\n", "a PNG image"),
            ("page.json", b"[1]", "a JSON file"),
            ("page.md", b'{"cnet_deploy_bench": 1}', "results of `bench`"),
        ],
    )
    def test_a_summary_is_not_added_to_what_is_no_page(
        self, name: str, content: bytes, what: str, force: bool, artifacts: dict[str, Path], tmp_path: Path
    ) -> None:
        """Also through a link, which is followed; and --force is for what is replaced."""
        page, link = tmp_path / name, tmp_path / f"link-{name}"
        page.write_bytes(content)
        link.symlink_to(page)
        for path in (page, link):
            done = run(artifacts["base"], artifacts["base"], "--summary", path, *["--force"] * force)
            assert done.exit_code == 4 and f"{path}: is {what}, which text at its end would damage" in done.stderr
        assert page.read_bytes() == content

    @pytest.mark.parametrize("before", ["", "[1](https://example.com)\n", "<html>\n", "\x1b[1m step \x1b[0m\n"])
    def test_a_summary_is_added_to_any_text(self, before: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
        page = tmp_path / "page"
        page.write_text(before)
        assert run(artifacts["missing"], artifacts["base"], "--summary", page).exit_code == 5
        assert page.read_text().startswith(f"{before}### Latency gate: not measured")

    def test_a_summary_is_written_though_the_json_is_not(
        self, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OutputRefused("g.json: No space left on device")

        monkeypatch.setattr("cnet_deploy.benchmarks.gate.verdict.write_text", full)
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
        assert done.exit_code == 5 and "base takes 1 images per inference and head 4" in done.stderr

    @long
    def test_formats_that_differ_have_no_figures_in_common(self, tmp_path: Path, onnx_path: Path) -> None:
        native = cd.export(build_random(TINY), "native", tmp_path / "m.so").path
        settings = replace(SETTINGS, seconds=0.0, warmup=0.0)
        found = gate(str(native), str(onnx_path), threads=1, max_rounds=8, tolerance=0.9, settings=settings)
        assert found.changes == [] and found.compared == "not compared: .so and .onnx are counted in different ways"

    @long
    def test_a_file_that_is_replaced_meanwhile(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        """What runs is what was named when the gate began."""
        head = tmp_path / "h.onnx"
        shutil.copy(artifacts["small"], head)

        def replaced(text: str) -> None:
            if text == "self-test 2":
                head.write_bytes(b"another file")

        settings = replace(SETTINGS, seconds=0.0, warmup=0.0)
        found = gate(str(artifacts["small"]), str(head), threads=1, max_rounds=8, tolerance=0.9, settings=settings, notify=replaced)
        assert found.changes == [] and found.exit_code in (0, 3)
