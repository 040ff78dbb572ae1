"""Checkpoints in the reference's format: whole or not there, and damage is seen."""

from __future__ import annotations

import argparse
import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cnet_deploy as cd
from cnet_deploy.checkpoints.metadata import METADATA_KEY
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.training.checkpoints import Checkpoints, read
from cnet_deploy.training.condensation import initialise
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, TINY_V2

TOLD: dict[str, Any] = {"recipe": {}, "conditions": {}}


def stepped(arch: Any = TINY) -> tuple[DenselyConnected, torch.optim.Optimizer]:
    """A model and an optimiser that has made a step, so that there are momenta."""
    torch.manual_seed(0)
    model = build(arch, "training" if arch.learned else "group-conv")
    initialise(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    model(torch.randn(2, 3, *arch.input_size)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def saved(folder: Path, epochs: int, **options: Any) -> Checkpoints:
    checkpoints = Checkpoints(folder, **options)
    checkpoints.prepare()
    model, optimizer = stepped()
    for epoch in range(epochs):
        checkpoints.save(model, optimizer, epoch, 50.0 + epoch, epoch != 1, TOLD)
    return checkpoints


@pytest.mark.parametrize(
    ("arch", "name"),
    [(TINY, "condensenet"), (TINY_LGC, "densenet_LGC"), (TINY_DENSENET, "densenet"), (TINY_V2, "condensenet_v2")],
)
def test_what_the_reference_reads_is_there(tmp_path: Path, arch: Any, name: str) -> None:
    model, optimizer = stepped(arch)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.prepare()
    path = checkpoints.save(model, optimizer, 7, 12.5, True, TOLD)
    assert path == tmp_path / "save_models" / "checkpoint_007.pth.tar"
    assert (tmp_path / "save_models" / "latest.txt").read_text() == str(path)  # main.py opens what the first line says
    assert (tmp_path / "save_models" / "model_best.pth.tar").read_bytes() == path.read_bytes()
    assert path.read_bytes()[:2] == b"\x80\x02", "the legacy container, which the torch of its day reads"
    loaded = torch.load(path, weights_only=True)
    assert (loaded["epoch"], loaded["model"], loaded["best_prec1"]) == (7, name, 12.5)
    assert list(loaded["state_dict"]) == [f"module.{key}" for key in model.state_dict()]
    torch.optim.SGD(model.parameters(), 0.1).load_state_dict(loaded["optimizer"])
    # The code of CondenseNet V2 goes on after ``epoch`` where there is a version over 1, else with it (timm/models/helpers.py).
    assert loaded.get("version") == (2 if arch.updates else None)


def test_an_untrained_checkpoint_tells_its_groups(tmp_path: Path) -> None:
    """The reference's files can't, before the first inputs are dropped."""
    saved(tmp_path, 1)
    model = cd.load(tmp_path / "save_models" / "checkpoint_000.pth.tar")
    assert model.architecture == TINY
    assert model.source is not None and model.source.form == "training" and len(model.source.digest) == 64
    with pytest.raises(InputRefused, match="pruning is unfinished"):
        cd.convert(model)


def test_tensors_of_condensenet_v2_lie_in_its_authors_order() -> None:
    """An optimiser numbers the weights, so that momenta are taken for those of other weights where the order is another."""
    names = [name for name in stepped(TINY_V2)[0].state_dict() if name.startswith("features.denseblock_3.denselayer_1.")]
    assert list(dict.fromkeys(name.split(".")[3] for name in names)) == ["conv_1", "conv_2", "sfr", "se"]


def test_what_is_kept(tmp_path: Path) -> None:
    assert [path.name for path in saved(tmp_path / "all", 4).numbered()] == [f"checkpoint_00{n}.pth.tar" for n in (3, 2, 1, 0)]
    few = saved(tmp_path / "few", 4, no_save_model=True)
    assert [path.name for path in few.numbered()] == ["checkpoint_003.pth.tar", "checkpoint_002.pth.tar"]
    assert (few.folder / "model_best.pth.tar").is_file()
    assert not [entry for entry in few.folder.iterdir() if ".tmp" in entry.name]


def damaged(data: bytes, how: str) -> bytes:
    """A checkpoint that a disk or a crash spoiled."""
    middle = len(data) * 2 // 3
    return {
        "empty": b"", "cut": data[: len(data) // 2], "cut by a byte": data[:-1], "zeros": data[:middle] + bytes(len(data) - middle),
        "one bit": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :], "text": b"<html>",
    }[how]  # fmt: skip


@pytest.mark.parametrize("how", ["empty", "cut", "cut by a byte", "zeros", "one bit", "text"])
def test_the_one_before_is_taken_for_a_damaged_one(tmp_path: Path, how: str) -> None:
    checkpoints = saved(tmp_path, 3)
    last = checkpoints.numbered()[0]
    last.write_bytes(damaged(last.read_bytes(), how))
    said: list[str] = []
    state = checkpoints.latest("condensenet", said.append)
    assert state is not None and state.epoch == 1 and state.best_prec1 == 51.0
    assert len(said) == 1 and last.name in said[0] and "falling back to the checkpoint before it" in said[0]


def test_all_damaged_is_an_error_and_none_is_a_beginning(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2)
    for path in checkpoints.numbered():
        path.write_bytes(b"x")
    with pytest.raises(InputRefused, match="none of its 2 checkpoints can be resumed from"):
        checkpoints.latest("condensenet", lambda text: None)
    assert Checkpoints(tmp_path / "none").latest("condensenet", lambda text: None) is None


def test_another_model_s_checkpoints_are_not_taken(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="is of model 'condensenet'; expected 'densenet'"):
        saved(tmp_path, 1).latest("densenet", lambda text: None)


@pytest.mark.parametrize("pointer", ["", "\x00\n", "/elsewhere/checkpoint_000.pth.tar", "checkpoint_999.pth.tar"])
def test_what_latest_txt_says_is_a_hint(tmp_path: Path, pointer: str) -> None:
    """A folder that was moved has its old path there; the file's name counts, and where that is not there the last one."""
    checkpoints = saved(tmp_path, 2)
    (checkpoints.folder / "latest.txt").write_text(pointer)
    state = checkpoints.latest("condensenet", lambda text: None)
    assert state is not None and state.epoch == (0 if "000" in pointer else 1)


def test_the_reference_s_own_checkpoint_is_read(checkpoint_path: Path) -> None:
    state = read(checkpoint_path)
    assert state.epoch == 21 and state.best_prec1 == pytest.approx(87.07) and state.training == {"model": "condensenet"}
    assert len(state.optimizer["state"]) == len([name for name in state.tensors if name.endswith((".weight", ".bias"))])


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path, buffer = tmp_path / "checkpoint_000.pth.tar", io.BytesIO()
    pickle.dump({"epoch": Bomb()}, buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputRefused, match="no checkpoint to resume from"):
        read(path)
    assert not (tmp_path / "ran").exists()


class Meter:
    """As training loops keep one."""

    def __init__(self) -> None:
        self.sum = self.count = 3


@pytest.mark.parametrize(
    "beside",
    [{"args": argparse.Namespace(lr=0.1)}, {"best_prec1": np.float64(87.0)}, {"meter": Meter()}, {"best_prec1": torch.tensor(87.0)},
     {"rng": [np.random.RandomState(0).get_state(), torch.get_rng_state()]}],
    ids=["namespace", "numpy", "meter", "tensor", "random states"],
)  # fmt: skip
def test_whole_files_with_objects_beside_the_weights(tmp_path: Path, beside: dict[str, Any]) -> None:
    """A run goes on from them, as from the file without."""
    path = saved(tmp_path, 1).numbered()[0]
    plain = torch.load(path, weights_only=True)
    own = {key: value for key, value in plain.items() if key != METADATA_KEY}  # as another tool's
    torch.save({**own, **beside}, path)
    state = read(path)
    assert state.epoch == plain["epoch"] and state.training == {"model": plain["model"]}
    assert state.best_prec1 == (87.0 if "best_prec1" in beside else plain["best_prec1"])
    for name, value in plain["state_dict"].items():
        assert torch.equal(state.tensors[name.removeprefix("module.")], value)


@pytest.mark.parametrize(
    ("content", "says"),
    [({"state_dict": {}}, "it has no epoch and no optimizer"), ([1, 2], "it holds a list"),
     ({"epoch": "three", "state_dict": {}, "optimizer": {}}, "its epoch is a text"),
     ({"epoch": 1, "state_dict": {}, "optimizer": argparse.Namespace()}, "its optimizer is the object argparse.Namespace"),
     ({"epoch": 1, "state_dict": {"a.b": torch.ones(1), "a.c": torch.ones(1)}, "optimizer": {}}, "have the names of another network")],
    ids=["entries", "list", "epoch", "optimizer", "names"],
)  # fmt: skip
def test_whole_files_are_never_called_damaged(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "c.pth.tar")
    with pytest.raises(InputRefused, match=f"is no checkpoint to resume from: .*{re.escape(says)}") as caught:
        read(tmp_path / "c.pth.tar")
    assert "damaged" not in str(caught.value)


def test_masks_of_torch_s_pruning_are_no_checkpoint_to_resume_from(tmp_path: Path) -> None:
    """The weights would come back without their masks."""
    path = saved(tmp_path, 1).numbered()[0]
    plain = {key: value for key, value in torch.load(path, weights_only=True).items() if key != METADATA_KEY}
    name = next(name for name in plain["state_dict"] if name.endswith("conv_2.conv.weight"))
    weight = plain["state_dict"].pop(name)
    plain["state_dict"] |= {f"{name}_orig": weight, f"{name}_mask": torch.zeros_like(weight)}
    torch.save(plain, path)
    with pytest.raises(InputRefused, match="have masks of torch.nn.utils.prune"):
        read(path)


def test_a_list_that_an_optimizer_holds_very_often(tmp_path: Path) -> None:
    path = saved(tmp_path, 1).numbered()[0]
    plain = {key: value for key, value in torch.load(path, weights_only=True).items() if key != METADATA_KEY}
    rows: list[Any] = []
    for _ in range(20):
        rows = [rows] * 10
    torch.save({**plain, "optimizer": {**plain["optimizer"], "rows": rows}}, path)
    with pytest.raises(InputRefused, match="more than 200000 values"):
        read(path)
