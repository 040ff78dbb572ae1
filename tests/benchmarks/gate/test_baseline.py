"""The gate against stored rounds: the same artifact, machine and way of measuring, or nothing is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cnet_deploy.cli import main
from tests.benchmarks.gate.gating import run
from tests.cases import long

EXAMPLES = Path(__file__).parents[3] / "examples"

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def stored(warm: None, artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("baseline") / "b.json"
    options = ["--threads", "1", "--rounds", "8", "--seconds", "0.02", "--warmup", "0.02", "--save-baseline", str(path)]
    done = CliRunner().invoke(main, ["bench", str(artifacts["small"]), *options])
    assert done.exit_code == 0, done.output
    return path


class TestBaseline:
    def test_the_same_artifact_on_the_same_machine(self, stored: Path, artifacts: dict[str, Path]) -> None:
        done = run("--baseline", stored, artifacts["small equal"], "--tolerance", "60%", "--max-rounds", "16")
        assert done.exit_code in (0, 3) and "regression" not in done.stdout

    @long
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
        done = run("--baseline", path, artifacts["small equal"])
        assert done.exit_code == 5 and "cannot compare: it was measured elsewhere" in done.stderr and next(iter(change)) in done.stderr

    @pytest.mark.parametrize(("flag", "value"), [("--threads", 2), ("--backend", "native")])
    def test_threads_and_backend_are_part_of_it(self, flag: str, value: object, stored: Path, artifacts: dict[str, Path]) -> None:
        done = run("--baseline", stored, artifacts["small equal"], flag, value)
        assert done.exit_code == 5 and "cannot compare" in done.stderr

    def test_a_run_of_lasting_processes_is_no_baseline(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        options = ["--threads", "1", "--rounds", "1", "--seconds", "0", "--json", str(path)]
        assert CliRunner().invoke(main, ["bench", str(artifacts["small"]), *options]).exit_code == 0
        done = run("--baseline", path, artifacts["small equal"])
        assert done.exit_code == 5 and "--save-baseline" in done.stderr
        refused = CliRunner().invoke(main, ["bench", str(artifacts["small"]), "--rounds", "7", "--save-baseline", str(path)])
        assert refused.exit_code == 2 and "8 rounds" in refused.stderr

    def test_missing_or_damaged(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        done = run("--baseline", tmp_path / "none.json", artifacts["small equal"])
        assert done.exit_code == 5 and "record a baseline with" in done.stderr
        (tmp_path / "b.json").write_text("{}")
        assert run("--baseline", tmp_path / "b.json", artifacts["small equal"]).exit_code == 4
        assert run("--baseline", tmp_path / "b.json", artifacts["missing"]).exit_code == 5

    @long
    def test_cells_in_int8(self, tmp_path: Path, checkpoint_path: Path, compiled: None) -> None:
        """What is stored was exported in int8, and head is exported so too."""
        stored, images = tmp_path / "b.json", EXAMPLES / "cifar10-test-500.bin"
        hasty = ["--threads", "1", "--rounds", "8", "--seconds", "0.02", "--warmup", "0.02"]
        measured = ["bench", str(checkpoint_path), "--backend", "native.int8", "--calibrate", str(images), *hasty]
        done = CliRunner().invoke(main, [*measured, "--save-baseline", str(stored)])
        assert done.exit_code == 0 and f"int8 was calibrated with up to 256 images of {images}." in done.output.replace("\n", " ")
        assert json.loads(stored.read_text())["notes"]
        judged = run("--baseline", stored, checkpoint_path, "--calibrate", images, "--tolerance", "60%", "--max-rounds", "16")
        assert judged.exit_code in (0, 1, 3) and "native.int8, ms" in judged.stdout  # whatever a busy machine measures
        assert "calibrated with up to 256 images" in judged.stderr
