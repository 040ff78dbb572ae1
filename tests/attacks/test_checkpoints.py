"""State dicts that parse but lie: odd tensors, odd names, indices that point nowhere, counters and masks that contradict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cases import long

from .helpers import (
    LAYER,
    STEM,
    group_conv_state,
    loads_or_refused,
    one_line,
    refused,
    refused_checkpoint,
    run_apart,
    training_state,
    written,
)

WEIGHT = torch.ones(8, 3, 3, 3)
# Made when they are wanted: torch warns of some.
ODD_TENSORS: dict[str, Callable[[], Any]] = {
    "sparse": WEIGHT.to_sparse,
    "quantized": lambda: torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8),
    "complex": lambda: WEIGHT.to(torch.complex64),
    "no data": lambda: WEIGHT.to("meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(4)]),
    "4-bit floats": lambda: torch.zeros(8, 3, 3, 3, dtype=torch.float4_e2m1fn_x2),
    "raw bits": lambda: torch.zeros(8, 3, 3, 3, dtype=torch.uint8).view(torch.bits8),
    "whole numbers": lambda: WEIGHT.to(torch.int8),
    "truth values": WEIGHT.bool,
    "scalar": lambda: torch.tensor(1.0),
    "empty": lambda: torch.zeros(0),
    "empty dimension": lambda: torch.zeros(0, 3, 3, 3),
    "other shape": lambda: torch.zeros(8, 3, 3, 1),
    "NaN": lambda: torch.full((8, 3, 3, 3), float("nan")),
    "infinite": lambda: torch.full((8, 3, 3, 3), float("-inf")),
    "beyond fp32": lambda: torch.full((8, 3, 3, 3), 1e300, dtype=torch.float64),
    "string": lambda: "weights",
    "list": lambda: [1.0, 2.0],
}
SAME_VALUES = {
    "expanded view": torch.ones(1, 1, 1, 1).expand(8, 3, 3, 3),
    "strided view": torch.ones(3, 3, 3, 8).permute(3, 2, 1, 0),
    "sliced view": torch.ones(16, 3, 3, 3)[::2],
    "negative bit": torch._neg_view(-WEIGHT),
    "fp16": WEIGHT.half(),
    "fp64": WEIGHT.double(),
    "bf16": WEIGHT.bfloat16(),
    "parameter": torch.nn.Parameter(WEIGHT),
}


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:The PyTorch API of nested tensors", "ignore:.*TypedStorage is deprecated")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_no_weights(tmp_path: Path, kind: str) -> None:
    refused_checkpoint(written(tmp_path, {"state_dict": training_state(**{STEM: ODD_TENSORS[kind]()})}), STEM, "expected")


@pytest.mark.parametrize("kind", SAME_VALUES)
def test_views_and_types_that_are_weights(tmp_path: Path, kind: str) -> None:
    from cnet_deploy.checkpoints.load import load

    model = load(written(tmp_path, training_state(**{STEM: SAME_VALUES[kind]})))
    assert torch.equal(model.state_dict()[STEM], WEIGHT)


@long
def test_a_small_file_that_expands_to_terabytes(tmp_path: Path) -> None:
    path = written(tmp_path, training_state(**{STEM: torch.zeros(1).expand(1 << 42)}))
    done = run_apart("convert", path, memory=16 << 30)
    assert done.returncode == 4, done.stderr[-300:]
    assert STEM in one_line(done.stderr)


COUNTERS = [f"{LAYER}._stage", f"{LAYER}._count"]


@pytest.mark.parametrize("name", ["features.norm_last.num_batches_tracked", *COUNTERS])
@pytest.mark.parametrize("shape", [(3,), (0,), (1, 1, 1), ()])
def test_counters_of_any_shape(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    loads_or_refused(written(tmp_path, training_state(**{name: torch.ones(shape)})))


@pytest.mark.parametrize("name", COUNTERS)
@pytest.mark.parametrize("value", [-1.0, 0.5, 1e30, float("nan"), float("inf")])
def test_counters_that_count_nothing(tmp_path: Path, name: str, value: float) -> None:
    refused_checkpoint(written(tmp_path, training_state(**{name: torch.tensor([value])})), name, "expected one whole number")


def test_stage_and_count_that_give_no_condense_factor(tmp_path: Path) -> None:
    refused_checkpoint(written(tmp_path, training_state(**{f"{LAYER}._count": torch.tensor([3.0])})), LAYER, "condense factor")


def _mask(change: str) -> torch.Tensor:
    mask: torch.Tensor = training_state()[f"{LAYER}._mask"]
    if change == "halves":
        mask[0, 0] = 0.5
    elif change == "NaN":
        mask[0, 0] = float("nan")
    elif change == "one row differs":
        mask[2] = 1 - mask[2]
    elif change == "all dropped":
        mask[:] = 0
    elif change == "uneven groups":
        mask[0::2], mask[1::2] = 0, 1
    return mask.reshape(-1) if change == "flat" else mask


@pytest.mark.parametrize("change", ["halves", "NaN", "one row differs", "all dropped", "uneven groups", "flat"])
def test_masks_that_are_no_finished_pruning(tmp_path: Path, change: str) -> None:
    refused_checkpoint(written(tmp_path, training_state(**{f"{LAYER}._mask": _mask(change)})))


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        (f"{LAYER}.index", [-1, 1, 2, 3, 4, 5, 6, 7], "channel -1"),
        (f"{LAYER}.index", [0, 1, 2, 8, 4, 5, 6, 7], "channel 8"),
        (f"{LAYER}.index", [0, 1, 2, 1 << 62, 4, 5, 6, 7], str(1 << 62)),
        (f"{LAYER}.index", [0, 1, 2, 2, 4, 5, 6, 7], "twice"),
        (f"{LAYER}.index", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "expected whole numbers"),
        (f"{LAYER}.index", [True] * 8, "expected whole numbers"),
        (f"{LAYER}.index", [], "expected a positive size"),
        (f"{LAYER}.index", 3, "expected a positive size"),
        ("classifier.index", [0] * 10, "twice"),
        ("classifier.index", [0, 1, 2, 3, 4, 5, 6, 7, 8, 20], "channel 20"),
        ("classifier.index", list(range(1000)), "expected 1 to 20"),
    ],
)
def test_indices_that_point_nowhere_or_twice(tmp_path: Path, name: str, values: Any, says: str) -> None:
    refused_checkpoint(written(tmp_path, group_conv_state(**{name: torch.tensor(values)})), name, says)


def test_negative_variance(tmp_path: Path) -> None:
    name = "features.norm_last.running_var"
    refused_checkpoint(written(tmp_path, training_state(**{name: -torch.ones(20)})), name, "negative variances")


HOSTILE_NAMES = {
    "newline": "features.evil\nError: all is well",
    "terminal escape": "features.\x1b[2J\x1b[31mevil",
    "bell and carriage return": "features.\a\rError: all is well",
    "C1 control": "features.\x9b31mevil",
    "right to left": "features.\u202elive",
    "line separator": "features.\u2028evil",
    "lone surrogate": "features.\ud800",
    "very long": "features." + "x" * 100_000,
}


@pytest.mark.parametrize("kind", HOSTILE_NAMES)
@pytest.mark.parametrize("value", [WEIGHT, "text", WEIGHT.to_sparse()], ids=["dense", "string", "sparse"])
def test_tensor_names_that_would_reach_a_terminal(tmp_path: Path, kind: str, value: Any) -> None:
    refused_checkpoint(written(tmp_path, training_state(**{HOSTILE_NAMES[kind]: value})), "features.")


@pytest.mark.parametrize(
    "name",
    [
        "features.denseblock_9999.denselayer_9999.conv_1.norm.weight",
        "features.denseblock_99999999999999999999.denselayer_1.conv_1.norm.weight",
        "features.denseblock_1.denselayer_9999.conv_1.norm.weight",
        "features.denseblock_0.denselayer_0.conv_1.norm.weight",
        "features.denseblock_01.denselayer_1.conv_1.norm.weight",
        "features.denseblock_\u0661.denselayer_1.conv_1.norm.weight",
        "features.denseblock_-1.denselayer_1.conv_1.norm.weight",
        "features.transition_9999.conv.norm.weight",
    ],
)
def test_layer_numbers_that_are_not_there(tmp_path: Path, name: str) -> None:
    refused_checkpoint(written(tmp_path, training_state(**{name: torch.ones(8)})))


def test_thousands_of_blocks_of_nothing(tmp_path: Path) -> None:
    """Whatever the file claims, saying no takes no longer than reading it."""
    names = (f"features.denseblock_{block}.denselayer_{layer}.conv_1.norm.weight" for block in range(1, 2500) for layer in (1, 2))
    refused_checkpoint(written(tmp_path, {STEM: WEIGHT} | dict.fromkeys(names, torch.ones(1))))


def test_a_prefix_repeated_without_end(tmp_path: Path) -> None:
    path = written(tmp_path, {"module." * 150_000 + "x": WEIGHT})
    refused("convert", path, seconds=2)


@pytest.mark.parametrize(
    "holds",
    [
        {}, [], None, 5, "text", [1] * 10, {"state_dict": {}}, {"state_dict": [1]}, {"state_dict": None}, {1: WEIGHT},
        {(STEM, 1): WEIGHT}, {STEM: WEIGHT, "\x1b[31m\n": 1}, {("\x1b[31m\n",): 1}, WEIGHT,
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_state_dict(tmp_path: Path, holds: Any) -> None:
    refused_checkpoint(written(tmp_path, holds), "expected")


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["state_dict"] = loop
    refused_checkpoint(written(tmp_path, loop), "expected a state dict")


@pytest.mark.parametrize("value", ["condensenet\nform: group-conv", "\x1b[2Jcondensenet", "\u202ecnoc", "x" * 100_000])
def test_what_inspect_prints_of_the_file_itself(tmp_path: Path, value: str) -> None:
    """The reference stores a model's name beside the weights; on a terminal it must stay one short, plain line."""
    from click.testing import CliRunner

    from cnet_deploy.cli import main

    result = CliRunner().invoke(main, ["inspect", str(written(tmp_path, {"model": value, "state_dict": training_state()}))], color=True)
    assert result.exit_code == 0
    lines = result.stdout.removesuffix("\n").split("\n")
    assert all(line.isprintable() and len(line) <= 1000 for line in lines)
    assert [line for line in lines if line.startswith("form: ")] == ["form: training"]
