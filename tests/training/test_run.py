"""Whole runs: what they leave, how they go on after anything, and the road down from their checkpoints."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.training import Recipe, train
from cnet_deploy.training.checkpoints import read
from cnet_deploy.training.journal import read as read_log
from tests.cases import few, long

SHAPE: dict[str, Any] = {"stages": (1, 1), "growth": (8, 8)}
RECIPE = Recipe(epochs=4, batch_size=32, group_lasso_lambda=1e-4, dropout_rate=0.1)
OPTIONS = ["--stages", "1-1", "--growth", "8-8", "--epochs", "4", "-b", "32", "--group-lasso", "1e-4", "--dropout-rate", "0.1"]


def tensors(folder: Path, epoch: int = 3) -> dict[str, torch.Tensor]:
    """Weights, buffers and momenta of a checkpoint."""
    state = read(folder / "save_models" / f"checkpoint_{epoch:03d}.pth.tar")
    return {**state.tensors, **{f"momentum {n}": entry["momentum_buffer"] for n, entry in state.optimizer["state"].items()}}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Path:
    """The savedir of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = train(small_dataset, folder, RECIPE, **SHAPE)
    assert done is not None and done.converted is not None and done.score.images == done.converted.images == 41
    return folder


def test_what_a_run_leaves(whole: Path) -> None:
    assert {entry.name for entry in whole.iterdir()} == {"save_models", "log.jsonl", "curves.svg"}
    assert len(list((whole / "save_models").glob("checkpoint_*.pth.tar"))) == 4
    events = read_log(whole / "log.jsonl")
    kinds = [event["event"] for event in events]
    assert (kinds.count("epoch"), kinds.count("stage"), kinds[0], kinds[-1]) == (4, 3, "start", "end")
    assert events[0]["dataset"] == "fashion-mnist" and events[0]["architecture"]["input_size"] == [32, 32]
    last = [event for event in events if event["event"] == "epoch"][-1]
    assert last["stage"] == 3 and last["live"] * 4 == last["total"] and last["test"]["images"] == 41
    state = read(whole / "save_models" / "checkpoint_003.pth.tar")
    assert state.best_prec1 == pytest.approx(100 - min(e["test"]["top1_error"] for e in events if e["event"] == "epoch"))


def test_the_model_knows_how_its_images_were_prepared(whole: Path) -> None:
    model = cd.load(whole / "save_models" / "checkpoint_003.pth.tar")
    assert model.preprocessing.statistics == "fashion-mnist" and model.preprocessing.mean == (0.286, 0.286, 0.286)
    assert cd.convert(model).preprocessing == model.preprocessing
    assert model.preprocessing.guessed == ()  # whatever it is trained with is known


@long
def test_a_run_is_reproducible(whole: Path, tmp_path: Path, small_dataset: Path) -> None:
    train(small_dataset, tmp_path, RECIPE, **SHAPE)
    assert same(tensors(tmp_path), tensors(whole))


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_resumed_run_ends_bit_for_bit_where_it_would_have(whole: Path, tmp_path: Path, small_dataset: Path, kept: int) -> None:
    (tmp_path / "save_models").mkdir()
    for epoch in range(kept):
        name = f"checkpoint_{epoch:03d}.pth.tar"
        (tmp_path / "save_models" / name).write_bytes((whole / "save_models" / name).read_bytes())
    lines: list[str] = []
    train(small_dataset, tmp_path, RECIPE, resume=True, notify=lines.append, **SHAPE)
    assert same(tensors(tmp_path), tensors(whole))
    assert any(f"going on after epoch {kept - 1}" in text for text in lines) and not any("differ from" in text for text in lines)


def test_a_run_of_condensenet_v2(tmp_path: Path, small_dataset: Path) -> None:
    """Resumed halfway it ends where it would have, its pruning is finished, and the group-conv form computes the same."""
    recipe = Recipe(epochs=2, batch_size=32, group_lasso_lambda=1e-4, label_smoothing=0.1)
    shape: dict[str, Any] = {"model": "condensenet_v2", "stages": (1, 1), "growth": (8, 8), "hidden_channels": 16}
    lines: list[str] = []
    done = train(small_dataset, tmp_path / "a", recipe, notify=lines.append, **shape)
    assert done is not None and done.converted is not None and done.converted == replace(done.score, loss=done.converted.loss)
    assert done.converted.loss == pytest.approx(done.score.loss, rel=1e-5)
    (tmp_path / "b" / "save_models").mkdir(parents=True)
    name = "save_models/checkpoint_000.pth.tar"
    (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    train(small_dataset, tmp_path / "b", recipe, resume=True, notify=lines.append, **shape)
    assert same(tensors(tmp_path / "a", 1), tensors(tmp_path / "b", 1)) and not any("differ from" in text for text in lines)
    model = cd.load(done.checkpoint)
    assert (model.architecture.kind, model.architecture.hard_swish_from, model.architecture.hidden_channels) == ("condensenet_v2", 2, 16)
    images = torch.randn(2, *model.architecture.image_shape)
    with torch.inference_mode():
        assert torch.allclose(cd.convert(model)(images), model(images), rtol=1e-4, atol=1e-5)


@long
def test_a_damaged_last_checkpoint_costs_an_epoch_and_no_more(whole: Path, tmp_path: Path, small_dataset: Path) -> None:
    train(small_dataset, tmp_path, RECIPE, **SHAPE)
    last = tmp_path / "save_models" / "checkpoint_003.pth.tar"
    last.write_bytes(last.read_bytes()[:5000])
    lines: list[str] = []
    train(small_dataset, tmp_path, RECIPE, resume=True, notify=lines.append, **SHAPE)
    assert any("checkpoint_003.pth.tar" in text and "falling back to the checkpoint before it" in text for text in lines)
    assert same(tensors(tmp_path), tensors(whole))
    epochs = [event["epoch"] for event in read_log(tmp_path / "log.jsonl") if event["event"] == "epoch"]
    assert epochs == [0, 1, 2, 3, 3]


@pytest.mark.parametrize(("change", "words"), [({"lr": 0.05}, "lr was 0.1 and is 0.05"), ({"epochs": 5}, "epochs was 4 and is 5")])
def test_a_resumed_run_says_where_it_is_another(
    whole: Path, tmp_path: Path, small_dataset: Path, change: dict[str, Any], words: str
) -> None:
    (tmp_path / "save_models").mkdir()
    name = "save_models/checkpoint_002.pth.tar"
    (tmp_path / name).write_bytes((whole / name).read_bytes())
    lines: list[str] = []
    train(small_dataset, tmp_path, Recipe(**{**RECIPE.to_dict(), **change}), resume=True, notify=lines.append, **SHAPE)
    assert any("will differ from that of an uninterrupted run" in text and words in text for text in lines)


@long
def test_the_reference_s_checkpoint_is_trained_on(checkpoint_path: Path, tmp_path: Path, images_path: Path, small_dataset: Path) -> None:
    """The real one, an epoch further: its momenta too, and the rate that its schedule would have."""
    (tmp_path / "save_models").mkdir()
    (tmp_path / "save_models" / "checkpoint_021.pth.tar").write_bytes(checkpoint_path.read_bytes())
    lines: list[str] = []
    recipe = Recipe(epochs=23, batch_size=48, lr=1e-4)
    done = train(small_dataset, tmp_path, recipe, resume=True, notify=lines.append, stages=(4, 4, 4), growth=(8, 16, 32))
    assert done is not None and done.checkpoint.name == "checkpoint_022.pth.tar"
    assert any("does not record its recipe" in text for text in lines)
    before, after = read(checkpoint_path).tensors, read(done.checkpoint).tensors
    assert all(torch.equal(before[name], after[name]) for name in before if name.endswith("._mask"))
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_a_finished_run_has_nothing_left(whole: Path, tmp_path: Path, small_dataset: Path) -> None:
    (tmp_path / "save_models").mkdir()
    for name in ("checkpoint_003.pth.tar", "model_best.pth.tar"):
        (tmp_path / "save_models" / name).write_bytes((whole / "save_models" / name).read_bytes())
    lines: list[str] = []
    done = train(small_dataset, tmp_path, RECIPE, resume=True, notify=lines.append, **SHAPE)
    assert done is not None and "nothing is left to do: all 4 epochs are done" in lines


def test_another_s_run_is_not_written_over(whole: Path, small_dataset: Path) -> None:
    with pytest.raises(InputRefused, match="has checkpoints of another run; give --resume to continue it, or another --savedir"):
        train(small_dataset, whole, RECIPE, **SHAPE)
    with pytest.raises(InputRefused, match=r"checkpoint_003.pth.tar: is of another network; give the options"):
        train(small_dataset, whole, RECIPE, resume=True, stages=(2, 1), growth=(8, 8))


def test_a_plain_densenet_has_no_groups_to_learn(tmp_path: Path, small_dataset: Path) -> None:
    with pytest.raises(InputRefused, match="has no learned groups"):
        train(small_dataset, tmp_path, RECIPE, model="densenet", **SHAPE)


@pytest.mark.parametrize("model", few(["condensenet", "densenet", "densenet_LGC", "condensenet_v2"]))
def test_the_whole_road(tmp_path: Path, small_dataset: Path, model: str) -> None:
    """Train, inspect, convert, export, verify, evaluate, measure: each kind, by the commands that its users have."""

    def run(*words: str | Path, code: int = 0) -> str:
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == code, done.output
        return done.output

    kind = [] if model == "densenet" else ["--condense-factor", "2"]
    shape = ["--stages", "1-1-2", "--growth", "8-8-8", "--model", model, "--epochs", "2", "-b", "32", "--precision", "bf16", *kind]
    run("train", small_dataset, *shape, "--savedir", tmp_path)
    checkpoint, converted, onnx = tmp_path / "save_models" / "model_best.pth.tar", tmp_path / "m.safetensors", tmp_path / "m.onnx"
    last = tmp_path / "save_models" / "checkpoint_001.pth.tar"
    assert model.lower() in run("inspect", last, *([] if model == "densenet" else ["--plot", tmp_path / "groups.svg"]))
    run("convert", last, "-o", converted)
    run("export", converted, "--onnx", "-o", onnx)
    run("verify", onnx, converted)
    output = run("evaluate", last, converted, onnx, "--data", small_dataset)
    assert output.count("top-1 error") == 3 and "41 images, 10 classes" in output
    assert "100.00% of answers the same" in run("evaluate", converted, onnx, "--data", small_dataset)
    run("bench", onnx, "--rounds", "1", "--seconds", "0.01", "--warmup", "0")
    assert checkpoint.is_file()


@long
def test_kills_at_any_moment_change_nothing(whole: Path, tmp_path: Path, small_dataset: Path) -> None:
    """Killed again and again and resumed each time, a run ends bit for bit as one that nothing disturbed."""
    command = [sys.executable, "-m", "cnet_deploy", "train", str(small_dataset), *OPTIONS, "--savedir", str(tmp_path), "--resume"]
    script = "import sys, torch; torch.set_num_threads(int(sys.argv.pop(1))); from cnet_deploy.cli import main; main()"
    command = [sys.executable, "-c", script, str(torch.get_num_threads()), *command[3:]]
    kills = 0
    for after in (0, 150, 40):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun = set(tmp_path.rglob("*"))
        deadline = time.monotonic() + 120
        while set(tmp_path.rglob("*")) == begun and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)  # until it writes something
        time.sleep(after / 1000)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        for path in (tmp_path / "save_models").glob("checkpoint_*.pth.tar"):
            read(path)  # whole, whenever it happened
    assert kills >= 1
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert same(tensors(tmp_path), tensors(whole))


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--stages", "1-x"], 2, "no list of numbers"),
    (["--stages", "1-1", "--growth", "8"], 4, "2 stages and 1 growth rates"),
    (["--stages", "1-1", "--growth", "8-9"], 4, "growth 9 with bottleneck 4; expected multiples of 4"),
    (["--stages", "1-1", "--growth", "8-8", "--lr", "0"], 4, "lr is 0.0; expected a number over 0"),
])  # fmt: skip
def test_what_the_command_refuses(small_dataset: Path, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = CliRunner().invoke(main, ["train", str(small_dataset), "--savedir", str(tmp_path), "--growth", "8-8", *arguments])
    assert (done.exit_code, words in done.output) == (code, True), done.output


def test_a_folder_without_images_is_exit_code_4(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["train", str(tmp_path), *OPTIONS, "--savedir", str(tmp_path / "out")])
    assert (done.exit_code == 4 and "expected one with" in done.output) or "has no folder train" in done.output
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_nothing_is_begun(small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(main, ["train", str(small_dataset), *OPTIONS, "--savedir", str(tmp_path / "out")])
    assert done.exit_code == 5 and "pip install 'cnet-deploy[plots]'" in done.stderr
    assert done.stdout == "" and not (tmp_path / "out").exists()


def test_a_folder_with_nothing_to_test_on(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(InputRefused, match="has no folder val; expected"):
        train(tmp_path, tmp_path / "out", RECIPE, **SHAPE)


def test_folders_of_classes_are_trained_on(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (48, 40, 3), np.uint8)).save(tmp_path / part / name / f"{number}.png")
    recipe = Recipe(epochs=1, batch_size=6)
    done = train(tmp_path, tmp_path / "out", recipe, input_size=(32, 32), workers=2, **SHAPE)
    assert done is not None and done.score.images == 6
    model = cd.load(done.checkpoint)
    assert model.architecture.classes == 2 and model.preprocessing.statistics == "imagenet"
    (tmp_path / "val" / "fox").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "val" / "fox" / "1.png")
    with pytest.raises(InputRefused, match="train and val have other classes: fox"):
        train(tmp_path, tmp_path / "again", recipe, input_size=(32, 32), **SHAPE)
