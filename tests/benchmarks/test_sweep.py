"""Sweeps of files and networks: planned, prepared, measured, gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import cnet_deploy as cd
from cnet_deploy.architecture import NAMED
from cnet_deploy.benchmarks.report import render
from cnet_deploy.benchmarks.results import Journal, Report, read_report
from cnet_deploy.benchmarks.sweep import backends_of, bench, target_for
from cnet_deploy.errors import InputRefused

from .helpers import QUICK


def test_files_and_named_networks_together(onnx_path: Path, checkpoint_path: Path) -> None:
    heard: list[str] = []
    totals: list[int] = []
    report = bench(
        [str(onnx_path), str(checkpoint_path), "condensenet-50"], threads=[1], settings=QUICK, progress=heard.append, total=totals.append
    )
    assert totals == [len(heard)]
    artifact, training, named = report.rows
    assert (artifact.flops, artifact.params) == (11_496_634, 80_362)
    assert training.flops == 21_721_450
    assert (named.flops, named.params) == (NAMED["condensenet-50"].flops, NAMED["condensenet-50"].params)
    backends = [{result.cell.backend for result in row.results} for row in report.rows]
    assert backends == [{"onnxruntime"}, {"torch"}, {"torch", "onnxruntime", "native"}]
    assert report.backends == ("torch", "onnxruntime", "native")
    assert report.base is artifact and report.ratio(artifact.results[0]) == 1
    assert all(result.error is None and result.median for result in report.results)

    stored = json.loads(json.dumps(report.to_dict()))
    assert stored["settings"] == {"rounds": 2, "seconds": 0.0, "least": 2, "warmup": 0.0, "rewarm": 0.0, "fresh": False}
    assert stored["rows"][0]["cells"][0]["rounds"] == artifact.results[0].rounds
    assert stored["environment"]["cpu"] and stored["complete"] is True
    assert [cell["cell"]["model"] for cell in stored["rows"][2]["cells"]] == ["condensenet-50"] * 3  # no temporary path

    for width in (180, 80):
        out = StringIO()
        Console(file=out, width=width).print(render(report, width))
        assert "condensenet-50" in out.getvalue() and "…" not in out.getvalue()  # nothing is cut off


def test_every_combination_of_threads_and_batch_is_a_group(onnx_path: Path) -> None:
    report = bench([str(onnx_path)], backends=["onnxruntime", "openvino"], threads=[1, 2], batches=[1, 4], settings=QUICK)
    assert report.groups == ((1, 1), (1, 4), (2, 1), (2, 4))
    assert [(r.cell.backend, r.cell.threads, r.cell.batch, r.batch) for r in report.results] == [
        (backend, threads, batch, batch) for threads, batch in report.groups for backend in ("onnxruntime", "openvino")
    ]
    found = report.rows[0].find("onnxruntime", (1, 4))
    assert found is not None and found.images_per_second == pytest.approx(4 / found.median) if found.median else False


def test_a_models_file_is_exported_for_the_backends_that_are_asked_for(converted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from cnet_deploy.checkpoint import save

    path = tmp_path / "m.safetensors"
    save(converted, path)
    report = bench([str(path)], backends=["native", "onnxruntime", "torch"], threads=[1], settings=QUICK)
    assert [result.error for result in report.results] == [None] * 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]
    assert backends_of(str(path), ()) == ("torch",)
    assert [target_for(backend, str(path)) for backend in ("torch", "torch.compile", "onnxruntime", "openvino", "native")] == [
        None, None, "onnx", "onnx", "native",
    ]  # fmt: skip


def test_what_can_not_be_made_fails_in_its_own_cells(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    report = bench(["condensenet-50", str(onnx_path)], backends=["native", "onnxruntime"], threads=[1], settings=QUICK)
    native, onnx = report.rows[0].results
    assert native.error is not None and "/no/such/compiler" in native.error and native.exit_code == 5
    assert onnx.error is None and onnx.median and report.rows[1].results[0].median
    out = StringIO()
    Console(file=out, width=180).print(render(report))
    assert "failed" in out.getvalue() and "condensenet-50 on native: " in out.getvalue()


def test_an_interrupted_sweep_goes_on(onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnet_deploy.benchmarks.results.WRITING_SHARE", 1e9)  # after every turn, however short it is here
    kept = tmp_path / "r.json"
    journal = Journal(kept)
    settings = replace(QUICK, rounds=3)

    class Stop(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith("round 3"):
            raise Stop

    def run(earlier: Report | None = None, **options: object) -> Report:
        asked: dict[str, object] = {"threads": [1, 2], "settings": settings, "keep": journal.keep, "earlier": earlier, **options}
        return bench([str(onnx_path)], **asked)  # type: ignore[arg-type]

    with pytest.raises(Stop):
        run(progress=stop)
    earlier = read_report(kept)
    assert earlier.after is None and [len(result.rounds) for result in earlier.results] == [2, 0]
    said: list[str] = []
    totals: list[int] = []
    report = run(read_report(kept), progress=said.append, total=totals.append)
    assert [len(result.rounds) for result in report.results] == [3, 3]
    assert report.rows[0].results[0].rounds[:2] == earlier.rows[0].results[0].rounds
    assert totals == [len(said)] and not any(text.startswith("round 1: ") for text in said[:4])
    journal.close(report)
    said.clear()
    assert run(read_report(kept), progress=said.append).to_dict() == json.loads(kept.read_text()) | {}
    assert said == []  # nothing was left to measure

    for change in ({"threads": [1]}, {"batches": [2]}, {"settings": QUICK}, {"backends": ["openvino"]}):
        with pytest.raises(InputRefused, match="of another sweep"):
            run(earlier, **change)
    elsewhere = replace(earlier, environment={**earlier.environment, "cpu": "Another"})
    with pytest.raises(InputRefused, match=r"measured elsewhere \(cpu: "):
        run(elsewhere)


def test_another_file_of_the_same_name_is_another_sweep(onnx_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_path.read_bytes())
    earlier = replace(bench([str(path)], threads=[1], settings=QUICK), after=None)
    path.unlink()
    cd.export(cd.load(Path(__file__).parents[2] / "examples" / "reference-cifar10.pth.tar"), "onnx", path, opset=19)
    with pytest.raises(InputRefused, match="models: "):
        bench([str(path)], threads=[1], settings=QUICK, earlier=earlier)


@pytest.mark.parametrize(
    ("models", "backends", "message"),
    [(["none.onnx"], [], "no network of that name"), ([], ["tflite"], "no backend is called"), (["README.md"], [], "no backend opens")],
)
def test_what_can_not_be_measured_is_told_first(models: list[str], backends: list[str], message: str) -> None:
    heard: list[str] = []
    with pytest.raises(InputRefused, match=message):
        bench(models, backends=backends, settings=QUICK, progress=heard.append)
    assert heard == []


def test_a_file_on_another_backend_than_its_own(onnx_path: Path) -> None:
    with pytest.raises(InputRefused, match="runs on onnxruntime, which is not among torch"):
        bench([str(onnx_path)], backends=["torch"], settings=QUICK)


def test_top_1_error_comes_from_the_manifest(converted, images_path: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = cd.export(converted, "onnx", tmp_path / "m.onnx", images=images_path).path
    assert bench([str(path)], threads=[1], settings=QUICK).rows[0].top1_error == pytest.approx(10.0)
