"""Reading what the reference writes in every dress, and writing what it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import cnet_deploy as cd
from cnet_deploy.checkpoints.metadata import METADATA_KEY
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.checkpoints.save import reference_cannot_read
from cnet_deploy.errors import InputRefused, OutputRefused
from cnet_deploy.files import digest
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, logits, noise, save_checkpoint, state_dict, tiny, training_model


def same(a: DenselyConnected, b: DenselyConnected, atol: float = 0.0) -> None:
    np.testing.assert_allclose(logits(a, noise(a)), logits(b, noise(a)), rtol=0, atol=atol)


def test_the_real_checkpoint(checkpoint_path: Path) -> None:
    read = read_tensors(checkpoint_path)
    assert read.digest == digest(checkpoint_path.read_bytes())
    assert read.metadata == {"epoch": 21, "model": "condensenet", "best_prec1": pytest.approx(87.07)}
    model = cd.load(checkpoint_path)
    assert model.form == "training"
    assert model.source is not None
    assert (model.source.name, model.source.form) == ("reference-cifar10.pth.tar", "training")
    arch = model.architecture
    assert (arch.stages, arch.growth, arch.bottleneck) == ((4, 4, 4), (8, 16, 32), 4)
    assert (arch.group_1x1, arch.group_3x3, arch.condense_factor, arch.classes) == (4, 4, 4, 10)
    assert (arch.input_size, arch.stem_stride) == ((32, 32), 1)


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
@pytest.mark.parametrize("prefix", ["module.", "", "module.module."])
@pytest.mark.parametrize("arch", [TINY, TINY_LGC, tiny(2, 8)], ids=lambda arch: arch.kind)
def test_training_checkpoints(arch: cd.Architecture, prefix: str, legacy: bool, tmp_path: Path) -> None:
    model = training_model(arch)
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(model, prefix), legacy=legacy)
    loaded = cd.load(path)
    assert loaded.architecture == arch
    same(loaded, model)


@pytest.mark.parametrize("arch", [TINY, TINY_LGC, TINY_DENSENET, replace(TINY, classifier_keep=0.5)], ids=lambda arch: arch.summary())
def test_plain_state_dicts_and_safetensors_of_others(arch: cd.Architecture, tmp_path: Path) -> None:
    model = build_random(arch)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    safetensors.torch.save_file(state_dict(model), tmp_path / "plain.safetensors", {"format": "pt"})
    for name in ("plain.pt", "model.pth", "plain.safetensors"):
        same(cd.load(tmp_path / name), model)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-2), (torch.float64, 1e-6), (torch.bfloat16, 0.2)])
def test_other_precisions_are_read_as_fp32(dtype: torch.dtype, error: float, tmp_path: Path) -> None:
    model = training_model(TINY)
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state_dict(model).items()}
    loaded = cd.load(save_checkpoint(tmp_path / "c.pth.tar", state))
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    assert loaded.architecture == TINY
    same(loaded, model, atol=error * float(np.abs(logits(model, noise(model))).max()))


def test_cuda_tensors_are_read_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = training_model(TINY)
    # What is written is what a GPU writes: the storages say where they were.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda *_: "cuda:0")
    for legacy in (True, False):
        path = save_checkpoint(tmp_path / f"{legacy}.pth.tar", state_dict(model), legacy=legacy)
        assert b"cuda:0" in path.read_bytes()
        same(cd.load(path), model)


def test_counters_of_batch_norms_may_be_absent(tmp_path: Path) -> None:
    model = training_model(TINY)
    state = {name: value for name, value in state_dict(model).items() if not name.endswith("num_batches_tracked")}
    same(cd.load(save_checkpoint(tmp_path / "old.pth.tar", state)), model)


def test_views_and_parameters_are_read_too(tmp_path: Path) -> None:
    model = training_model(TINY)
    state: dict[str, Any] = dict(state_dict(model))
    state["module.classifier.weight"] = torch.nn.Parameter(state["module.classifier.weight"].t().contiguous().t())
    same(cd.load(save_checkpoint(tmp_path / "c.pth.tar", state)), model)


# ---- our own format --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch", [replace(TINY, input_size=(48, 40), stem_stride=2), TINY_LGC, TINY_DENSENET, tiny(4, 2, classifier_keep=0.7)]
)
def test_own_format_keeps_everything(arch: cd.Architecture, tmp_path: Path) -> None:
    model = build_random(arch)
    cd.save(model, tmp_path / "m.safetensors")
    loaded = cd.load(tmp_path / "m.safetensors")
    assert replace(loaded.architecture, classifier_keep=arch.classifier_keep) == arch
    assert loaded.preprocessing == model.preprocessing
    assert loaded.form == "group-conv"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_own_format_says_where_it_is_from(converted: DenselyConnected, checkpoint_path: Path, tmp_path: Path) -> None:
    cd.save(converted, tmp_path / "a.safetensors")
    again = cd.load(tmp_path / "a.safetensors")
    assert again.source == converted.source
    assert again.source is not None
    assert again.source.digest == digest(checkpoint_path.read_bytes())
    cd.save(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a.safetensors").read_bytes()


def test_own_format_holds_the_training_form_too(tmp_path: Path) -> None:
    for stage in (0, 2, 3):
        model = training_model(TINY, stage=stage)
        cd.save(model, tmp_path / "m.safetensors")
        loaded = cd.load(tmp_path / "m.safetensors")
        assert (loaded.form, loaded.architecture) == ("training", TINY)
        same(loaded, model)


def test_flags_win_over_own_metadata(converted: DenselyConnected, tmp_path: Path) -> None:
    cd.save(converted, tmp_path / "m.safetensors")
    loaded = cd.load(tmp_path / "m.safetensors", input_size=(40, 48), stem_stride=2)
    assert (loaded.architecture.input_size, loaded.architecture.stem_stride) == ((40, 48), 2)
    assert loaded.preprocessing.crop == (40, 48)
    with pytest.raises(InputRefused, match="was given"):
        cd.load(tmp_path / "m.safetensors", groups=8)


@pytest.mark.parametrize(("size", "resize"), [((448, 448), 512), ((64, 64), None), ((224, 224), 256)])
def test_preprocessing_is_the_same_from_either_container(size: tuple[int, int], resize: int | None, tmp_path: Path) -> None:
    model = build_random(cd.Architecture((1, 1, 1, 1, 1), (8, 8, 8, 8, 8)))
    cd.save(model, tmp_path / "m.safetensors")
    cd.save(model, tmp_path / "m.pth.tar")
    ours, theirs = (cd.load(tmp_path / name, input_size=size).preprocessing for name in ("m.safetensors", "m.pth.tar"))
    assert (ours.resize, ours.crop) == (theirs.resize, theirs.crop) == (resize, size)


def lie(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with safetensors.safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata)
    safetensors.torch.save_file(tensors, path, {METADATA_KEY: json.dumps(metadata)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own["architecture"].update(growth=[8, 16, 64]), "the metadata describes"),
        (lambda own: own["architecture"].update(group_1x1=8), "the metadata describes"),
        (lambda own: own["architecture"].update(stages=[4, 4]), "as many of each"),
        (lambda own: own["architecture"].update(depth=3), 'architecture has an unknown entry "depth"'),
        (lambda own: own.pop("architecture"), "its metadata is damaged: it has no architecture; convert the checkpoint again"),
        (lambda own: own["source"].pop("sha256"), "source has no sha256"),
        (lambda own: own["preprocessing"].update(std=[0, 0, 0]), r"preprocessing.std\[0\] is 0; expected a number over 0"),
        (lambda own: own["preprocessing"].pop("mean"), "preprocessing has no mean"),
        (lambda own: own.update(version=99), "its metadata is of another version: version is 99; expected 1; convert the checkpoint again"),
    ],
)
def test_metadata_that_lies(converted: DenselyConnected, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = tmp_path / "m.safetensors"
    cd.save(converted, path)
    lie(path, change)
    with pytest.raises(InputRefused, match=message) as caught:
        cd.load(path)
    assert str(caught.value).startswith(str(path))


# ---- the reference's converted format --------------------------------------------------------------------------------


def test_reference_format_round_trip(converted: DenselyConnected, tmp_path: Path) -> None:
    path = tmp_path / "converted.pth.tar"
    cd.save(converted, path)
    assert path.read_bytes()[:2] != b"PK"  # the legacy container: torch 1.1 reads no other
    content = torch.load(path, weights_only=True)
    assert list(content) == ["state_dict"]
    # Names and shapes of the reference's converted model (its models/condensenet_converted.py under DataParallel).
    assert content["state_dict"]["module.features.denseblock_1.denselayer_1.conv_1.index"].dtype == torch.int64
    assert content["state_dict"]["module.features.denseblock_1.denselayer_1.conv_1.conv.weight"].shape == (32, 4, 1, 1)
    assert content["state_dict"]["module.classifier.linear.weight"].shape == (10, 120)
    assert content["state_dict"]["module.classifier.index"].shape == (120,)
    assert "module.features.norm_last.num_batches_tracked" in content["state_dict"]
    loaded = cd.load(path)
    assert loaded.architecture == converted.architecture
    same(loaded, converted)


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (tiny(4, 2, classifier_keep=0.5), "C=2 with G=4"),
        (TINY, "classifier keep of 1"),
        (replace(TINY_LGC, classifier_keep=0.5), "a densenet_lgc"),
        (tiny(classes=7, classifier_keep=0.5), "7 classes"),
        (tiny(stem_stride=2, classifier_keep=0.5), "stem stride 2"),
        (tiny(input_size=(48, 48), classifier_keep=0.5), "last map of 12x12"),
    ],
)
def test_what_the_reference_cannot_read_is_not_written_for_it(arch: cd.Architecture, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pth.tar"
    with pytest.raises(OutputRefused, match=f"the reference can't read .*{reason}.*write .safetensors instead"):
        cd.save(build_random(arch), path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["condensenet-74-g4", "condensenet-74-g8"])
def test_the_published_imagenet_models_fit_the_reference(name: str) -> None:
    assert reference_cannot_read(build_random(cd.Architecture.from_name(name))) == []


def test_unknown_suffix(converted: DenselyConnected, tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match=r"expected \.safetensors, or \.pth\.tar"):
        cd.save(converted, tmp_path / "model.bin")
