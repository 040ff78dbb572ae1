"""Sweeps of files and networks: planned, prepared, measured, gone on with."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import cnet_deploy as cd
from cnet_deploy.benchmarks.gate.sides import make_side
from cnet_deploy.benchmarks.report.terminal import render, run
from cnet_deploy.benchmarks.report.text import markdown
from cnet_deploy.benchmarks.sweep.plan import backends_of, bench, default_backends, export_options, target_for
from cnet_deploy.benchmarks.sweep.results import Journal, Report, read_report
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.hardware.cuda import why_no_device
from cnet_deploy.models.architecture import NAMED
from tests.benchmarks.helpers import QUICK
from tests.cases import long

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture
def model_path(converted, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    from cnet_deploy.checkpoints.save import save

    path = tmp_path / "m.safetensors"
    save(converted, path)
    return path


@long
def test_files_and_named_networks_together(onnx_path: Path, checkpoint_path: Path) -> None:
    heard: list[str] = []
    totals: list[int] = []
    report = bench(
        [str(onnx_path), str(checkpoint_path), "condensenet-50"], threads=[1], settings=QUICK, progress=heard.append, total=totals.append
    )
    assert totals == [len(heard)]
    artifact, training, named = report.rows
    assert (artifact.flops, artifact.params) == (11_496_634, 80_362)
    assert (training.flops, training.params) == (11_496_634, 80_362)  # of the exports; torch runs the training form
    assert [training.counted(result)[0] for result in training.results] == [21_721_450, 11_496_634, 11_496_634]
    assert (named.flops, named.params) == (NAMED["condensenet-50"].flops, NAMED["condensenet-50"].params)
    backends = [{result.cell.backend for result in row.results} for row in report.rows]
    assert backends == [{"onnxruntime"}, {"torch", "onnxruntime", "native"}, {"torch", "onnxruntime", "native"}]
    assert report.backends == ("torch", "onnxruntime", "native")
    assert report.base is artifact and report.ratio(artifact.results[0]) == 1
    assert all(result.error is None and result.median for result in report.results)

    stored = json.loads(json.dumps(report.to_dict()))
    assert stored["settings"] == {"rounds": 2, "seconds": 0.0, "least": 2, "warmup": 0.0, "rewarm": 0.0, "fresh": False}
    assert stored["rows"][0]["cells"][0]["rounds"] == artifact.results[0].rounds
    assert stored["environment"]["cpu"] and stored["complete"] is True
    assert [cell.get("flops") for cell in stored["rows"][1]["cells"]] == [21_721_450, None, None]
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


def test_a_models_file_is_exported_for_the_backends_that_are_asked_for(model_path: Path, tmp_path: Path) -> None:
    path = model_path
    report = bench([str(path)], backends=["native", "onnxruntime", "torch"], threads=[1], settings=QUICK)
    assert [result.error for result in report.results] == [None] * 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]
    assert backends_of(str(path), ()) == default_backends("cpu")  # as a name
    assert backends_of(str(path), (), "cuda") == default_backends("cuda")
    assert [target_for(backend, str(path)) for backend in ("torch", "torch.compile", "onnxruntime", "openvino", "native")] == [
        None, None, "onnx", "onnx", "native",
    ]  # fmt: skip


@long
def test_one_of_several_sets_of_weights(converted, onnx_path: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """As it is, and exported first; the gate takes the same."""
    two = tmp_path / "two.pth"
    torch.save({"model": converted.state_dict(), "model_ema": converted.state_dict()}, two)
    which = ["torch", "onnxruntime"]
    (row,) = bench([str(two)], backends=which, threads=[1], settings=QUICK, weights="model_ema").rows
    assert [result.error for result in row.results] == [None, None] and row.flops == converted.architecture.flops
    (row,) = bench([str(two)], threads=[1], settings=QUICK).rows
    assert "choose one with --weights KEY" in (row.results[0].error or "")
    with pytest.raises(InputRefused, match="weights 'ema': no file that is measured is a checkpoint"):
        bench([str(onnx_path)], weights="ema")
    made = [
        make_side("head", str(two), backend, 1, sys.executable, tmp_path, lambda _: None, "cpu", weights="model_ema") for backend in which
    ]
    assert [side.cell.options for side in made] == [{"weights": "model_ema"}, {}] and made[0].model_figures == made[1].model_figures


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
    monkeypatch.setattr("cnet_deploy.benchmarks.sweep.results.WRITING_SHARE", 1e9)  # after every turn, however short it is here
    kept = tmp_path / "r.json"
    journal = Journal(kept)
    settings = replace(QUICK, rounds=3)

    class Stop(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith("round 3"):
            raise Stop

    def again(earlier: Report | None = None, **options: object) -> Report:
        asked: dict[str, object] = {"threads": [1, 2], "settings": settings, "keep": journal.keep, "earlier": earlier, **options}
        return bench([str(onnx_path)], **asked)  # type: ignore[arg-type]

    with pytest.raises(Stop):
        again(progress=stop)
    earlier = read_report(kept)
    assert earlier.after is None and [len(result.rounds) for result in earlier.results] == [2, 0]
    said: list[str] = []
    totals: list[int] = []
    report = again(read_report(kept), progress=said.append, total=totals.append)
    assert [len(result.rounds) for result in report.results] == [3, 3]
    assert report.rows[0].results[0].rounds[:2] == earlier.rows[0].results[0].rounds
    assert totals == [len(said)] and not any(text.startswith("round 1: ") for text in said[:4])
    journal.close(report)
    said.clear()
    assert again(read_report(kept), progress=said.append).to_dict() == json.loads(kept.read_text()) | {}
    assert said == []  # nothing was left to measure

    for change in ({"threads": [1]}, {"batches": [2]}, {"settings": QUICK}, {"backends": ["openvino"]}, {"device": "cuda"}):
        with pytest.raises(InputRefused, match=r"of another sweep \((models|settings|cells|device|options)[^{}\[\]]*: .* here, .* there"):
            again(earlier, **change)
    elsewhere = replace(earlier, environment={**earlier.environment, "cpu": "Another"})
    with pytest.raises(InputRefused, match=r"measured elsewhere \(cpu: "):
        again(elsewhere)


@long
def test_variants_are_exported_apart(model_path: Path) -> None:
    report = bench([str(model_path)], backends=["onnxruntime", "onnxruntime.fp16", "openvino.bf16"], threads=[1], settings=QUICK)
    assert [result.error for result in report.results] == [None] * 3
    assert report.backends == ("openvino.bf16", "onnxruntime", "onnxruntime.fp16")
    plain, half, other = (Path(result.cell.model).name for result in report.results)
    assert plain != half and plain == other  # which reads the same file in its own precision


def test_export_options_of_variants() -> None:
    assert export_options("onnxruntime.fp16", 8) == {"precision": "fp16"} and export_options("torch.fp16", 8) == {}
    assert export_options("tensorrt.fp16.cudagraph", 8) == {"precision": "fp16", "batch": (8, 8, 8)}
    assert export_options("tensorrt.fp32", 1) == {"batch": (1, 1, 1)}


def test_with_one_model_ratios_are_to_the_fastest_backend(onnx_path: Path) -> None:
    heard: list[str] = []
    report = bench([str(onnx_path)], backends=["onnxruntime", "openvino"], threads=[1], settings=QUICK, notify=heard.append)
    assert len(heard) == 1 and heard[0].startswith("2 cells, 2 rounds: this takes about ")
    quickest = report.quickest((1, 1))
    assert quickest is not None and report.ratio(quickest) == 1
    assert sorted(report.ratio(result) or 0 for result in report.results)[0] <= 1
    assert "relative to the fastest backend" in markdown(report)
    assert "| M FLOPs | M params | backend | ms (p90) | ratio |" in markdown(report)


def test_a_cell_that_fails_is_no_success(onnx_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was asked for by name, or fails for another reason than a runtime that is not here."""
    monkeypatch.setenv("CXX", "/no/such/compiler")
    two = {"backends": ["onnxruntime", "native"], "threads": [1], "settings": QUICK, "quiet": True}
    with pytest.raises(Unavailable, match=r"1 of 2 cells could not be measured, the others are above; native: .*/no/such/compiler"):
        run(["condensenet-50"], **two)  # type: ignore[arg-type]
    assert "condensenet-50" in capsys.readouterr().out
    monkeypatch.setattr("cnet_deploy.benchmarks.sweep.plan.default_backends", lambda _: ("onnxruntime", "native"))
    assert run(["condensenet-50"], threads=[1], settings=QUICK, quiet=True).rows  # a runtime that happens to be missing


def test_what_was_exported_already_keeps_its_precision(onnx_path: Path, model_path: Path) -> None:
    with pytest.raises(InputRefused, match="not among onnxruntime.fp16; give its model"):
        bench([str(onnx_path)], backends=["onnxruntime.fp16"], settings=QUICK)
    assert backends_of(str(onnx_path), ["onnxruntime.tf32", "onnxruntime.fp16"]) == ("onnxruntime.tf32",)
    assert backends_of(str(model_path), ["onnxruntime.fp16", "tensorrt.bf16"]) == ("onnxruntime.fp16", "tensorrt.bf16")


def test_what_networks_are_measured_on() -> None:
    assert default_backends("cpu") == ("torch", "onnxruntime", "native")
    assert backends_of("vgg-16", ()) == ("torch", "onnxruntime")  # the native exporter knows the family alone
    assert backends_of("vgg-16", (), "cuda") == default_backends("cuda")
    assert {name.partition(".")[0] for name in default_backends("cuda")} == {"torch", "onnxruntime", "tensorrt"}
    with pytest.raises(InputRefused, match="no device is called 'tpu'; expected one of cpu, cuda"):
        bench(["condensenet-50"], device="tpu")


def test_tensorrt_runs_on_no_cpu() -> None:
    report = bench(["condensenet-50"], backends=["tensorrt.fp16"], threads=[1], settings=QUICK)
    (result,) = report.results
    assert (result.error, result.exit_code) == ("tensorrt.fp16 runs on no CPU; measure it with --device cuda", 5)


def test_without_a_gpu_every_cell_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    if why_no_device() is None:
        pytest.skip("a CUDA device is here")
    backends = ["torch", "torch.cudagraph.fp16", "onnxruntime", "tensorrt", "native"]
    with pytest.raises(Unavailable, match="nothing could be measured: ") as caught:
        run(["condensenet-50"], backends=backends, device="cuda", settings=QUICK)
    assert caught.value.exit_code == 5
    shown = capsys.readouterr().out
    assert "batch 1, cuda" in shown
    assert all(f"condensenet-50 on {backend}: " in shown for backend in backends)
    done = CliRunner().invoke(main, ["bench", "--device", "cuda", "--backend", "tensorrt.fp16", "condensenet-50", "--rounds", "1"])
    assert done.exit_code == 5 and f"nothing could be measured: {why_no_device()}" in done.stderr


@pytest.mark.gpu
def test_on_a_gpu(model_path: Path) -> None:
    backends = ["torch", "torch.cudagraph"]
    report = bench([str(model_path)], backends=backends, batches=[1, 4], threads=[1], device="cuda", settings=QUICK)
    assert [result.error for result in report.results] == [None] * 4
    for result in report.results:
        assert len(result.device_rounds) == len(result.transfer_rounds) == len(result.rounds) == QUICK.rounds
        assert result.end_to_end is not None and result.median is not None and result.end_to_end > result.median > 0
    assert report.environment["gpu"] and report.environment["driver"]
    out = StringIO()
    Console(file=out, width=180).print(render(report))
    assert "batch 4, cuda" in out.getvalue() and "with transfers ms" in out.getvalue()


def test_another_file_of_the_same_name_is_another_sweep(onnx_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_path.read_bytes())
    earlier = replace(bench([str(path)], threads=[1], settings=QUICK), after=None)
    path.unlink()
    cd.export(cd.load(Path(__file__).parents[3] / "examples" / "reference-cifar10.pth.tar"), "onnx", path, opset=19)
    with pytest.raises(InputRefused, match="models: "):
        bench([str(path)], threads=[1], settings=QUICK, earlier=earlier)


@pytest.mark.parametrize(
    ("models", "backends", "message"),
    [(["none.onnx"], [], "no network of that name"), ([], ["tflite"], "no backend is called"), (["README.md"], [], "is a text file")],
)
def test_what_can_not_be_measured_is_told_first(models: list[str], backends: list[str], message: str) -> None:
    heard: list[str] = []
    with pytest.raises(InputRefused, match=message):
        bench(models, backends=backends, settings=QUICK, progress=heard.append)
    assert heard == []


def test_a_file_on_another_backend_than_its_own(onnx_path: Path) -> None:
    with pytest.raises(InputRefused, match="runs on onnxruntime, which is not among torch"):
        bench([str(onnx_path)], backends=["torch"], settings=QUICK)


@long
def test_top_1_error_comes_from_the_manifest(converted, few_images, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = cd.export(converted, "onnx", tmp_path / "m.onnx", images=few_images).path
    assert bench([str(path)], threads=[1], settings=QUICK).rows[0].top1_error == pytest.approx(9.0)


def test_condensenet_v2_by_name_and_by_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three networks, or those beside the paper's; in int8 only where that is asked for, to be told why not."""
    assert backends_of("condensenet-v2-a", ()) == ("torch", "onnxruntime", "native")
    assert backends_of("condensenet-v2-a", ("native", "native.int8")) == ("native",)
    assert backends_of("condensenet-v2-a", ("native.int8",)) == ("native.int8",)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr("cnet_deploy.benchmarks.report.terminal.run", lambda models, **_: asked.append(models))
    for words in (["--family", "v2"], ["condensenet-50", "--family", "paper,v2"], []):
        done = CliRunner().invoke(main, ["bench", *words])
        assert done.exit_code == 0, done.output
    v2 = tuple(f"condensenet-v2-{letter}" for letter in "abc")
    assert asked[0] == v2 and asked[1][0] == "condensenet-50" and asked[1][-3:] == v2 and len(asked[1]) == 9 and asked[2] == ()
    refused = CliRunner().invoke(main, ["bench", "--family", "v3"])
    assert refused.exit_code == 2 and "'v3' is not one of 'paper', 'v2'" in refused.output


def test_condensenet_v2_is_measured() -> None:
    report = bench(["condensenet-v2-a"], backends=["torch"], threads=[1], settings=QUICK)
    (row,) = report.rows
    assert (row.flops, row.top1_error, row.title) == (NAMED["condensenet-v2-a"].flops, 35.6, "CondenseNet V2-A")
    assert row.results[0].error is None and row.results[0].median
