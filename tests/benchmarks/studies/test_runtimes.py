"""benchmarks/studies/runtimes.py and condensenet_v2.py, in haste: that every part of them measures something and keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnet_deploy.benchmarks.measure.rounds import Cell, Settings
from cnet_deploy.benchmarks.studies import condensenet_v2
from cnet_deploy.benchmarks.studies.runtimes import Suite
from cnet_deploy.errors import InputRefused
from cnet_deploy.hardware.cpu import host_isas
from tests.cases import exhaustive, long

pytest.importorskip("openvino", reason="needs the extra: cnet-deploy[openvino]")
pytestmark = pytest.mark.usefixtures("warm")
QUICK = Settings(rounds=1, seconds=0.0, least=2, warmup=0.0, rewarm=0.0)
EXAMPLE = Path(__file__).parents[3] / "examples" / "native" / "classify.c"


@exhaustive("tests/benchmarks/sweep/test_plan.py::test_every_combination_of_threads_and_batch_is_a_group")
def test_every_part_of_the_suite(tmp_path: Path) -> None:
    said: list[str] = []
    suite = Suite(tmp_path, said.append, QUICK)
    suite.fp32("condensenet-50", 1, compiled=False, batch=2)
    entry = suite.results[-1]
    assert entry["times_as_fast"] > 0 and entry["best_peer"].startswith(("onnxruntime", "openvino")) and entry["batch"] == 2
    assert [cell["cell"]["batch"] for cell in entry["cells"]] == [2] * 5 and all(cell["error"] is None for cell in entry["cells"])
    assert all("/" not in cell["cell"]["model"] for cell in entry["cells"])  # no path of this machine
    suite.bf16("condensenet-50", 1)
    suite.utilisation("condensenet-50", next(isa for isa in host_isas() if isa in ("avx512", "avx2", "neon", "baseline")), 1)
    assert 0 < suite.results[-1]["share_of_peak"] < 1.5
    suite.process("condensenet-50", EXAMPLE)
    whole, bytes_ = suite.results[-2:]
    assert (whole["precision"], bytes_["precision"]) == ("fp32", "int8")
    assert all(len(entry["seconds"]) == 20 and min(entry["peak_kilobytes"]) > 1000 for entry in (whole, bytes_))
    assert [bar["most"] for bar in bytes_["bars"]] == [1.0, 1.0] and all(bar["measured"] > 0 for bar in bytes_["bars"])
    suite.int8("condensenet-50", 1)
    entry = suite.results[-1]
    labels = [cell["cell"]["label"] for cell in entry["cells"] if cell["error"] is None]
    assert labels[:2] == ["native", "native int8"] and {"openvino int8, as it is", "onnxruntime int8, dense 1x1"} <= set(labels)
    assert set(entry["missing"]) <= {"nncf", "nncf-dense"}  # which only `make bench` installs
    assert [(bar["what"], bar.get("least")) for bar in entry["bars"]] == [
        ("times as fast as OpenVINO's int8", None),
        ("times as fast as native fp32", 1.8),
    ]
    suite.run("a peer that fails", [Cell("native", str(tmp_path / "none.so"), "native", 1)])
    assert "no such file" in said[-1] and len(suite.results) == 7


@long
def test_condensenet_v2_beside_other_runtimes(tmp_path: Path, onnx_path: Path) -> None:
    """Any network stands for the authors' here: what counts is that it is measured as it is."""
    authors = tmp_path / "authors"
    authors.mkdir()
    for letter in "abc":
        (authors / f"condensenet-v2-{letter}.onnx").write_bytes(onnx_path.read_bytes())
    said: list[str] = []
    suite = condensenet_v2.Networks(tmp_path, said.append, QUICK)
    suite.authors = authors
    suite.v2("condensenet-v2-a", 1)
    (entry,) = suite.results
    forms = [f"{backend}, {form}" for backend in ("onnxruntime", "openvino") for form in ("gather", "dense", "absorbed")]
    labels = ["native", *forms, "authors' form in onnxruntime"]
    assert [cell["cell"]["label"] for cell in entry["cells"]] == labels and all(cell["error"] is None for cell in entry["cells"])
    assert [bar["measured"] > 0 and bar["passed"] for bar in entry["bars"]] == [None, None]  # limits are for V2-C
    assert entry["bytes"]["authors"] == onnx_path.stat().st_size and set(entry["bytes"]) == {"native", *condensenet_v2.FORMS, "authors"}
    json.dumps(entry)


def test_the_authors_networks_are_asked_for_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "condensenet-v2-a.onnx").write_bytes(b"x")
    with pytest.raises(InputRefused, match=r"has no condensenet-v2-b.onnx; expected the authors' converted networks"):
        condensenet_v2.main(tmp_path / "r.json", tmp_path)
    assert not (tmp_path / "r.json").exists()
