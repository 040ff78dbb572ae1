"""Files of CondenseNet V2 as its authors and others leave them, against what the authors' own code computed from them."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.checkpoints.recognise import infer_architecture
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused, PruningUnfinished
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build_random
from cnet_deploy.program.lower import lower
from tests.builders import TINY_V2, VARIETIES_V2, logits, state_dict, training_model
from tests.cases import few, long

GOLDEN = Path(__file__).parents[1] / "golden"
TRAINING, CONVERTED = (GOLDEN / f"condensenet-v2-small_{form}.pth.tar" for form in ("training", "converted"))
with np.load(GOLDEN / "condensenet-v2-small.npz") as stored:
    VALUES = dict(stored)
TOLERANCE = 1e-6  # of the largest logit
SMALL = Architecture.v2((1, 1, 2, 2, 2), (8, 8, 8, 16, 16), groups=4, hidden_channels=48, classes=20)


def error(found: np.ndarray[Any, Any], expected: str) -> float:
    scale = np.abs(VALUES[expected]).max()
    return float(np.abs(found - VALUES[expected]).max() / scale)


@pytest.mark.parametrize(
    ("path", "weights", "expected"),
    [(TRAINING, None, "logits_ema"), (TRAINING, "state_dict", "logits_plain"), (CONVERTED, None, "logits_converted")],
    ids=["average", "weights", "converted"],
)
def test_golden_outputs(path: Path, weights: str | None, expected: str) -> None:
    model = cd.load(path, weights=weights)
    assert model.architecture == SMALL
    assert (model.architecture.flops, model.architecture.params) == (int(VALUES["flops"]), int(VALUES["params"]))
    assert error(logits(model, VALUES["x"]), expected) < TOLERANCE
    converted = cd.convert(model)
    assert error(logits(converted, VALUES["x"]), expected) < TOLERANCE
    assert error(lower(converted).run(VALUES["x"].astype(np.float64)), expected) < TOLERANCE


def test_what_is_pruned_and_what_moves_is_seen() -> None:
    """The golden outputs see each part: without it they are far off."""
    program = lower(cd.convert(cd.load(TRAINING)))
    for part in ("update", "excite"):
        body = tuple(replace(layer, **{part: None}) if getattr(layer, part, None) is not None else layer for layer in program.body)  # type: ignore[arg-type]
        assert error(replace(program, body=body).run(VALUES["x"]), "logits_ema") > 0.01
    swish = cd.convert(cd.load(TRAINING, hs_from=6))
    assert error(logits(swish, VALUES["x"]), "logits_ema") > 0.01


def test_both_conversions_are_one_file(tmp_path: Path) -> None:
    for path, name in ((TRAINING, "ours"), (CONVERTED, "theirs")):
        assert CliRunner().invoke(main, ["convert", str(path), "-o", str(tmp_path / f"{name}.safetensors")]).exit_code == 0
    ours, theirs = (cd.load(tmp_path / f"{name}.safetensors").state_dict() for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["features.denseblock_1.denselayer_1.sfr.index"].dtype == torch.int64


def test_their_converted_form_is_written_as_they_write_it(tmp_path: Path) -> None:
    out = tmp_path / "m.pth.tar"
    cd.save(cd.convert(cd.load(TRAINING)), out)
    ours, theirs = (torch.load(path, weights_only=True) for path in (out, CONVERTED))
    assert list(ours) == list(theirs) == ["state_dict"] and ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, value in theirs["state_dict"].items():
        found = ours["state_dict"][name]
        assert found.dtype == value.dtype and torch.equal(found, value), name


@pytest.mark.parametrize("arch", few(VARIETIES_V2, 3), ids=lambda arch: arch.summary())
def test_read_again(arch: Architecture, tmp_path: Path) -> None:
    model = cd.convert(training_model(arch))
    cd.save(model, tmp_path / "m.safetensors")
    again = cd.load(tmp_path / "m.safetensors")
    assert again.architecture == arch
    images = np.random.default_rng(0).standard_normal((1, *arch.image_shape), np.float32)
    assert np.array_equal(logits(model, images), logits(again, images))
    assert CliRunner().invoke(main, ["inspect", str(tmp_path / "m.safetensors")]).exit_code == 0


def paddle() -> dict[str, Any]:
    """The golden network as paddle.save writes a state dict: other names of statistics, matrices of linear layers as [inputs, outputs]."""
    entries: dict[str, Any] = {}
    for name, value in torch.load(CONVERTED, weights_only=True)["state_dict"].items():
        if name.endswith("num_batches_tracked"):
            continue
        array = value.numpy()
        if re.search(r"(^|\.)(fc|classifier|fc\.[02])\.weight$", name):
            array = np.ascontiguousarray(array.T)
        entries[name.replace("running_mean", "_mean").replace("running_var", "_variance")] = array
    return {**entries, "StructuredToParameterName@@": {name: f"tensor_{i}" for i, name in enumerate(entries)}}


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_of_paddle(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "cdnv2.pdparams"
    path.write_bytes(pickle.dumps(paddle(), protocol=protocol))
    model = cd.load(path)
    assert error(logits(model, VALUES["x"]), "logits_converted") < TOLERANCE
    assert cd.inspect(path).dialect == "Paddle-Image-Models"


@pytest.mark.parametrize(("letter", "interpolation"), [("a", "bicubic"), ("b", "bicubic"), ("c", "bilinear")])
def test_images_are_resized_as_their_script_does(letter: str, interpolation: str, tmp_path: Path) -> None:
    arch = Architecture.from_name(f"condensenet-v2-{letter}")
    path = tmp_path / "m.pth.tar"
    torch.save({"state_dict": build_random(arch).state_dict()}, path)
    model = cd.load(path)
    assert model.architecture == arch and model.preprocessing.interpolation == interpolation and "resize" in model.preprocessing.guessed


@long
def test_the_example_in_every_artifact(tmp_path: Path) -> None:
    """A network that was trained: 83.4 % of 500 test images, as of its own checkpoint."""
    examples = Path(__file__).parents[2] / "examples"
    model = cd.convert(cd.load(examples / "condensenet-v2-cifar10.pth.tar"))
    files = [examples / "condensenet-v2-cifar10.pth.tar", tmp_path / "m.onnx", tmp_path / "m.so"]
    cd.export(model, "onnx", files[1])
    cd.export(model, "native", files[2], cpu="host")
    found = cd.evaluate(files, examples / "cifar10-test-500.bin")
    assert [one.right1 for one in found.files] == [417] * 3


# ---- refused -----------------------------------------------------------------------------------------------------------


def converted_state() -> dict[str, Any]:
    return dict(torch.load(CONVERTED, weights_only=True)["state_dict"])


def trained_state() -> dict[str, Any]:
    return {name: torch.from_numpy(value.copy()) for name, value in read_tensors(TRAINING).tensors.items()}


FIRST = "features.denseblock_1.denselayer_1.sfr"
LAST = "features.denseblock_5.denselayer_2"


def one_hot_rows(row: list[float]) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[f"{FIRST}.index"][3] = torch.tensor(row + [0.0] * (16 - len(row)))

    return change


def without(part: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in [name for name in state if part in name]:
            del state[name]

    return change


def without_all(*parts: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in [name for name in state if all(part in name for part in parts)]:
            del state[name]

    return change


def twice(state: dict[str, Any]) -> None:
    state[f"{FIRST}.index"][1] = state[f"{FIRST}.index"][0]


def not_square(state: dict[str, Any]) -> None:
    state[f"{FIRST}.index"] = state[f"{FIRST}.index"][:, :8].clone()


def with_v1(state: dict[str, Any]) -> None:
    state["classifier.index"] = torch.arange(20)


def with_transition(state: dict[str, Any]) -> None:
    state["features.transition_1.conv.conv.weight"] = torch.zeros(24, 24, 1, 1)


CASES = [
    (converted_state, one_hot_rows([0.5, 0.5]), "no single 1 among zeros in row 3"),
    (converted_state, one_hot_rows([]), "no single 1 among zeros in row 3"),
    (converted_state, one_hot_rows([1, 1]), "no single 1 among zeros in row 3"),
    (converted_state, one_hot_rows([float("nan"), 1]), "no single 1 among zeros in row 3"),
    (converted_state, one_hot_rows([1, -1]), "no single 1 among zeros in row 3"),
    (converted_state, twice, "names a channel twice within a group"),
    (converted_state, not_square, "expected a square matrix with one 1 in each row"),
    (converted_state, without(f"{LAST}.se."), "tensors are missing: features.denseblock_5.denselayer_2.se.fc.0.weight"),
    (converted_state, without("denseblock_5.denselayer_1.se."), "tensors are missing: features.denseblock_5.denselayer_1.se.fc.0.weight"),
    (converted_state, without_all("denseblock_5.", ".se."), "block 5 after it has none"),
    (trained_state, without(f"{LAST}.se."), "tensors are missing"),
    (converted_state, without("denseblock_4.denselayer_1.se."), "tensors are missing: features.denseblock_4.denselayer_1.se.fc.0.weight"),
    (converted_state, without(f"{LAST}.sfr."), f"misses {LAST}.sfr.norm.weight"),
    (converted_state, without("features.se_last"), "tensors are missing: features.se_last.fc.0.weight"),
    (converted_state, without("fc.bias"), "tensors are missing: fc.bias"),
    (converted_state, with_v1, "classifier.index, which it has not"),
    (converted_state, with_transition, "features.transition_1.conv.conv.weight, which it has not"),
    (trained_state, without(".sfr."), "as CondenseNet V2 has, but none of its updates (…sfr)"),
]


@pytest.mark.parametrize(("make", "change", "message"), few(CASES, 9))
def test_damaged_files(make: Callable[[], dict[str, Any]], change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    state = make()
    change(state)
    path, out = tmp_path / "m.pth.tar", tmp_path / "m.safetensors"
    torch.save({"state_dict": state}, path)
    done = CliRunner().invoke(main, ["convert", str(path), "-o", str(out)])
    (line,) = (line for line in done.output.splitlines() if line.startswith("Error"))
    assert done.exit_code == 4 and message in line and not out.exists(), done.output


def test_an_update_whose_groups_and_factor_differ() -> None:
    """Their converter fails on it, or makes maps of another width; converted, it has not as many rows as channels."""
    model = training_model(TINY_V2)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for name in [name for name in state if name.endswith(".sfr._mask")]:
        base, (channels, growth) = name.removesuffix("._mask"), state[name].shape[:2]
        mask = np.zeros((channels, growth, 1, 1), np.float32)
        for group in range(4):
            mask[np.random.default_rng(group).permutation(channels)[: channels // 2], group::4] = 1
        state |= {name: mask, f"{base}._stage": np.float32([1]), f"{base}._count": np.float32([channels // 2])}
    with pytest.raises(InputRefused, match="updates .* are in 4 groups, but each loses outputs until 1/2 are left; expected the two to be"):
        infer_architecture(state, hs_from=2)
    converted = {name: value.numpy() for name, value in cd.convert(training_model(TINY_V2)).state_dict().items()}
    for name in [name for name in converted if name.endswith(".sfr.conv.weight")]:
        converted[name] = np.concatenate([converted[name]] * 2)
    with pytest.raises(InputRefused, match="has 32 outputs in 4 groups, for 16 channels; expected as many outputs as channels"):
        infer_architecture(converted, hs_from=2)


@pytest.mark.parametrize("part", ["conv_1", "sfr"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_unfinished_pruning(part: str, stage: int, tmp_path: Path) -> None:
    """In any layer of either kind. Their converter goes on, and what it writes is wrong."""
    state = training_model(TINY_V2).state_dict()
    early = training_model(TINY_V2, stage=stage).state_dict()
    layer = f"features.denseblock_2.denselayer_1.{part}."
    state |= {name: value for name, value in early.items() if name.startswith(layer) and name.rpartition(".")[2][0] == "_"}
    torch.save({"state_dict": state}, tmp_path / "m.pth.tar")
    with pytest.raises(PruningUnfinished, match=f"{layer[:-1]}: "):
        cd.convert(cd.load(tmp_path / "m.pth.tar", hs_from=2))
    assert "unfinished" in (cd.inspect(tmp_path / "m.pth.tar", hs_from=2).problem or "")


def test_what_no_tensor_tells(tmp_path: Path) -> None:
    torch.save(state_dict(training_model(TINY_V2)), tmp_path / "m.pth.tar")
    with pytest.raises(InputRefused, match=r"of the 3 dense blocks .* give --hs-from BLOCK, from 1 to 3, or 4 for ReLU everywhere"):
        cd.load(tmp_path / "m.pth.tar")
    assert cd.load(tmp_path / "m.pth.tar", hs_from=2).architecture == TINY_V2
    with pytest.raises(InputRefused, match="hard_swish_from 5; expected a block from 1 to 3, or 4 for none"):
        cd.load(tmp_path / "m.pth.tar", hs_from=5)
    cd.save(cd.convert(cd.load(tmp_path / "m.pth.tar", hs_from=2)), tmp_path / "m.safetensors")
    assert cd.load(tmp_path / "m.safetensors").architecture.hard_swish_from == 2  # kept in the metadata


def test_hard_swish_of_a_model_is_its_own_in_verify(tmp_path: Path) -> None:
    """An artifact's block is taken for a model that does not state its own, and never instead of one that does."""
    runner, state = CliRunner(), state_dict(training_model(TINY_V2))
    torch.save(state, tmp_path / "m.pth.tar")
    for block in (2, 3):
        cd.save(cd.convert(cd.load(tmp_path / "m.pth.tar", hs_from=block)), tmp_path / f"{block}.safetensors")
    codes = [
        runner.invoke(main, ["verify", str(tmp_path / f"{block}.safetensors"), str(tmp_path / model)]).exit_code
        for block, model in ((2, "m.pth.tar"), (3, "m.pth.tar"), (2, "2.safetensors"), (2, "3.safetensors"))
    ]
    assert codes == [0, 0, 0, 1]


def test_a_classifier_is_not_cut(tmp_path: Path) -> None:
    for path in (TRAINING, CONVERTED):
        done = CliRunner().invoke(main, ["convert", str(path), "--classifier-keep", "0.5", "-o", str(tmp_path / "m.safetensors")])
        assert done.exit_code == 4 and "the classifier of CondenseNet V2 reads all of its hidden layer; leave it out" in done.output
    done = CliRunner().invoke(main, ["convert", str(TRAINING), "--classifier-keep", "1", "-o", str(tmp_path / "m.safetensors")])
    assert done.exit_code == 0


def test_their_arguments_are_left_inert() -> None:
    with pytest.raises(pickle.UnpicklingError, match=re.escape(argparse.Namespace.__name__)):
        torch.load(TRAINING, weights_only=True)
    inspection = cd.inspect(TRAINING)
    assert [(one.name, one.runs_code) for one in inspection.inert] == [("argparse.Namespace", False)]
    assert [(one.key, one.chosen) for one in inspection.weights] == [("state_dict", False), ("state_dict_ema", True)]
