"""Every command in a folder full of code that nobody asked for: modules of every name, start-up files of Python, compilers in ``.``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cnet_deploy.cli import COMMANDS
from cnet_deploy.exporters.native import toolchain
from tests.cases import few
from tests.once import Once

ROOT = Path(__file__).parents[2]
START = ("sitecustomize", "usercustomize", "conftest", "_virtualenv", "ziglang", "cnet_deploy_plugin")
TOOLS = ("g++", "gcc", "cc", "c++", "clang++", "as", "ld", "zig", "python", "python3", "sh", "nvidia-smi", "aarch64-linux-gnu-g++")
# As a shell with these variables would have it, but that this process reads none of them: its own start is Python's affair.
DRIVER = """
import os, sys
os.environ.update(dict.fromkeys(("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"), os.getcwd()), PYTHONSTARTUP="conftest.py")
from cnet_deploy.cli import main
main.main(sys.argv[1:], prog_name="cnet-deploy")
"""


class Trap(NamedTuple):
    """A folder full of canaries, and the file that each writes its name to."""

    folder: Path
    sung: Path

    def run(self, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command in it, with the current folder on $PATH."""
        path = os.pathsep.join(["", ".", os.environ["PATH"]])
        words = [str(word) for word in command]
        surroundings = {**os.environ, "PATH": path, **variables}
        return subprocess.run(words, cwd=self.folder, env=surroundings, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    found = Trap(tmp_path / "trap", tmp_path / "sung")
    found.folder.mkdir()
    found.sung.touch()
    sing = f"open({os.fspath(found.sung)!r}, 'a').write(__name__ + '\\n')\n"
    packages = {name for name in importlib.metadata.packages_distributions() if name.isidentifier() and name != "cnet_deploy"}
    for name in {*sys.stdlib_module_names, *packages, *START}:
        (found.folder / f"{name}.py").write_text(sing)
    (found.folder / "canary.pth").write_text(f"import sys; {sing}")
    for name in TOOLS:
        (found.folder / name).write_text(f"#!/bin/sh\necho {name} >> '{found.sung}'\n")
        (found.folder / name).chmod(0o755)
    return found


@pytest.fixture(scope="session")
def models(once: Once, checkpoint_path: Path, onnx_path: Path) -> Path:
    def make(place: Path) -> None:
        (place / "model.onnx").write_bytes(onnx_path.read_bytes())
        (place / "model.onnx.json").write_bytes(Path(f"{onnx_path}.json").read_bytes())
        (place / "model.pth.tar").symlink_to(checkpoint_path)

    return once("for-canaries", make)


LINES = {
    "doctor": "doctor onnxruntime",
    "export": "export {models}/model.pth.tar --native --target host -o {out}/m.so",
    "bench": "bench {models}/model.onnx --rounds 1 --seconds 0 --warmup 0",
    "gate": "gate {models}/model.pth.tar {models}/model.onnx --backend onnxruntime --max-rounds 8 --seconds 0.01",
    "inspect": "inspect {models}/model.onnx",
    "convert": "convert {models}/model.pth.tar -o {out}/m.safetensors",
    "verify": "verify {models}/model.onnx {models}/model.pth.tar",
    "run": "run {models}/model.onnx {root}/examples/images",
    "evaluate": "evaluate {models}/model.onnx --data {root}/examples/cifar10-test-500.bin",
    "compare": "compare {models}/model.onnx --backend onnxruntime --rounds 1 --seconds 0 --warmup 0",
    "train": "train --help",
    "include": "include",
    "completion": "completion bash",
}
LONG = ("doctor", "export")  # that take long: in `make test-all`


def test_every_command_is_tried() -> None:
    assert set(LINES) == set(COMMANDS)


@pytest.mark.parametrize("name", few(sorted(LINES, key=lambda name: name in LONG), len(LINES) - len(LONG)))
def test_a_command_runs_nothing_of_the_current_folder(name: str, trap: Trap, models: Path, tmp_path: Path, quick_compiler: Path) -> None:
    places = {"models": models, "out": tmp_path, "root": ROOT}
    words = [word.format(**places) for word in LINES[name].split()]
    done = trap.run(sys.executable, "-I", "-c", DRIVER, *words, CXX=str(quick_compiler), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert trap.sung.read_text() == ""
    assert done.returncode in ((0, 1, 3) if name == "gate" else (0,)), done


def test_python_m_runs_nothing_of_the_current_folder(trap: Trap) -> None:
    """But for what Python itself imports before it comes to the package."""
    (empty := trap.folder / "an_empty_package").mkdir()
    (empty / "__init__.py").touch()
    (empty / "__main__.py").touch()
    while trap.run(sys.executable, "-m", "an_empty_package") and (sung := set(trap.sung.read_text().split())):
        for name in sung:
            (trap.folder / f"{name}.py").unlink()
        trap.sung.write_text("")
    assert all((trap.folder / f"{name}.py").exists() for name in ("__future__", "json", "difflib", "subprocess", "click"))
    done = trap.run(sys.executable, "-m", "cnet_deploy", "--version")
    assert done.stdout.startswith("cnet-deploy ") and trap.sung.read_text() == "", (trap.sung.read_text(), done)


def test_the_console_script_runs_nothing_of_the_current_folder(trap: Trap) -> None:
    done = trap.run(Path(sys.executable).with_name("cnet-deploy"), "--version")
    assert done.stdout.startswith("cnet-deploy ") and trap.sung.read_text() == ""


def test_the_compiler_of_pypi_is_the_installed_one(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang", reason="needs the extra: cnet-deploy[compiler]")
    monkeypatch.chdir(trap.folder)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv("PATH", ":.")
    monkeypatch.setattr(toolchain.subprocesses, "tool", lambda _: None)
    compiler = toolchain.find_compiler("riscv64" if platform.machine() == "aarch64" else "aarch64")
    assert compiler.is_zig and Path(compiler.command[0]).is_absolute() and trap.folder not in Path(compiler.command[0]).parents
    assert trap.sung.read_text() == ""


def test_onnxruntime_sends_and_leaves_nothing(onnx_path: Path, tmp_path: Path) -> None:
    """Its telemetry, which is on by default, keeps a file in the folder for temporary files."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    line = [sys.executable, "-m", "cnet_deploy", "run", onnx_path, "examples/images/cat.png"]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not [*tmp_path.iterdir()]
