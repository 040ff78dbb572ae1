"""The package: who may import whom, what is at its top, and what a wheel has."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import cnet_deploy as cd
from tests.cases import long

ROOT = Path(__file__).parents[2]


def test_import_rules() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_top_of_the_package_is_as_contributing_has_it() -> None:
    pages = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = pages.partition("| in `cnet_deploy/` |")[2].partition("\n\n")[0]
    there = {path.name + "/" * path.is_dir() for path in (ROOT / "cnet_deploy").iterdir()}
    assert sorted(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == sorted(there - {"__pycache__/"})


def test_public_names_are_all_there() -> None:
    for name in cd.__all__:
        assert getattr(cd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cd.nothing


@pytest.mark.parametrize("target", ["demo", "test", "test-all", "attack", "bench", "bench-gpu", "lint", "docs", "package"])
def test_make_targets(target: str, system_tool: Callable[[str], str]) -> None:
    done = subprocess.run([system_tool("make"), "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and ".venv/bin/" in done.stdout


@long
def test_sdist_to_wheel_to_elsewhere(tmp_path: Path, checkpoint_path: Path) -> None:
    """What is built is left in the folder that CNET_DIST names, for .ci/package to go on with."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "dist", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", copy], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:] + built.stdout[-3000:]
    if wanted := os.environ.get("CNET_DIST"):
        shutil.rmtree(wanted, ignore_errors=True)
        shutil.copytree(tmp_path / "dist", wanted)
    (sdist,), (wheel,) = (tmp_path / "dist").glob("*.tar.gz"), (tmp_path / "dist").glob("*.whl")
    kinds = ("*.py", "*.cpp", "*.hpp", "*.h", "*.j2", "*.css")
    expected = {str(path.relative_to(ROOT)) for kind in kinds for path in (ROOT / "cnet_deploy").rglob(kind)} | {"cnet_deploy/py.typed"}
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(expected)  # each module once, none through the links at the root
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert not {"exporters", "benchmarks", "cli.py"} & tops

    elsewhere = tmp_path / "elsewhere"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", elsewhere, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    modules = sorted(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names if name.endswith(".py"))
    script = (
        "import importlib, cnet_deploy\n"
        f"for name in {[name for name in modules if not name.endswith('__main__')]!r}: importlib.import_module(name)\n"
        "print(cnet_deploy.__file__)"
    )
    surroundings = {"PYTHONPATH": str(elsewhere), "PATH": "/usr/bin:/bin"}
    imported = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.strip() == str(elsewhere / "cnet_deploy" / "__init__.py")
    command = [sys.executable, elsewhere / "bin" / "cnet-deploy", "convert", checkpoint_path, "-o", tmp_path / "m.safetensors"]
    ran = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "wrote" in ran.stdout, ran.stderr
    # The kernels' sources came along: nothing is compiled when it is installed.
    command = [*command[:2], "export", tmp_path / "m.safetensors", "--native", "-o", tmp_path / "m.so"]
    ran = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "wrote" in ran.stdout, ran.stderr


def test_only_public_names_are_listed() -> None:
    """`dir` shows what a user may use and nothing of how it is made; the types of what functions return are among it."""
    program = "import cnet_deploy as cd; print(*(name for name in dir(cd) if not name.startswith('__')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(cd.__all__) - {"__version__"}
    for function in (cd.load, cd.convert, cd.lower, cd.export, cd.verify, cd.open_session, cd.classify, cd.evaluate, cd.inspect):
        returned = str(inspect.signature(function).return_annotation)
        own = {name for name in re.findall(r"\w+", returned) if name[0].isupper()} - {"Iterator", "Sequence"}
        assert own <= set(cd.__all__), (function, returned)
