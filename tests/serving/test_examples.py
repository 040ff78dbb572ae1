"""The page docs/serving.md and the files in examples/serving, with a real server."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cases import long
from tests.conftest import Road
from tests.forks import Forks
from tests.release.containers import IMAGES, command, health_check, objects
from tests.release.pages import ROOT, shell, steps

from .server import ANSWER_SECONDS, Installation, serving

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def names(printed: str) -> list[str]:
    """Paths and classes, without logits or probabilities."""
    return [line.split("  ")[-1] for line in printed.splitlines()]


@pytest.fixture
def folder(road: Road, forks: Forks, tmp_path: Path) -> Path:
    """The README's files, and the repository that the page's first command writes."""
    shutil.copytree(road.folder, made := tmp_path / "page", symlinks=True)
    export, _ = steps(PAGE)[0]
    done = shell(export, made, forks.command)
    assert done.returncode == 0, done.stderr
    return made


@long
def test_the_client_names_the_classes_that_run_names(folder: Path, installation: Installation, forks: Forks, tmp_path: Path) -> None:
    """With the server started as in the container."""
    code = ast.parse((ROOT / "examples/serving/client.py").read_text(encoding="utf-8")).body
    own = [part for part in code[1:] if not isinstance(part, ast.Import | ast.ImportFrom)]
    assert own[-1].end_lineno - own[0].lineno + 1 < 20 and "has less than 20 lines besides its imports" in PAGE
    (client,) = re.findall(r"^    (python examples/serving/client\.py .*)$", PAGE, re.MULTILINE)
    (run,) = re.findall(r"which prints the classes that `(cnet-deploy run .*)` prints", PAGE)
    program, *flags = [word for word in command(IMAGES[0]) if not word.startswith("--model-repository=")]
    assert program == installation.program.name
    with serving(installation, folder / "repository", tmp_path / "log", *flags) as server:
        client = client.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        for images in ("examples/images/cat.png", "examples/images/truck.png examples/images/ship.png"):
            answered, expected = (
                shell(line.replace("examples/images/cat.png", images), folder, forks.command) for line in (client, run)
            )  # fmt: skip
            assert expected.returncode == 0 and names(answered.stdout) == names(expected.stdout) != [], answered.stderr
        done = shell(client + 32 * " examples/images/cat.png", folder, forks.command)
        assert (done.returncode, done.stdout) == (1, "") and "batch-size must be <= 32" in done.stderr


@long
def test_probes_and_health_checks(
    folder: Path, installation: Installation, system_tool: Callable[[str], str], tmp_path: Path
) -> None:  # fmt: skip
    """They succeed while the server is ready, and fail when it is gone."""
    programs = {"curl": system_tool("curl"), "python": sys.executable}
    checks = [health_check(image) for image in IMAGES]
    (container,) = objects()[0]["spec"]["template"]["spec"]["containers"]
    with serving(installation, folder / "repository", tmp_path / "log") as server:

        def are_well() -> list[bool]:
            lines = [[programs[program], *(word.replace(":8000", f":{server.port}") for word in words)] for program, *words in checks]
            done = [subprocess.run(line, capture_output=True, check=False, timeout=ANSWER_SECONDS) for line in lines]
            return [one.returncode == 0 for one in done]

        assert are_well() == [True, True]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server.get(container[probe]["httpGet"]["path"]).status == 200
        assert server.stop() == 0
        assert are_well() == [False, False]
