"""Runs that fail, and checkpoints and data that do not fit: nothing good is lost, and a sentence says what to do."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cnet_deploy.checkpoints.metadata import METADATA_KEY
from cnet_deploy.cli import main
from cnet_deploy.errors import CheckFailed, InputRefused
from cnet_deploy.training import Recipe, train
from cnet_deploy.training.checkpoints import Checkpoints, _digest, read
from cnet_deploy.training.journal import Journal
from cnet_deploy.training.journal import read as read_log
from cnet_deploy.training.run import _load_momenta
from cnet_deploy.training.trainer import Score, Trainer, tally
from tests.cases import long
from tests.training.test_checkpoints import saved, stepped

SHAPE: dict[str, Any] = {"stages": (1, 1), "growth": (8, 8)}
RECIPE = Recipe(epochs=2, batch_size=32)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """A checkpoint with other contents (``change`` gets them and the metadata), whole and with the right digest."""
    loaded = torch.load(path, weights_only=True)
    own = json.loads(loaded[METADATA_KEY])
    change(loaded, own)
    tensors = {name.removeprefix("module."): value for name, value in loaded["state_dict"].items()}
    own["tensors_sha256"] = _digest(tensors, loaded["optimizer"])
    torch.save({**loaded, METADATA_KEY: json.dumps(own)}, path, _use_new_zipfile_serialization=False)


def last_of(folder: Path) -> Path:
    return max((folder / "save_models").glob("checkpoint_*.pth.tar"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Path:
    """The savedir of a run of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    train(small_dataset, folder, RECIPE, **SHAPE)
    return folder


@pytest.fixture
def one_epoch(run: Path, tmp_path: Path) -> Path:
    """A savedir with the first epoch of the run alone."""
    (tmp_path / "save_models").mkdir()
    name = "save_models/checkpoint_000.pth.tar"
    (tmp_path / name).write_bytes((run / name).read_bytes())
    return tmp_path


# ---- what is not finite ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["weight", "buffer", "momentum"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, where: str, value: float) -> None:
    checkpoints = saved(tmp_path, 1)
    before = {path: path.read_bytes() for path in checkpoints.folder.iterdir()}
    model, optimizer = stepped()
    spoiled = {
        "weight": next(model.parameters()).data, "buffer": next(b for n, b in model.named_buffers() if n.endswith("running_var")),
        "momentum": next(iter(optimizer.state.values()))["momentum_buffer"],
    }[where]  # fmt: skip
    spoiled.view(-1)[0] = value
    with pytest.raises(CheckFailed, match="is no longer finite after epoch 1, which was not saved; lower --lr, and --resume"):
        checkpoints.save(model, optimizer, 1, 99.0, True, {})
    assert {path: path.read_bytes() for path in checkpoints.folder.iterdir()} == before


def test_a_run_that_diverges_keeps_its_good_checkpoints(one_epoch: Path, small_dataset: Path) -> None:
    """As it did with a learning rate of 20: the loss was finite, the weights were not."""
    first = last_of(one_epoch)
    before = first.read_bytes()
    shape = ["--stages", "1-1", "--growth", "8-8", "--epochs", "2", "-b", "32", "--savedir", str(one_epoch), "--resume"]
    done = CliRunner().invoke(main, ["train", str(small_dataset), *shape, "--lr", "1e18"])
    assert done.exit_code == 1 and "no longer finite" in done.output and "--resume" in done.output, done.output
    assert first.read_bytes() == before and [path.name for path in Checkpoints(one_epoch).numbered()] == ["checkpoint_000.pth.tar"]
    assert "NaN" not in (one_epoch / "log.jsonl").read_text() and "Infinity" not in (one_epoch / "log.jsonl").read_text()
    trained = train(small_dataset, one_epoch, RECIPE, resume=True, **SHAPE)
    assert trained is not None and trained.checkpoint.name == "checkpoint_001.pth.tar"


def test_a_test_loss_that_is_not_finite_ends_the_run(tmp_path: Path, small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "validate", lambda *_: Score(float("inf"), 90.0, 50.0, 41))
    with pytest.raises(CheckFailed, match="the loss on the test images is no longer finite after epoch 0, which was not saved"):
        train(small_dataset, tmp_path, RECIPE, **SHAPE)
    assert not Checkpoints(tmp_path).numbered() and not (tmp_path / "save_models" / "model_best.pth.tar").exists()


@pytest.mark.parametrize("where", ["state_dict", "optimizer"])
def test_a_checkpoint_that_is_not_finite_is_skipped_aloud(run: Path, tmp_path: Path, where: str) -> None:
    """Version 0.1.0 wrote such files."""
    (tmp_path / "save_models").mkdir()
    for path in (run / "save_models").glob("checkpoint_*"):
        (tmp_path / "save_models" / path.name).write_bytes(path.read_bytes())

    def spoil(loaded: dict[str, Any], _: dict[str, Any]) -> None:
        values = loaded["optimizer"]["state"][3]["momentum_buffer"] if where == "optimizer" else next(iter(loaded["state_dict"].values()))
        values.view(-1)[0] = np.nan

    rewritten(tmp_path / "save_models" / "checkpoint_001.pth.tar", spoil)
    lines: list[str] = []
    state = Checkpoints(tmp_path).latest("condensenet", lines.append)
    assert state is not None and state.epoch == 0
    assert "is of a run that had failed" in lines[0] and "falling back to the checkpoint before it" in lines[0]


def test_answers_that_are_not_finite_are_no_class() -> None:
    """NaN and infinity are sorted before all numbers."""
    logits = torch.tensor([[np.nan, 0.0, 1.0], [np.inf, 0.0, 1.0], [3.0, 0.0, 1.0]])
    truth = torch.zeros(3, dtype=torch.int64)
    assert tally(logits, truth, torch.tensor(1.0))[1:].tolist() == [2.0, 2.0, 3.0]


# ---- the journal -------------------------------------------------------------------------------------------------------------------

SCORE = {"loss": 1.0, "top1_error": 50.0, "top5_error": 1.0, "images": 10}
EPOCH = {"event": "epoch", "epoch": 0, "lr": 0.1, "train": SCORE, "test": SCORE}


def test_numbers_that_are_not_finite_are_null_in_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 2)
    journal.begin(0)
    for loss in (np.inf, np.nan, 3e38):
        journal.write(**{**EPOCH, "test": {**SCORE, "loss": loss}})
        journal.draw()
    assert [event["test"]["loss"] for event in read_log(journal.path)] == [None, None, 3e38]


@pytest.mark.parametrize(
    "line",
    ['{"event": "epoch"}', '{"event": "epoch", "epoch": "x"}', json.dumps({**EPOCH, "epoch": 10**30}), json.dumps({**EPOCH, "train": 1}),
     json.dumps({**EPOCH, "lr": 1e300}), '{"event": "stage", "epoch": 0, "stage": 1, "live": 3, "total": 0}', '{"event": "stage"}',
     "[" * 5000, '{"event": 1}', "\x00\udcff", "1" * 5000, '{"event": "other", "x": ' + "[" * 60 + "]" * 60 + "}"],
    ids=map(str, range(12)),
)  # fmt: skip
def test_a_damaged_line_is_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str) -> None:
    journal = Journal(tmp_path, 2)
    text = "\n".join([json.dumps(EPOCH), line, json.dumps({**EPOCH, "epoch": 1}), ""])
    journal.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with caplog.at_level(logging.WARNING):
        journal.begin(2)
    assert caplog.messages == [f"{journal.path}: 1 damaged line is left out"]
    assert [event["epoch"] for event in read_log(journal.path)] == [0, 1]


def test_a_journal_of_0_1_0_with_infinities_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path, 2)
    journal.path.write_text(
        json.dumps({**EPOCH, "test": {**SCORE, "loss": float("inf")}}) + "\n" + json.dumps({**EPOCH, "epoch": 1}) + "\n"
    )
    assert "Infinity" in journal.path.read_text()
    journal.begin(2)
    journal.draw()
    assert [event["test"]["loss"] for event in read_log(journal.path)] == [None, 1.0] and not caplog.messages


# ---- checkpoints that do not fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["recipe", "conditions"])
@pytest.mark.parametrize("value", [None, 3, "x", [1], [["lr", 1]]])
def test_a_recipe_of_another_type(one_epoch: Path, entry: str, value: Any) -> None:
    rewritten(last_of(one_epoch), lambda _, own: own["training"].update({entry: value}))
    with pytest.raises(InputRefused, match=f"checkpoint_000.pth.tar: is damaged .the {entry} in its metadata is .*; expected an object"):
        read(last_of(one_epoch))


def test_a_recipe_of_odd_values_is_shown_on_one_line(one_epoch: Path, small_dataset: Path) -> None:
    odd = {"lr": {"a": 1}, "momentum": None, "epochs": "4\n\x1b[2J", "seed": 10**3000}
    rewritten(last_of(one_epoch), lambda _, own: own["training"]["recipe"].update(odd))
    lines: list[str] = []
    train(small_dataset, one_epoch, RECIPE, resume=True, notify=lines.append, **SHAPE)
    (line,) = [line for line in lines if "will differ" in line]
    assert line.isprintable() and "None" not in line
    for words in ("lr was an object and is 0.1", "momentum was null", "epochs was 4\\n\\x1b[2J and is 2", "seed was a number of 9966 bits"):
        assert words in line


def first(loaded: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = loaded["optimizer"]["state"][0]
    return entry


MOMENTA: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "fewer": (lambda loaded: loaded["optimizer"]["state"].pop(0), "it has momenta for"),
    "none": (lambda loaded: loaded["optimizer"]["state"].clear(), "it has momenta for 0 of"),
    "more": (lambda loaded: loaded["optimizer"]["state"].update({999: first(loaded)}), "it has momenta for"),
    "shape": (lambda loaded: first(loaded).update(momentum_buffer=torch.ones(3)), r"momentum 0 is float32 \[3\]; expected float32"),
    "dtype": (lambda loaded: first(loaded).update(momentum_buffer=first(loaded)["momentum_buffer"].double()), "momentum 0 is float64"),
    "whole numbers": (lambda loaded: first(loaded).update(momentum_buffer=first(loaded)["momentum_buffer"].int()), "momentum 0 is int32"),
    "parameters": (lambda loaded: loaded["optimizer"]["param_groups"][0]["params"].pop(), "it is of [0-9]+ weights; expected [0-9]+"),
    "groups": (lambda loaded: loaded["optimizer"].pop("param_groups"), "it has no groups of parameters"),
    "twice": (lambda loaded: loaded["optimizer"]["param_groups"][0]["params"].__setitem__(0, 1), "it is of [0-9]+ weights"),
}


@pytest.mark.parametrize("name", MOMENTA)
def test_an_optimizer_s_state_that_does_not_fit(name: str) -> None:
    spoil, words = MOMENTA[name]
    _, optimizer = stepped()
    loaded = {"optimizer": copy.deepcopy(optimizer.state_dict())}
    _load_momenta(optimizer, loaded["optimizer"])
    spoil(loaded)
    with pytest.raises(InputRefused, match=f"the optimiser's state is of another model: {words}"):
        _load_momenta(optimizer, loaded["optimizer"])


def test_a_state_that_does_not_fit_ends_the_command(one_epoch: Path, small_dataset: Path) -> None:
    rewritten(last_of(one_epoch), lambda loaded, _: loaded["optimizer"]["state"].pop(0) and None)
    done = CliRunner().invoke(
        main, ["train", str(small_dataset), "--stages", "1-1", "--growth", "8-8", "--savedir", str(one_epoch), "--resume"]
    )
    assert done.exit_code == 4 and "checkpoint_000.pth.tar: the optimiser's state is of another model: it has momenta for" in done.output


def test_settings_in_an_optimizer_s_state_are_the_recipe_s(one_epoch: Path, run: Path, small_dataset: Path) -> None:
    """A file that maximises, or does without nesterov, does not decide how training goes on."""
    rewritten(
        last_of(one_epoch), lambda loaded, _: loaded["optimizer"]["param_groups"][0].update(maximize=True, dampening=0.5, nesterov=False)
    )
    train(small_dataset, one_epoch, RECIPE, resume=True, **SHAPE)
    whole, resumed = (read(folder / "save_models" / "checkpoint_001.pth.tar").tensors for folder in (run, one_epoch))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# ---- data that changed --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Folders of two classes, whose files have the same names."""
    random = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / part / name / f"{number}.jpg")
    return tmp_path


@long
def test_folders_that_were_renamed_or_swapped_are_refused(folders: Path) -> None:
    def go(**more: Any) -> None:
        recipe = Recipe(epochs=more.pop("epochs", 1), batch_size=4)
        train(folders, folders / "out", recipe, input_size=(32, 32), workers=1, **SHAPE, **more)

    go()
    recorded = read(last_of(folders / "out")).training
    start = read_log(folders / "out" / "log.jsonl")[0]
    assert recorded["class_names"] == start["class_names"] == ["cat", "dog"] and recorded["data"] == start["data"]
    assert recorded["data"]["train"]["images"] == 8 and len(recorded["data"]["val"]["labels_sha256"]) == 64
    for part in ("train", "val"):
        (folders / part / "dog").rename(folders / part / "wolf")
    with pytest.raises(InputRefused, match="was trained on other classes: dog is wolf now; undo that, or give another --savedir"):
        go(resume=True)
    for part in ("train", "val"):
        (folders / part / "wolf").rename(folders / part / "dog")
    for part, what in (("train", "training"), ("val", "test")):
        for old, new in (("dog", "x"), ("cat", "dog"), ("x", "cat")):
            (folders / part / old).rename(folders / part / new)
        with pytest.raises(InputRefused, match=f"labels or names of the {what} images have changed .were folders of classes swapped"):
            go(resume=True)
        for old, new in (("dog", "x"), ("cat", "dog"), ("x", "cat")):
            (folders / part / old).rename(folders / part / new)
    (folders / "train" / "dog" / "more.jpg").write_bytes((folders / "train" / "dog" / "0.jpg").read_bytes())
    lines: list[str] = []
    go(resume=True, epochs=2, notify=lines.append)
    assert any("images was 8 and is 9" in line for line in lines)


def test_a_checkpoint_of_0_1_0_has_no_digest_of_its_data(one_epoch: Path, small_dataset: Path) -> None:
    rewritten(last_of(one_epoch), lambda _, own: own["training"].pop("data") and None)
    done = train(small_dataset, one_epoch, RECIPE, resume=True, **SHAPE)
    assert done is not None and done.checkpoint.name == "checkpoint_001.pth.tar"
