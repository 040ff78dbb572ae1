"""The commands that run for long, as users type them: output and exit code together."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cnet_deploy.cli import main
from tests.cases import long

pytestmark = pytest.mark.usefixtures("warm")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "model.onnx.json", "results"])
def test_results_are_not_written_over_models(onnx_path: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    done = run("bench", onnx_path, "--rounds", 1, "--seconds", 0, "--json", tmp_path / name)
    assert done.exit_code == 4 and "results are not written there" in done.stderr
    assert (tmp_path / name).read_bytes() == b"precious"


def test_a_run_whose_results_can_not_be_written_is_shown_all_the_same(
    onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    done = run("bench", onnx_path, "--rounds", 1, "--seconds", 0, "--json", tmp_path / "r.json")
    assert done.exit_code == 4 and "No space left on device" in done.stderr
    assert "median over 1 interleaved rounds" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_bench_of_a_folder_says_what_it_is(tmp_path: Path) -> None:
    done = run("bench", tmp_path)
    assert done.exit_code == 4 and "is a directory; expected a file" in done.stderr


class TestBenchOutputs:
    QUICK = ("--rounds", 1, "--seconds", 0, "--warmup", 0, "--threads", 1)

    @long
    def test_every_kind_at_once(self, onnx_path: Path, tmp_path: Path) -> None:
        kinds = {"json": "r.json", "html": "r.html", "markdown": "r.md", "csv": "r.csv", "svg": "r.svg"}
        options = [word for kind, name in kinds.items() for word in (f"--{kind}", tmp_path / name)]
        done = run("bench", onnx_path, "--backend", "onnxruntime,openvino", "--batch", "1,2", *self.QUICK, *options)
        assert done.exit_code == 0, done.output
        assert {path.name for path in tmp_path.iterdir()} == set(kinds.values())
        stored = json.loads((tmp_path / "r.json").read_text())
        assert [cell["batch"] for cell in stored["rows"][0]["cells"]] == [1, 1, 2, 2]
        assert "Throughput, batch 2, 1 thread" in done.stdout and "Inference time, batch 1, 1 thread" in done.stdout
        assert all("openvino" in (tmp_path / name).read_text() for name in kinds.values())
        before = (tmp_path / "r.json").read_bytes()
        (tmp_path / "r.html").unlink()
        again = run("bench", onnx_path, "--backend", "onnxruntime,openvino", "--batch", "1,2", *self.QUICK, *options, "--resume")
        assert again.exit_code == 0 and (tmp_path / "r.json").read_bytes() == before and (tmp_path / "r.html").exists()

    @pytest.mark.parametrize(
        ("kind", "name"), [("html", "r.json"), ("csv", "m.onnx"), ("svg", "r.html"), ("markdown", "r.txt"), ("save-baseline", "r")]
    )
    def test_names_are_checked_before_anything_is_measured(self, kind: str, name: str, onnx_path: Path, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"precious")
        done = run("bench", onnx_path, f"--{kind}", tmp_path / name)
        assert done.exit_code == 4 and "results are not written there; expected a name that ends in" in done.stderr
        assert (tmp_path / name).read_bytes() == b"precious" and done.stdout == ""

    @pytest.mark.parametrize("kind", ["html", "svg"])
    def test_pictures_need_matplotlib(self, kind: str, onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        done = run("bench", onnx_path, *self.QUICK, f"--{kind}", tmp_path / f"r.{kind}", "--json", tmp_path / "r.json")
        assert done.exit_code == 5 and "pip install 'cnet-deploy[plots]'" in done.stderr
        assert done.stdout == "" and list(tmp_path.iterdir()) == []
        assert run("bench", onnx_path, *self.QUICK, "--markdown", tmp_path / "r.md").exit_code == 0  # nothing else does

    def test_one_name_for_two_outputs(self, onnx_path: Path, tmp_path: Path) -> None:
        done = run("bench", onnx_path, "--json", tmp_path / "r.json", "--save-baseline", tmp_path / "r.json")
        assert done.exit_code == 4 and "is asked for twice" in done.stderr

    def test_resume_needs_something_to_go_on_with(self, onnx_path: Path, tmp_path: Path) -> None:
        done = run("bench", onnx_path, "--resume")
        assert done.exit_code == 4 and "expected the results of the interrupted run with --json" in done.stderr
        (tmp_path / "r.json").write_text("{}")
        done = run("bench", onnx_path, "--resume", "--json", tmp_path / "r.json")
        assert done.exit_code == 4 and "r.json: is a JSON file, which would be replaced by results of `bench`" in done.stderr
        done = run("bench", onnx_path, "--resume", "--force", "--json", tmp_path / "r.json")
        assert done.exit_code == 4 and "r.json is of another kind: it has no cnet_deploy_bench; expected" in done.stderr
        assert (tmp_path / "r.json").read_text() == "{}"

    @pytest.mark.parametrize("value", ["", "0", "-1", "1,", "1,x", "1.5", "99999999"])
    def test_numbers(self, value: str) -> None:
        for option in ("--threads", "--batch"):
            done = run("bench", option, value)
            assert done.exit_code == 2 and option in done.stderr

    def test_backends(self) -> None:
        assert run("bench", "--backend", "native,").exit_code == 2
        done = run("bench", "--backend", "native,tflite")
        assert done.exit_code == 4 and "native.bf16" in done.stderr
