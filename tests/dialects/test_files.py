"""Every case of files.py is read to the bit, or refused in words that help: by Python, and by the command line."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from tests.attacks.helpers import refused
from tests.cases import few
from tests.dialects.files import (
    EXAMPLE,
    NAMES,
    READ,
    REFUSED,
    Case,
    checkpoint,
    converted,
    pruned,
    saved,
    trained,
    with_plain_classifier,
    write,
    zipped,
)  # fmt: skip


def titles(cases: tuple[Case, ...]) -> list[str]:
    return [case.title for case in cases]


def expected(case: Case) -> dict[str, torch.Tensor]:
    """The tensors that are read, by the original's names."""
    if "classifier of its own" in case.title:
        state = with_plain_classifier()
        weight, bias = state.pop("classifier.weight"), state.pop("classifier.bias")
        whole = {"classifier.linear.weight": weight, "classifier.linear.bias": bias, "classifier.index": torch.arange(weight.shape[1])}
        return state | whole
    if "torch.nn.utils.prune:" in case.title:
        return {}
    return converted() if case.form == "group-conv" else dict(cd.load(EXAMPLE).state_dict())


@pytest.mark.parametrize("case", READ, ids=titles(READ))
def test_what_is_read(case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(case, tmp_path)
    with caplog.at_level(logging.WARNING, "cnet_deploy"):
        model = cd.load(path, weights=case.weights)
    assert model.form == case.form
    state = model.state_dict()
    for name, value in expected(case).items():
        assert torch.equal(state[name], value.reshape(state[name].shape)), name
    notes = [record.getMessage() for record in caplog.records if "preprocessing" not in record.getMessage()]
    assert bool(notes) == bool(case.notes), notes
    for words in case.notes:
        assert words in notes[0]
    inspection = cd.inspect(path)
    assert {one.name: one.runs_code for one in inspection.inert} == case.inert
    assert [one.chosen for one in inspection.weights].count(True) == 1
    assert inspection.dialect is not None and inspection.dialect in inspection.summary()


def test_masks_of_pruning_are_applied(tmp_path: Path) -> None:
    state = pruned()
    torch.save(state, tmp_path / "pruned.pth")
    loaded = cd.load(tmp_path / "pruned.pth").state_dict()
    names = [name.removesuffix("_orig") for name in state if name.endswith("_orig")]
    assert len(names) == 12
    for name in names:
        assert torch.equal(loaded[name], state[f"{name}_orig"] * state[f"{name}_mask"]), name
        assert (loaded[name] == 0).any()


def test_masks_of_fractions(tmp_path: Path) -> None:
    state = pruned()
    name = next(name for name in state if name.endswith("_mask") and "conv_2" in name)
    state[name] = torch.full_like(state[name], 0.5)
    torch.save(state, tmp_path / "pruned.pth")
    weight = cd.load(tmp_path / "pruned.pth").state_dict()[name.removesuffix("_mask")]
    assert torch.equal(weight, state[f"{name.removesuffix('_mask')}_orig"] * 0.5)


@pytest.mark.parametrize(
    "epoch", [1 << 40_000, float("inf"), float("nan"), np.float64(-1e300)], ids=["digits", "infinite", "no number", "large"]
)
def test_an_epoch_that_is_no_number_of_epochs(epoch: float, tmp_path: Path) -> None:
    torch.save(checkpoint(epoch=epoch), tmp_path / "c.pth")
    assert "\nepoch:" not in cd.inspect(tmp_path / "c.pth").summary()


@pytest.mark.parametrize("case", REFUSED, ids=titles(REFUSED))
def test_what_is_refused(case: Case, tmp_path: Path) -> None:
    path = write(case, tmp_path)
    refused("convert", path, says=case.says)
    with pytest.raises(InputRefused):
        cd.load(path)


@pytest.mark.parametrize(
    ("inner", "says"), [("gzip", "a gzip file; expected a checkpoint: unpack it with gunzip"), ("zip", "a zip archive; ")]
)
def test_an_archive_in_an_archive(inner: str, says: str, tmp_path: Path) -> None:
    content = gzip.compress(saved(trained())) if inner == "gzip" else zipped(net__pth=saved(trained()))
    (tmp_path / "net.zip").write_bytes(zipped(net__pth=content))
    refused("inspect", tmp_path / "net.zip", says=(f"is a zip archive with net.pth, whose content is {says}",))


def test_another_set_of_weights(tmp_path: Path) -> None:
    case = next(case for case in READ if "averaged" in case.title)
    path = write(case, tmp_path)
    inspection = cd.inspect(path, weights="state_dict_ema")
    assert [(one.key, one.tensors, one.chosen) for one in inspection.weights] == [("state_dict", 188, False), ("state_dict_ema", 188, True)]
    assert "read: as --weights asks" in inspection.summary()
    name = "features.denseblock_1.denselayer_1.conv_1.conv.weight"
    raw, averaged = (cd.load(path, weights=key).state_dict()[name] for key in (None, "state_dict_ema"))
    assert torch.equal(averaged, raw * 2)
    with pytest.raises(InputRefused, match=r"has no weights called 'ema'; expected one of state_dict \(188 tensors\), state_dict_ema"):
        cd.load(path, weights="ema")


def test_a_network_in_another_is_no_part_of_it(tmp_path: Path) -> None:
    """A teacher beside its student: two networks in one mapping."""
    state = {f"{owner}.{name}": value for owner in ("student", "teacher") for name, value in converted().items()}
    torch.save({"state_dict": state}, tmp_path / "both.ckpt")
    with pytest.raises(InputRefused, match=r"state_dict\.student \(\d+ tensors\), state_dict\.teacher .* choose one with --weights"):
        cd.load(tmp_path / "both.ckpt")
    assert cd.load(tmp_path / "both.ckpt", weights="state_dict.teacher").form == "group-conv"


def test_masks_belong_to_one_network(tmp_path: Path) -> None:
    """A pruned network that holds another, whose tensors have the same names."""
    torch.save({"state_dict": {**pruned(), **converted("ema.")}}, tmp_path / "both.ckpt")
    loaded = cd.load(tmp_path / "both.ckpt", weights="state_dict.ema").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in converted().items())


def test_a_classifier_that_reads_half_of_the_features_needs_its_index(tmp_path: Path) -> None:
    state = converted()
    del state["classifier.index"]
    for part in ("weight", "bias"):
        state[f"classifier.{part}"] = state.pop(f"classifier.linear.{part}")
    torch.save(state, tmp_path / "halved.pth")
    with pytest.raises(InputRefused, match="tensors are missing: classifier.index"):
        cd.load(tmp_path / "halved.pth")


def test_keys_that_look_alike(tmp_path: Path) -> None:
    others = converted()
    torch.save({"a.b": trained(), "a": {"b": others}}, tmp_path / "alike.pth")
    with pytest.raises(InputRefused, match=r"has 2 sets of weights called 'a\.b'"):
        cd.load(tmp_path / "alike.pth", weights="a.b")
    torch.save({"": others, "state_dict": trained()}, tmp_path / "empty.pth")
    assert cd.load(tmp_path / "empty.pth").form == "training"
    assert cd.load(tmp_path / "empty.pth", weights='""').form == "group-conv"


def test_what_lies_beside_does_not_spoil_the_choice(tmp_path: Path) -> None:
    torch.save({"state_dict": trained(), "other": {"module.a.b": torch.ones(1), "a.b": torch.ones(1)}}, tmp_path / "c.pth")
    assert cd.load(tmp_path / "c.pth").form == "training"


def test_a_state_dict_of_another_network_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {"layer1.weight": torch.ones(1), "layer2.weight": torch.ones(1)}
    torch.save({"state_dict": other, "te\x1b[31macher": trained()}, tmp_path / "c.pth")
    with caplog.at_level(logging.WARNING, "cnet_deploy"):
        cd.load(tmp_path / "c.pth")
    notes = [record.getMessage() for record in caplog.records]
    assert any("its state_dict is that of another network" in note for note in notes) and all(map(str.isprintable, notes)), notes


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    state = {**converted(), "module.features.init_conv.weight": torch.zeros(16, 3, 3, 3)}
    torch.save(state, tmp_path / "twice.pth")
    with pytest.raises(InputRefused, match="which are one tensor once wrappers are removed"):
        cd.load(tmp_path / "twice.pth")


@pytest.mark.parametrize(
    "entry",
    [{"classes": list(NAMES)}, {"class_to_idx": {name: number for number, name in reversed(list(enumerate(NAMES)))}},
     {"idx_to_class": dict(enumerate(NAMES))}, {"classes": 10, "class_names": NAMES}],
    ids="+".join,
)  # fmt: skip
def test_names_of_classes_in_a_checkpoint(entry: dict[str, object], tmp_path: Path) -> None:
    torch.save(checkpoint(**entry), tmp_path / "named.pth.tar")
    assert cd.load(tmp_path / "named.pth.tar").class_names == NAMES
    torch.save(checkpoint(classes=["cat", "dog"]), tmp_path / "others.pth.tar")
    assert cd.load(tmp_path / "others.pth.tar").class_names == ()


def exported(folder: Path, path: Path) -> Path:
    cd.export(path, "onnx", folder / "made.onnx", overrides={"weights": "state_dict_ema"})
    return folder / "made.onnx"


@pytest.mark.parametrize("command", few(["export", "convert", "verify", "run", "evaluate"], 2))
def test_every_command_takes_the_key(command: str, tmp_path: Path, first_images: object) -> None:
    path = write(next(case for case in READ if "averaged" in case.title), tmp_path)
    images = first_images(5)  # type: ignore[operator]
    arguments = {
        "convert": ("convert", path, "-o", tmp_path / "a.safetensors"), "export": ("export", path, "--onnx", "-o", tmp_path / "a.onnx"),
        "verify": ("verify", exported(tmp_path, path), path), "run": ("run", path, images),
        "evaluate": ("evaluate", path, exported(tmp_path, path), "--data", images),
    }[command]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments), "--weights", "state_dict_em"])
    assert result.exit_code == 4 and "has no weights called 'state_dict_em'" in result.stderr, result.stderr
    result = CliRunner().invoke(main, [*map(str, arguments), "--weights", "state_dict_ema"])
    assert result.exit_code == 0, result.stderr
