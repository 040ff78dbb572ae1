"""Commands as users type them: output and exit code together."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cnet_deploy as cd
from cnet_deploy.cli import main
from cnet_deploy.errors import raise_if_interrupted
from tests.builders import TINY, save_checkpoint, state_dict, training_model
from tests.cases import few, long
from tests.conftest import Road
from tests.old_outputs import old_output

COMMANDS = (
    "convert", "export", "verify", "inspect", "run", "evaluate", "compare", "train", "bench", "gate", "doctor", "include", "completion",
)  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_road_from_end_to_end(road: Road, tmp_path: Path) -> None:
    assert not any(done.returncode for done in road.ran.values())
    printed = "".join(done.stdout for done in road.ran.values())
    for words in ("11.50 M in group-conv form", "wrote model.safetensors", "wrote model.onnx (375,367 bytes) and model.onnx.json",
                  "wrote model.so (", "top-1 accuracy 89.40% -> 90.00%", "top-1 accuracy 90.00% (model: 90.00%)"):  # fmt: skip
        assert words in printed, words
    inspected = run("inspect", road.folder / "model.onnx", "--json")
    assert inspected.exit_code == 0
    assert json.loads(inspected.stdout)["architecture"]["stages"] == [4, 4, 4]
    measured = run("bench", road.folder / "model.onnx", "--rounds", 2, "--seconds", 0, "--threads", 1, "--json", tmp_path / "b.json")
    assert measured.exit_code == 0, measured.output
    assert "model.onnx" in measured.stdout
    assert json.loads((tmp_path / "b.json").read_text())["rows"][0]["cells"][0]["rounds"]


def test_export_of_a_training_checkpoint_says_that_it_converts(checkpoint_path: Path, tmp_path: Path) -> None:
    done = run("export", checkpoint_path, "--onnx", "-o", tmp_path / "m.onnx", "--opset", 19, "--batch", 2)
    assert done.exit_code == 0, done.output
    assert "the model is in training form: converting it first" in done.stderr


def test_verify_exits_1_when_outputs_differ(onnx_path: Path, tmp_path: Path) -> None:
    arch = cd.Architecture((4, 4, 4), (8, 16, 32), classes=10, stem_stride=1, input_size=(32, 32), classifier_keep=1.0)
    other = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(arch)))
    done = run("verify", onnx_path, other)
    assert done.exit_code == 1
    assert "outputs differ from those of" in done.stderr
    as_json = run("verify", onnx_path, other, "--json")
    assert as_json.exit_code == 1 and json.loads(as_json.stdout)[0]["passed"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "{bad}"],
        ["export", "{bad}", "--onnx"],
        ["inspect", "{bad}"],
        ["verify", "{bad}", "{good}"],
        ["verify", "{good}", "{bad}"],
        ["bench", "{bad}"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("content", [b"", b"text", None, "folder"], ids=["empty", "text", "missing", "folder"])
def test_refused_input_is_one_line_and_exit_4(
    arguments: list[str], content: bytes | str | None, tmp_path: Path, checkpoint_path: Path
) -> None:
    bad = tmp_path / "bad.pth.tar"
    if content == "folder":
        bad.mkdir()
    elif isinstance(content, bytes):
        bad.write_bytes(content)
    done = run(*(word.format(bad=bad, good=checkpoint_path) for word in arguments))
    assert done.exit_code == 4, done.output
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("Error: ") and str(bad) in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.pth.tar"}


def test_unfinished_training_names_layer_survivors_and_stage(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY, stage=2)))
    for command in (["convert", path], ["export", path, "--onnx"]):
        done = run(*command)
        assert done.exit_code == 4
        assert "features.denseblock_1.denselayer_1.conv_1: pruning is unfinished: 8 of 16 input channels survive" in done.stderr
        assert "training reached stage 2 of 3" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pth.tar"]
    assert run("inspect", path).exit_code == 0


def test_flags_for_what_tensors_do_not_tell(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY, stage=3)))
    done = run("export", path, "--onnx", "--input-size", "40x48", "--stem-stride", "2", "-o", tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output
    with cd.open_session(tmp_path / "m.onnx") as session:
        assert session.input_shape == (None, 3, 40, 48)


@pytest.mark.parametrize(("flag", "value"), [("--condense-factor", 3), ("--groups", 3), ("--groups", 64)])
def test_channels_that_groups_do_not_divide(flag: str, value: int, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in state_dict(training_model(TINY)).items() if not name.endswith(("_stage", "_count"))}
    path = save_checkpoint(tmp_path / "c.pth.tar", state)
    flags = {"--groups": 4, "--condense-factor": 4, flag: value}
    done = run("convert", path, *(word for pair in flags.items() for word in pair))
    assert done.exit_code == 4 and done.stderr.count("\n") == 1
    assert f"multiple of {value}" in done.stderr or f"every {value} rows" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pth.tar"]


def test_a_network_by_its_name_is_exported_with_random_weights(tmp_path: Path) -> None:
    done = run("export", "condensenet-50", "--onnx", "-o", tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output
    assert "its weights are random" in done.stderr
    assert json.loads((tmp_path / "m.onnx.json").read_text())["source_sha256"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "x.pth.tar"], "expected --onnx, --native or --tensorrt"),
        (["export", "x", "--onnx", "--target", "host"], "--target is no option of --onnx"),
        (["export", "x", "--native", "--opset", "17"], "--opset is no option of --native"),
        (["export", "x", "--native", "--precision", "int4"], "is not one of"),
        (["export", "x", "--native", "--precision", "int8"], "--precision int8 takes the ranges of its values from images"),
        (["export", "x.pth.tar", "--onxx"], "--onnx"),
        (["conver", "x"], "No such command"),
        (["convert"], "Missing argument 'CHECKPOINT'"),
        (["convert", "x", "--classifier-keep", "0"], "not in the range"),
        (["export", "x", "--onnx", "--opset", "9"], "17<=x<=22"),
        (["export", "x", "--onnx", "--input-size", "big"], "is no size"),
        (["export", "x", "--onnx", "--input-size", "0x3"], "is no size"),
    ],
)
def test_usage_errors_exit_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_native_from_checkpoint_to_table(road: Road, few_images: Path, tmp_path: Path) -> None:
    model, artifact = tmp_path / "m.safetensors", tmp_path / "m.so"
    shutil.copyfile(road.folder / "model.safetensors", model)
    exported = run("export", model, "--native")
    assert exported.exit_code == 0 and "max error" in exported.stdout and f"wrote {artifact} (" in exported.stdout
    verified = run("verify", artifact, model, "--images", few_images)
    assert verified.exit_code == 0 and "top-1 accuracy 91.00% (model: 91.00%)" in verified.stdout
    inspected = run("inspect", artifact)
    assert inspected.exit_code == 0 and "native library" in inspected.stdout and "baseline" in inspected.stdout
    measured = run("bench", artifact, "--rounds", 1, "--seconds", 0, "--threads", 1)
    assert measured.exit_code == 0 and "native" in measured.stdout


@long
@pytest.mark.parametrize("precision", few(["fp32", "bf16"]))
def test_native_for_another_machine(precision: str, checkpoint_path: Path, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    system_tool("aarch64-linux-gnu-g++")
    done = run("export", checkpoint_path, "--native", "--target", "AARCH64", "--precision", precision, "-o", tmp_path / "m.so")
    assert done.exit_code == 0
    assert "not verified: built for aarch64, and this machine is" in done.stderr and "max error" not in done.stdout
    found = json.loads((tmp_path / "m.so.json").read_text())
    assert found["precision"] == precision and found["verification"] == []
    assert found["details"]["verified"] is False and "built for aarch64" in found["details"]["reason"]
    opened = run("verify", tmp_path / "m.so", checkpoint_path)
    assert opened.exit_code == 5 and "run it there, or export for this machine" in opened.stderr


def test_native_without_a_compiler_exits_5(checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    done = run("export", checkpoint_path, "--native", "-o", tmp_path / "m.so")
    assert done.exit_code == 5 and "pip install 'cnet-deploy[compiler]'" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/proc/m.onnx", "missing/m.onnx"])
def test_outputs_that_can_not_be_written(place: str, checkpoint_path: Path) -> None:
    done = run("export", checkpoint_path, "--onnx", "-o", place)
    assert done.exit_code == 4 and done.stderr.splitlines()[-1].startswith(f"Error: {place}: ")


def test_a_missing_backend_exits_5(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "cnet_deploy.sessions.onnxruntime", raising=False)
    done = run("verify", onnx_path, onnx_path)
    assert done.exit_code == 5 and "cnet-deploy[cpu]" in done.stderr


def test_help_and_import_do_not_import_torch() -> None:
    script = (
        "import sys, cnet_deploy, cnet_deploy.cli\nfrom click.testing import CliRunner\n"
        f"for command in {COMMANDS!r}: assert CliRunner().invoke(cnet_deploy.cli.main, [command, '--help']).exit_code == 0\n"
        "assert CliRunner().invoke(cnet_deploy.cli.main, ['--version']).exit_code == 0\n"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'numpy', 'rich', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("delay", few([0.1, 0.0, 1.0]))
def test_ctrl_c_loses_nothing(checkpoint_path: Path, few_images: Path, tmp_path: Path, delay: float) -> None:
    pair = [tmp_path / "m.onnx", tmp_path / "m.onnx.json"]
    old = [old_output(path) for path in pair]
    command = [sys.executable, "-m", "cnet_deploy", "export", str(checkpoint_path), "--onnx", "-o", str(pair[0])]
    process = subprocess.Popen([*command, "--images", str(few_images)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "converting it first" in process.stderr.readline()  # the work has begun
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert sorted(tmp_path.iterdir()) == pair  # no half-written file beside them
    if pair[0].read_bytes() == old[0]:
        assert pair[1].read_bytes() == old[1]
        assert process.returncode in (130, -signal.SIGINT), stderr
    else:  # it was done before the signal came
        assert cd.inspect(pair[0]).details["manifest"]["precision"] == "fp32"


def test_ctrl_c_during_an_import_is_no_missing_module() -> None:
    for behind in (KeyboardInterrupt(), None):
        error = ImportError("initialization failed")
        error.__cause__ = RuntimeError("native")
        error.__cause__.__context__ = behind
        with contextlib.nullcontext() if behind is None else pytest.raises(KeyboardInterrupt):
            raise_if_interrupted(error)


@pytest.mark.parametrize(
    "arguments",
    [["verify", "a", "b", "--tolerance", "nan"], ["verify", "a", "b", "--tolerance", "inf"], ["bench", "--seconds", "inf"],
     ["convert", "a", "--classifier-keep", "nan"]],
    ids=" ".join,
)  # fmt: skip
def test_numbers_must_be_finite(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2


def test_refusals_name_the_file_at_hand(checkpoint_path: Path, onnx_path: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    assert run("convert", checkpoint_path, "-o", model).exit_code == 0
    for command in (["convert", model, "-o", tmp_path / "n.safetensors"], ["export", model, "--onnx"]):
        done = run(*command, "--classifier-keep", 1.0)
        assert done.exit_code == 4
        assert done.stderr.startswith(f"Error: {model}: is already in group-conv form")
        assert "needs the training checkpoint, reference-cifar10.pth.tar" in done.stderr
    for command in ("convert", "export"):
        done = run(command, onnx_path, *(["--onnx", "-o", tmp_path / "x.onnx"] if command == "export" else []))
        assert done.exit_code == 4 and f"{onnx_path}: is an ONNX file" in done.stderr
    swapped = run("verify", checkpoint_path, onnx_path)
    assert swapped.exit_code == 4 and "expected the artifact first" in swapped.stderr
    unused = run("verify", onnx_path, onnx_path, "--input-size", 64)
    assert unused.exit_code == 4 and "expected no other input size" in unused.stderr
    unknown = run("export", "vgg16", "--onnx", "-o", tmp_path / "x.onnx")
    assert unknown.exit_code == 4 and "vgg-16" in unknown.stderr


def test_cli_from_a_checkout(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, str(root / "cli.py"), "--version"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"cnet-deploy {cd.__version__}\n"
    assert [os.readlink(root / door) for door in ("exporters", "benchmarks")] == ["cnet_deploy/exporters", "cnet_deploy/benchmarks"]


@pytest.mark.parametrize(
    "arguments",
    [("gate", "a", "b", "--summary", ""), ("gate", "a", "b", "--json", ""), ("run", "", "x"), ("evaluate", "x", "--data", ""),
     ("export", "", "--onnx"), ("convert", "x", "-o", ""), ("verify", "x", "y", "--images", "")],
    ids=str,
)  # fmt: skip
def test_an_empty_name_is_no_file(arguments: tuple[str, ...]) -> None:
    """An unset variable of a shell must not become the current folder."""
    done = run(*arguments)
    assert done.exit_code == 2 and "the name is empty; expected a file's, or leave the option out" in done.stderr
