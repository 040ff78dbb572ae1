"""An accuracy budget: how accuracy is counted, which layers are kept, and what becomes of a budget that can't be held."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.errors import CheckFailed, InputRefused
from cnet_deploy.images.decode import Images, cifar_records
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.layers import IndexedGroupConv
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import DenseLayer
from cnet_deploy.sessions.torch import from_module
from cnet_deploy.workflows import budget
from cnet_deploy.workflows.budget import Accuracy, Choice, choose, divergence, within
from cnet_deploy.workflows.quantization import Wanted, quantization_for
from tests.cases import long
from tests.old_outputs import old_output
from tests.workflows.test_calibration import class_folders

LABELS = np.arange(100) % 10
FP32 = np.eye(10, dtype=np.float32)[LABELS] * 8
WRONG = np.roll(FP32, 1, axis=1)
# Images that int8 gets wrong because of each layer, and some that it gets wrong whatever is kept.
SPOILT = {"a": range(2), "b": range(10, 20), "c": range(30, 33), "d": range(0)}


def network(always: Collection[int] = ()) -> Callable[[Collection[str], int], Any]:
    def logits(kept: Collection[str], every: int) -> Any:
        wrong = sorted({*always, *(image for layer, images in SPOILT.items() if layer not in kept for image in images)})
        made = FP32.copy()
        made[wrong] = WRONG[wrong]
        return made[::every]

    return logits


def chosen(points: float, always: Collection[int] = ()) -> Choice:
    return choose(network(always), FP32, LABELS, list(SPOILT), points)


def test_accuracy_by_hand() -> None:
    fp32, int8 = FP32.copy(), FP32.copy()
    fp32[:10] = WRONG[:10]  # ten that fp32 gets wrong, of which int8 gets four right
    int8[:6], int8[50:57] = WRONG[:6], WRONG[50:57]
    own = Accuracy.of(int8, fp32, LABELS, 3.0)
    assert (own.images, own.right, own.lost, own.won, own.same) == (100, 90, 7, 4, 89)
    assert (own.fp32, own.int8, own.points) == pytest.approx((0.9, 0.87, 3.0)) and own.holds
    assert not Accuracy.of(int8, fp32, LABELS, 2.99).holds
    assert own.to_dict() == {"images": 100, "fp32": 0.9, "int8": 0.87, "agreement": 0.89, "budget": 3.0}
    assert own.line().startswith("int8: top-1 87.00% (79.02 to 92.24), fp32: 90.00% (82.56 to 94.48), on 100 images; +3.00 points lost (")
    assert own.line().endswith("89.00% of answers the same: the budget of 3 points holds")


def test_logits_that_are_not_finite() -> None:
    damaged = FP32.copy()
    damaged[3, 4] = np.nan
    with pytest.raises(CheckFailed, match="not finite"):
        Accuracy.of(damaged, FP32, LABELS, 1.0)


@pytest.mark.parametrize(
    ("points", "kept"), [(15, []), (14.9, ["b"]), (5, ["b"]), (4, ["b", "c"]), (2, ["b", "c"]), (1, ["b", "c", "a"]), (0, ["b", "c", "a"])]
)
def test_the_layers_that_cost_most_are_kept_until_it_holds(points: float, kept: list[str]) -> None:
    choice = chosen(points)
    assert [one.layer for one in choice.kept] == kept and choice.layers == set(kept)
    assert choice.accuracy.holds and choice.before.points == 15
    for number, one in enumerate(choice.kept):
        assert one.cost == pytest.approx(len(SPOILT[one.layer]) / 15)
        assert one.accuracy.points == 15 - sum(len(SPOILT[name]) for name in kept[: number + 1])


def test_the_table() -> None:
    lines = chosen(4).lines("int16")
    assert lines[0].split() == ["layer", "kept", "in", "cost", "top-1", "points", "lost"]
    assert [line.split() for line in lines[1:-1]] == [
        ["int8", "alone", "85.00%", "+15.00"],
        ["b", "int16", "66.7%", "95.00%", "+5.00"],
        ["c", "int16", "20.0%", "98.00%", "+2.00"],
        ["a", "13.3%"],
        ["d", "0.0%"],
    ]
    assert lines[-1].endswith("the budget of 4 points holds")
    assert len(chosen(20).lines("int16")) == 1


def test_a_budget_that_can_not_be_held() -> None:
    with pytest.raises(CheckFailed, match=r"can't be held: .*\+7\.00 points lost.* with all 4 dense layers in higher precision"):
        chosen(6.9, always=range(60, 67))
    assert chosen(7, always=range(60, 67)).layers == {"a", "b", "c"}


def test_progress_never_goes_back_and_names_what_is_done() -> None:
    lines: list[tuple[str, float]] = []
    choose(network(), FP32, LABELS, list(SPOILT), 0, lambda *line: lines.append(line))
    shares = [share for _, share in lines]
    assert shares == sorted(shares) and shares[-1] <= 1 and "accuracy budget, layer 4 of 4" in [text for text, _ in lines]


def test_divergence_by_hand() -> None:
    p, q = np.log(np.array([[0.5, 0.5], [0.9, 0.1]])), np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    assert divergence(p, q) == pytest.approx((0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2)
    assert divergence(p, p) == pytest.approx(0)


def export(model: Any, out: Path, data: Any, points: float | None, **options: Any) -> cd.Exported:
    return cd.export(model, "native", out, cpu="host", precision="int8", calibrate=data, accuracy_budget=points, **options)


@pytest.fixture
def standing(tmp_path: Path) -> Path:
    """An older artifact and manifest, which must survive whatever fails."""
    (tmp_path / "m.so").write_bytes(old_output(tmp_path / "old.so"))
    (tmp_path / "m.so.json").write_bytes(old_output(tmp_path / "old.onnx.json"))
    return tmp_path / "m.so"


def test_nothing_is_written_for_a_budget_that_can_not_be_held(
    converted: DenselyConnected, standing: Path, few_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in standing.parent.iterdir()}
    monkeypatch.setattr(budget, "_built", lambda *_: np.zeros((100, 10), np.float32))  # always the first class
    with pytest.raises(CheckFailed, match="the accuracy budget can't be held"):
        export(converted, standing, few_images, 1.0, calibration_images=32)
    assert {path.name: path.read_bytes() for path in standing.parent.iterdir()} == before


@long
def test_what_the_artifact_itself_loses_counts(
    converted: DenselyConnected, standing: Path, few_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what was measured before lost nothing."""
    before = {path.name: path.read_bytes() for path in standing.parent.iterdir()}
    holds = Choice(Accuracy(100, 91, 0, 0, 100, 0.0))
    monkeypatch.setattr("cnet_deploy.workflows.quantization.budgets.within", lambda *_: holds)
    monkeypatch.setattr("cnet_deploy.workflows.verify.OTHERS", 1.0)
    monkeypatch.setattr("cnet_deploy.workflows.verify.cosine_of", lambda *_: -1.0)
    monkeypatch.setattr("cnet_deploy.workflows.verify.tolerance_of", lambda *_: 10.0)
    spoilt = copy.deepcopy(converted)
    with pytest.raises(CheckFailed, match=r"the artifact itself loses \d+\.\d+ points of top-1, and 0 were allowed; nothing was written"):
        export(cancelling(spoilt, 3), standing, few_images, 0.0)
    assert {path.name: path.read_bytes() for path in standing.parent.iterdir()} == before


@long
def test_what_is_measured(
    converted: DenselyConnected, images_path: Path, first_images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that were calibrated on are measured only where there are not enough others, and counted; the manifest names all layers."""
    program, run = lower(converted), from_module(converted).run
    dense = [layer.name for layer in program.body if isinstance(layer, DenseLayer)]
    monkeypatch.setattr(budget, "_built", lambda program, _, __, images, every: budget._run(run, images, program, every))

    def measured(target: str, most: int, images: Any = None) -> Any:
        monkeypatch.setattr(budget, "MEASURED", most)
        wanted = Wanted(images_path, "minmax", 32, 1.0)
        return quantization_for(program, target, wanted, images, run, lambda _: None, lambda *_: None)

    done = measured("native", 400)
    assert done.details["layers"] == dict.fromkeys(dense, "int8") and done.details["accuracy"]["images"] == 400
    assert done.details["accuracy"]["calibrated"] == 0 and "measured_as" not in done.details["accuracy"] and len(done.lines) == 1
    done = measured("tensorrt", 1000, Images(*cifar_records(images_path, 10)))
    assert done.details["accuracy"]["calibrated"] == 32 and done.details["accuracy"]["measured_as"] == "onnx"
    assert done.lines[1].startswith("32 of the 500 images are also calibrated on") and "the onnx file that the tensorrt" in done.lines[2]


def test_labels_that_may_be_wrong_are_refused(converted: DenselyConnected, tmp_path: Path, few_images: Path) -> None:
    class_folders(tmp_path / "data", [f"other {number}" for number in range(10)], each=4)
    named = copy.deepcopy(converted)
    named.class_names = tuple(f"class {number}" for number in range(10))
    with pytest.raises(InputRefused, match="an accuracy budget can't be measured, since its classes are matched .* not by name"):
        export(named, tmp_path / "m.so", tmp_path / "data", 1.0)


def test_images_that_are_too_few_to_tell(
    converted: DenselyConnected, first_images: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pixels, labels = cifar_records(first_images(50), 10)
    steps = cd.Preprocessing.of((32, 32), 10)
    program, run = lower(converted), from_module(converted).run
    monkeypatch.setattr(budget, "_built", lambda *_: run(steps.apply(pixels)))
    for points, warned in ((1.9, 1), (2.0, 0), (0.0, 0)):
        caplog.clear()
        assert within(program, "native", None, Images(pixels, labels), run, points, lambda *_: None).kept == ()  # type: ignore[arg-type]
        assert len(caplog.records) == warned and ("give at least 53: --images" in caplog.text) == bool(warned)


def test_labels_of_other_classes_are_refused(converted: DenselyConnected, tmp_path: Path, first_images: Any) -> None:
    """Both forms would be as wrong, and any budget would hold."""
    pixels, _ = cifar_records(first_images(50), 10)
    run = from_module(converted).run
    others = Images(pixels, (run(cd.Preprocessing.of((32, 32), 10).apply(pixels)).argmax(1) + 1) % 10)
    with pytest.raises(InputRefused, match="fp32 is right on 0 of 50 labelled images, no more than by guessing among 10 classes"):
        within(lower(converted), "native", None, others, run, 1.0, lambda *_: None)  # type: ignore[arg-type]


def test_labels_are_needed(converted: DenselyConnected, tmp_path: Path, few_images: Path) -> None:
    with pytest.raises(InputRefused, match="an accuracy budget needs images whose classes are known"):
        export(converted, tmp_path / "m.so", Path(__file__).parents[2] / "examples" / "images", 1.0)
    images = cd.Preprocessing.of((32, 32), 10).apply(np.zeros((40, 3, 32, 32), np.uint8))
    with pytest.raises(InputRefused, match="an accuracy budget needs"):
        export(converted, tmp_path / "m.so", images, 1.0)
    assert not list(tmp_path.iterdir())


def cancelling(model: DenselyConnected, layer: int, factor: float = 60.0) -> DenselyConnected:
    """The network with a dense layer that 8 bits are too few for: two of its inputs are the same, with large weights that cancel out."""
    convs = [module for module in model.modules() if isinstance(module, IndexedGroupConv)]
    conv = convs[layer]
    per_group = conv.index.numel() // conv.groups
    weight = conv.conv.weight.data
    large = factor * weight.abs().max()
    rows = len(weight) // conv.groups
    for group in range(conv.groups):
        first, second = group * per_group, group * per_group + 1
        for values in (conv.index, conv.norm.weight.data, conv.norm.bias.data, conv.norm.running_mean, conv.norm.running_var):
            assert values is not None
            values[second] = values[first]
        part = weight[group * rows : (group + 1) * rows]
        part[:, 0] += large
        part[:, 1] = -large
    return model


@long
def test_a_layer_that_needs_more_bits_is_kept(converted: DenselyConnected, compiled: None, first_images: Any, tmp_path: Path) -> None:
    """A network of which int8 answers hardly anything right, until the layer is kept for which 8 bits are too few."""
    model = cancelling(copy.deepcopy(converted), 3)
    images = first_images(500)
    done = export(model, tmp_path / "m.so", images, 2.0)
    kept = done.manifest.details["quantization"]["kept"]
    accuracy = done.manifest.details["quantization"]["accuracy"]
    assert done.comparisons[-1].top1 == accuracy["int8"] and done.comparisons[-1].reference_top1 == accuracy["fp32"]
    assert accuracy["fp32"] - accuracy["int8"] <= 0.02 + 1e-9 and (accuracy["images"], accuracy["calibrated"]) == (500, 256)
    assert any(note.startswith("256 of the 500 images are also calibrated on") for note in done.notes)
    first = done.notes[2].split()
    assert first[0] == "features.denseblock_1.denselayer_4" and first[0] in kept and set(kept.values()) == {"int16"}
    assert float(first[2].rstrip("%")) > 50
    assert json.loads(manifest_path(tmp_path / "m.so").read_text())["details"]["quantization"]["kept"] == kept
    assert "kept in higher precision: features.denseblock_1.denselayer_4 int16" in cd.inspect(tmp_path / "m.so").summary()
    assert done.notes[1].split()[:2] == ["int8", "alone"] and float(done.notes[1].split()[-1]) > 10
