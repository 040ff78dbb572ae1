"""The workflows and the action: valid by GitHub's own schemas, and their scripts run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnet_deploy.cli.gate import gate
from tests.cases import few, long
from tests.forks import Forks

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HASTE = "--seconds 0 --warmup 0"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("schema", "paths"), [("github-actions", [ACTION]), ("github-workflows", WORKFLOWS)])
def test_schema(schema: str, paths: list[Path]) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_input_becomes_text_of_a_script() -> None:
    """What a pull request may name, a shell must not run."""
    scripts = [step["run"] for step in load(ACTION)["runs"]["steps"] if "run" in step]
    scripts += [step["run"] for path in WORKFLOWS for job in load(path)["jobs"].values() for step in job["steps"] if "run" in step]
    assert len(scripts) >= 5 and not any("${{" in script for script in scripts)


def test_actions_are_pinned() -> None:
    """By a commit, the release beside it; a tag can be moved."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ACTION, *WORKFLOWS))
    used = re.findall(r"uses: (.*)", text)
    used += re.findall(r"uses: (actions/.*)", (ROOT / "docs" / "ci.md").read_text(encoding="utf-8"))
    assert len(used) >= 10 and all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used), used
    assert len(dict.fromkeys(used)) == len({action.partition("@")[0] for action in used})  # one release of each


def test_what_is_installed_is_constrained() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ACTION, *WORKFLOWS))
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert len(installs) >= 3 and all("constraints.txt" in line for line in installs), installs


def pieces(language: str) -> list[Any]:
    """The blocks of docs/ci.md that are to be copied."""
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def test_the_workflow_to_copy_is_valid(tmp_path: Path) -> None:
    workflow, steps = pieces("yaml")
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    path = tmp_path / "model-latency.yml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(steps[0]["with"]) <= set(load(ACTION)["inputs"])
    wanted = {name for name, entry in load(ACTION)["inputs"].items() if entry.get("required")}
    assert wanted <= set(steps[0]["with"])
    version = re.search(r'__version__ = "(.*)"', (ROOT / "cnet_deploy" / "version.py").read_text(encoding="utf-8"))
    assert version is not None
    assert steps[0]["uses"].endswith(f"/cnet-deploy@v{version[1]}")
    scripts = [step["run"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step]
    assert not any("${{" in script for script in scripts)
    assert f"cnet-deploy@v{version[1]}" in scripts[0] and "[cpu]" in scripts[0]


def test_the_command_of_the_workflow_to_copy_is_the_gates() -> None:
    """Its options are those of the command, with values that it takes."""
    workflow = pieces("yaml")[0]
    script = next(step["run"] for step in workflow["jobs"]["gate"]["steps"] if step.get("name") == "Gate")
    program, command, *arguments = shlex.split(script.replace("\\\n", " "))
    assert (program, command) == ("cnet-deploy", "gate")
    context = gate.make_context("gate", arguments)
    assert context.params["models"] == ("base/$MODEL", "head/$MODEL")
    assert (context.params["tolerance"], context.params["threads"]) == (0.05, 1)
    inline = re.findall(r"`([^`]*--[a-z-]+[^`]*)`", (ROOT / "docs" / "ci.md").read_text(encoding="utf-8"))
    options = {option for param in gate.params for option in param.opts}
    ours = {word for text in inline if not text.startswith("gh ") for word in re.findall(r"--[a-z][a-z-]*", text)}
    assert ours and ours <= options, ours - options


def step(name: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return next(found for found in steps if found.get("name") == name)


def shim(path: Path, *words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexec " + " ".join(f'"{word}"' for word in words) + ' "$@"\n')
    path.chmod(0o755)


def bash(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As GitHub runs a step."""
    places = {"GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "GITHUB_OUTPUT": str(folder / "output")}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "GITHUB_ACTIONS": "true", **places, **variables},
    )  # fmt: skip


class TestAction:
    @pytest.fixture(autouse=True)
    def program(self, forks: Forks) -> None:
        """The command that the action calls, its processes forked."""
        self.command = forks.command

    def run(self, folder: Path, base: Path | str, head: Path | str, **inputs: str) -> subprocess.CompletedProcess[str]:
        action = load(ACTION)
        found = step("Gate", action["runs"]["steps"])
        given = {name: str(entry.get("default", "")) for name, entry in action["inputs"].items()}
        given |= {"base": str(base), "head": str(head), "max-rounds": "8", "threads": "1", "tolerance": "90%", **inputs}
        variables = {"GATE": str(self.command), "VERDICT": str(folder / "latency-gate.json")}
        for name, value in found["env"].items():
            if asked := re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", value):
                variables[name] = given[asked[1]]
        assert set(variables) == set(found["env"])
        return bash(found["run"].replace('"$GATE" gate', f'"$GATE" gate {HASTE}'), folder, **variables)

    @long
    def test_a_name_with_quotes_and_blanks(self, onnx_path: Path, tmp_path: Path) -> None:
        head = tmp_path / "he'ad \"$(touch hacked) `.onnx"
        shutil.copy(onnx_path, head)
        done = self.run(tmp_path, onnx_path, head)
        verdict = {0: "pass", 3: "inconclusive"}[done.returncode]
        assert f"verdict={verdict}\n" in (tmp_path / "output").read_text() and "title=Latency gate" in done.stdout
        assert f"Latency gate: {verdict}" in (tmp_path / "summary.md").read_text()
        assert not (tmp_path / "hacked").exists()

    def test_a_missing_base_fails_the_job(self, onnx_path: Path, tmp_path: Path) -> None:
        done = self.run(tmp_path, "--none.onnx", onnx_path, inconclusive="pass")
        assert done.returncode == 5 and "verdict=not measured\n" in (tmp_path / "output").read_text()

    @pytest.mark.parametrize(("inconclusive", "code"), few([("pass", 0), ("fail", 3)]))
    @long
    def test_what_noise_does_is_the_users_choice(self, inconclusive: str, code: int, onnx_path: Path, tmp_path: Path) -> None:
        done = self.run(tmp_path, onnx_path, onnx_path, tolerance="0.000001", inconclusive=inconclusive)
        assert done.returncode == code and "verdict=inconclusive\n" in (tmp_path / "output").read_text()


@long
def test_the_workflow_gates_one_revision_against_the_other(tmp_path: Path) -> None:
    """With the package and a copy of it in place of the two revisions."""
    steps = load(ROOT / ".github" / "workflows" / "latency.yml")["jobs"]["gate"]["steps"]
    for side in ("base", "head"):
        shutil.copytree(ROOT / "cnet_deploy", tmp_path / side / "cnet_deploy", ignore=shutil.ignore_patterns("__pycache__", "results"))
        shim(tmp_path / f"venv-{side}" / "bin" / "python", "env", f"PYTHONPATH={tmp_path / side}", sys.executable)
    shim(tmp_path / "venv-head" / "bin" / "cnet-deploy", str(tmp_path / "venv-head" / "bin" / "python"), "-m", "cnet_deploy")
    script = step("Gate head against base", steps)["run"]
    assert "--tolerance 5%" in script
    script = script.replace("--tolerance 5%", f"--tolerance 90% --max-rounds 8 --threads 1 {HASTE}")
    done = bash(script, tmp_path, NETWORK="condensenet-50", BACKEND="native")
    assert done.returncode in (0, 3), done.stderr
    assert "base: exporting condensenet-50 for native" in done.stderr
    text = (tmp_path / "summary.md").read_text()
    assert str(tmp_path / "base" / "cnet_deploy") in text and str(tmp_path / "head" / "cnet_deploy") in text
    assert (tmp_path / "latency-condensenet-50-native.json").exists()
