"""How commands talk: quiet, verbose, in colour, on a terminal and in a log; and what they suggest to who mistypes."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cnet_deploy.cli import main
from tests.cases import long
from tests.forks import Forks

ROOT = Path(__file__).parents[2]
ESCAPE = "\x1b"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def on_a_terminal(command: Path, *arguments: object, **surroundings: str) -> str:
    """What a person sees: both streams on one pseudo-terminal."""
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    process = subprocess.Popen(
        [command, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
        env=clean | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "120"} | surroundings,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the last process that had it open is gone
            break
        if not part:
            break
        seen += part
    os.close(ours)
    process.wait(60)
    return seen.decode()


def test_an_error_is_red_on_a_terminal_and_plain_elsewhere(tmp_path: Path, forks: Forks) -> None:
    missing = tmp_path / "nothing.onnx"
    assert f"{ESCAPE}[31m{ESCAPE}[1mError:{ESCAPE}[0m {missing}" in on_a_terminal(forks.command, "inspect", missing)
    for dull in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert ESCAPE not in on_a_terminal(forks.command, "inspect", missing, **dull)
    done = subprocess.run(
        [sys.executable, "-m", "cnet_deploy", "inspect", missing], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 4 and ESCAPE not in done.stderr


@long
def test_a_bar_on_a_terminal_leaves_nothing_in_a_log(onnx_path: Path, few_images: Path, forks: Forks) -> None:
    command = ("evaluate", onnx_path, "--data", few_images, "--batch", 1, "--statistics", "cifar10")
    bar = re.compile(r"[━╸]")
    shown = on_a_terminal(forks.command, *command)
    assert bar.search(shown) and f"{ESCAPE}[2K" in shown  # drawn, and wiped off again
    quiet = on_a_terminal(forks.command, *command, "--quiet")
    assert not bar.search(quiet) and "top-1 error" in quiet
    done = run(*command)
    assert done.exit_code == 0 and done.stderr == "" and not bar.search(done.output)


@long
def test_tables_have_no_colours_that_nobody_wanted(onnx_path: Path, forks: Forks, warm: None) -> None:
    command = ("bench", onnx_path, "--rounds", 1, "--seconds", 0, "--warmup", 0)
    assert not re.search(rf"{ESCAPE}\[([0-9]+;)*([34][0-8]|9[0-7]|10[0-7])[;m]", on_a_terminal(forks.command, *command, NO_COLOR="1"))
    assert ESCAPE not in run(*command).output


def test_quiet_prints_what_was_asked_for_alone(checkpoint_path: Path, tmp_path: Path) -> None:
    model, artifact = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    for command in (
        ("convert", checkpoint_path, "-o", model, "--quiet"),
        ("export", checkpoint_path, "--onnx", "-o", artifact, "-q"),  # which says elsewhere that it converts first
        ("-q", "verify", artifact, model),
    ):
        done = run(*command)
        assert (done.exit_code, done.output) == (0, ""), command
    assert model.exists() and artifact.exists()
    assert "condensenet 4-4-4" in run("inspect", artifact, "--quiet").output
    assert run("verify", artifact, model, "--json", "-q").output.startswith("[")
    failed = run("verify", artifact, tmp_path / "none", "-q")
    assert failed.exit_code == 4 and failed.output.startswith("Error: ")
    assert "wrote" in run("export", model, "--onnx", "-o", artifact).output  # quiet is forgotten by the next command


def test_verbose_says_what_is_done(onnx_path: Path, tmp_path: Path, checkpoint_path: Path) -> None:
    done = run("-v", "export", checkpoint_path, "--onnx", "-o", tmp_path / "m.onnx")
    assert done.exit_code == 0
    steps = [line for line in done.stderr.splitlines() if re.match(r" +\d+\.\d{3} s  ", line)]
    for word in ("read", "converted", "exporting", "opened", "compared", "wrote"):
        assert any(f" {word}" in line for line in steps), word
    assert not any(mark in line for line in steps for mark in ("{'", "<function", " at 0x", "None"))  # words, and no Python
    assert not re.search(r"\d\.\d{3} s  ", run("inspect", onnx_path).output)


def test_very_verbose_shows_where_an_error_was_raised(tmp_path: Path) -> None:
    assert "Traceback" not in run("-v", "inspect", tmp_path / "none").stderr
    done = run("inspect", tmp_path / "none", "-vv")
    assert done.exit_code == 4 and "Traceback" in done.stderr and "in check_input" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_a_log_line_can_not_steer_the_terminal(tmp_path: Path) -> None:
    name = tmp_path / "a\x1b[2Jb\nc"
    name.write_bytes(b"\0")
    done = run("-v", "inspect", name)
    assert ESCAPE not in done.stderr and all(line.isprintable() for line in done.stderr.splitlines())
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["exprot"], "Did you mean export?"),
        (["convrt", "x"], "Did you mean convert?"),
        (["zzz"], "Expected one of inspect, "),
        (["export", "m", "--onxn"], "Did you mean '?--onnx'?"),
        (["bench", "--round", "3", "--tread", "2"], "--rounds"),
        (["export", "m", "--onnx", "--precision", "fp61"], "'fp16'"),
        (["export", "m"], "expected --onnx, --native or --tensorrt"),
        (["run", "m"], "IMAGE..."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistyped(arguments: list[str], hint: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert re.search(hint if "?'" in hint or hint.startswith("Did") else re.escape(hint), done.stderr), done.stderr
    assert "--help" in done.stderr


def test_a_mistyped_file_and_folder(onnx_path: Path) -> None:
    done = run("inspect", onnx_path.with_name("modle.onnx"))
    assert done.exit_code == 4 and f"no such file; did you mean {onnx_path}?" in done.stderr
    done = run("inspect", onnx_path.parent / "none" / "model.onnx")
    assert done.exit_code == 4 and f"there is no folder {onnx_path.parent / 'none'}" in done.stderr


def test_version() -> None:
    done = run("--version")
    assert re.fullmatch(r"cnet-deploy \d+\.\d+\.\d+\n", done.output)


COMPLETE = """
source <(cnet-deploy completion bash)
COMP_WORDS=({words})
COMP_CWORD={place}
_cnet_deploy_completion cnet-deploy
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("cnet-deploy ex", {"export"}),
        ("cnet-deploy export --onn", {"--onnx"}),
        ("cnet-deploy bench condensenet-74", {"condensenet-74-g4", "condensenet-74-g8", "condensenet-74"}),
        ("cnet-deploy bench --backend onn", {"onnxruntime"}),
        ("cnet-deploy bench --backend native,to", {"native,torch"}),
        ("cnet-deploy doctor op", {"openvino"}),
        ("cnet-deploy export m --precision b", {"bf16"}),
    ],
)
def test_bash_completes(words: str, found: set[str], tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    script = COMPLETE.format(words=words, place=len(shlex.split(words)) - 1)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [system_tool("bash"), "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert set(done.stdout.split()) == found, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0 and f"_CNET_DEPLOY_COMPLETE={shell}_complete" in done.output.replace("env ", "")


def test_completing_needs_no_torch() -> None:
    script = (
        "import sys, cnet_deploy.cli; from cnet_deploy.cli.types import complete_models, complete_backends; "
        "complete_models(None, None, ''); complete_backends(None, None, ''); print('torch' in sys.modules, 'onnx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == "False False\n"
