"""benchmarks/studies/v2_reference.py with a stand-in for the authors' code, which is not part of this repository."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cnet_deploy.benchmarks.studies import v2_reference
from cnet_deploy.benchmarks.studies.v2_reference import Compared, code_of, compare, main
from cnet_deploy.errors import CheckFailed, InputRefused
from cnet_deploy.models.architecture import Architecture
from tests.cases import long

SMALL = Architecture.v2((1,) * 5, (8,) * 5, groups=4, hard_swish_from=2, excitation_from=2, hidden_channels=16)
CODE = """
import functools
import torch
from utils import WRONG
from cnet_deploy.benchmarks.studies.v2_reference import NAMED
from cnet_deploy.models.build import build_random
from cnet_deploy.models.layers import IndexedUpdate, shuffle

def product(update, x):  # as theirs: torch's older exporter writes no sum of several rows for index_add
    rows = update.conv(shuffle(update.activation(update.norm(x)), x.shape[1] // update.groups))
    return torch.einsum("nrhw,rc->nchw", rows, torch.eye(len(update.index))[update.index])

def converted_cdnv2_a(args):
    print("DenseBlock 0 output channel 32")
    assert (args.dataset, args.num_classes) == ("imagenet", 1000)
    model = build_random(NAMED["condensenet-v2-a"], seed=WRONG)
    for update in [module for module in model.modules() if isinstance(module, IndexedUpdate)]:
        update.forward = functools.partial(product, update)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith("sfr.index")}

    def load_state_dict(state):
        assert {name: tuple(value.shape) for name, value in state.items() if not name.endswith("sfr.index")} == own
        assert tuple(state["features.denseblock_2.denselayer_1.sfr.index"].shape) == (24, 24)

    model.load_state_dict = load_state_dict
    return model
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As their repository is laid out."""
    for name, content in (("model/converted_condensenetv2.py", CODE), ("utils/__init__.py", "WRONG = 0\n")):
        (tmp_path / "clone" / name).parent.mkdir(parents=True)
        (tmp_path / "clone" / name).write_text(content)
    return tmp_path / "clone"


def test_names_of_their_modules_are_not_left(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "utils", mine := object())  # type: ignore[arg-type]
    before = [*sys.path]
    with code_of(clone) as code:
        assert code.WRONG == 0 and sys.modules["utils"] is not mine
    assert sys.path == before and sys.modules["utils"] is mine and not [name for name in sys.modules if name.startswith("model.")]


def test_a_folder_that_is_no_clone(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"has no model/converted_condensenetv2.py; expected a clone of github.com/jianghaojun"):
        main(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_differs_is_no_reference() -> None:
    same = Compared("condensenet-v2-a", 1e-7, 1e-6, 1e-6, {"our .onnx": 1_500_000})
    assert same.line() == "condensenet-v2-a: torch 1.0e-07, our ONNX 1.0e-06, their ONNX 1.0e-06 of the largest logit; our .onnx 1.5 MB"
    same.require_equal()
    for far in (replace(same, model=2e-6), replace(same, onnx=2e-5), replace(same, their_onnx=float("nan"))):
        with pytest.raises(CheckFailed, match="the two forms differ: .*; expected at most 1e-06 in torch and 1e-05 in onnxruntime"):
            far.require_equal()


@long
def test_both_forms_of_a_small_network(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v2_reference, "NAMED", {"condensenet-v2-a": SMALL})
    monkeypatch.setattr(v2_reference, "V2", v2_reference.V2[:1])
    lines: list[str] = []
    main(clone, tmp_path / "out", lines.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["condensenet-v2-a.onnx", "report.json"]
    (found,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["network"] == "condensenet-v2-a" and found["model"] <= 1e-6 and found["onnx"] > 0
    assert found["bytes"]["their .onnx"] == (tmp_path / "out" / "condensenet-v2-a.onnx").stat().st_size
    assert len(lines) == 1 and lines[0].startswith("condensenet-v2-a: torch ")
    (clone / "utils" / "__init__.py").write_text("WRONG = 1  # another network\n")
    with code_of(clone) as code:
        other = compare(code, "condensenet-v2-a", tmp_path)
    assert other.model > 0.1
