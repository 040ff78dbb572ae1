"""Networks that read grey and RGBA images: every runtime computes what torch computes, and images are read in their channels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.checkpoints.metadata import METADATA_KEY, own_metadata
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.native.planning import make_plan
from cnet_deploy.images.decode import cifar_records, read_images
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build
from cnet_deploy.models.counting import count
from cnet_deploy.program.forms import FORMS, rewrite
from cnet_deploy.program.lower import lower
from cnet_deploy.sessions.native import open_file
from cnet_deploy.workflows.export import export_repository
from tests.builders import TINY, TINY_DENSENET, logits, save_checkpoint, state_dict, training_model
from tests.cases import exhaustive, few, long
from tests.exporters.native.helpers import BF16_ERROR, ERROR, exact, images_for, isas, logits_on_neon, network

GREY, RGBA = replace(TINY, image_channels=1), replace(TINY, image_channels=4)
# Each channel count with each way to split rows: strides of 1, 2 and 3.
CASES = [
    GREY,
    replace(GREY, stem_stride=2, input_size=(57, 62)),
    replace(TINY_DENSENET, image_channels=1, stem_stride=3, input_size=(45, 40)),
    RGBA,
    replace(RGBA, stem_stride=2, input_size=(57, 62)),
    replace(RGBA, stem_stride=3, input_size=(45, 40)),
]
every_case = pytest.mark.parametrize("arch", CASES, ids=lambda arch: arch.summary())
both = pytest.mark.parametrize("channels", [1, 4])


def differ(result: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The largest error, relative to the largest logit."""
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def command(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@every_case
def test_the_architecture(arch: Architecture) -> None:
    counted = count(build(arch, "group-conv"), arch.input_size)
    assert (arch.flops, arch.macs, arch.params) == (counted.flops, counted.macs, counted.params)
    assert (
        Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch and arch.to_dict()["image_channels"] == arch.image_channels
    )
    assert "image_channels" not in TINY.to_dict()
    assert (" grey " if arch.image_channels == 1 else " RGBA ") in arch.summary()
    with pytest.raises(InputRefused, match="image_channels is 2; expected one of 1, 3, 4"):
        replace(arch, image_channels=2)  # type: ignore[arg-type]


@every_case
def test_program_and_onnx(arch: Architecture, tmp_path: Path) -> None:
    model = network(arch)
    images = images_for(model, 3)
    expected = exact(model, images)
    for form in FORMS:
        assert differ(rewrite(lower(model), form).run(images.astype(np.float64)), expected) <= ERROR
    cd.export(model, "onnx", tmp_path / "m.onnx")
    for backend in ("onnxruntime", "openvino"):
        with cd.open_session(tmp_path / "m.onnx", backend) as session:
            assert session.input_shape == (None, *arch.image_shape) and session.preprocessing == model.preprocessing
            assert differ(session.run(images), expected) <= ERROR
            with pytest.raises(InputRefused, match=rf"expected float32 \[N, {arch.image_channels}, "):
                session.run(np.zeros((1, 3, *arch.input_size), np.float32))
    assert cd.inspect(tmp_path / "m.onnx").architecture == arch


@pytest.mark.parametrize(("channels", "cpu", "precision"), few(
    [(4, "host", "fp32"), (1, "host", "fp32"), (1, None, "fp32"), (4, None, "fp32"), (1, None, "bf16"), (4, None, "bf16")], 1
))  # fmt: skip
def test_native(channels: int, cpu: str | None, precision: str, tmp_path: Path) -> None:
    for arch in (arch for arch in CASES if arch.image_channels == channels):
        model = network(arch)
        images = images_for(model, 3)  # on two threads, two by images and one by layers
        expected = exact(model, images)
        done = cd.export(model, "native", tmp_path / "m.so", cpu=cpu, precision=precision, tolerance=1)
        for isa in (name for name in isas(precision) if name in done.manifest.details["isas"]):
            for threads in (1, 2):
                with open_file(read_pair(tmp_path / "m.so"), device="cpu", threads=threads, isa=isa) as session:
                    assert session.input_shape == (None, *arch.image_shape)
                    assert differ(session.run(images), expected) <= (ERROR if precision == "fp32" else BF16_ERROR)


@exhaustive("test_native")
@pytest.mark.parametrize("channels", [1, 4])
def test_neon(channels: int, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    model = network(replace(TINY, image_channels=channels, final_pool="original", input_size=(48, 40)))  # type: ignore[arg-type]
    images = images_for(model, 2)
    assert differ(logits_on_neon(system_tool, model, images, tmp_path), exact(model, images)) <= ERROR


@both
def test_kernels_are_compiled_for_the_channels(channels: int) -> None:
    def defines(arch: Architecture) -> tuple[str, ...]:
        return make_plan(lower(network(arch)), precision="fp32", description="{}", isas=("baseline",)).defines

    arch = replace(TINY, image_channels=channels)  # type: ignore[arg-type]
    assert defines(arch) == (f"-DCNET_CHANNELS={channels}",) and defines(TINY) == ()
    assert defines(replace(arch, final_pool="original")) == (f"-DCNET_CHANNELS={channels}", "-DCNET_WINDOWED=1")


# ---- from a checkpoint to answers --------------------------------------------------------------------------------------------------


def checkpoint(channels: int, folder: Path) -> Path:
    return save_checkpoint(folder / "c.pth.tar", state_dict(training_model(replace(TINY, image_channels=channels))))  # type: ignore[arg-type]


@both
@long
def test_from_a_checkpoint_to_an_artifact(channels: int, tmp_path: Path, few_images: Path) -> None:
    path = checkpoint(channels, tmp_path)
    statistics = {1: ((0.4735,), (0.2507,)), 4: ((0.4914, 0.4824, 0.4467, 0), (0.2471, 0.2435, 0.2616, 1))}[channels]
    model = cd.load(path)
    assert model.architecture == replace(TINY, image_channels=channels)  # type: ignore[arg-type]
    assert (model.preprocessing.mean, model.preprocessing.std) == statistics
    inspection = cd.inspect(path)
    assert inspection.architecture == model.architecture and inspection.details["preprocessing"]["guessed"] == ["statistics"]
    assert "guessed from the input size and number of classes: give --mean and --std to convert" in inspection.summary()
    assert "32x32 grey" in inspection.summary() or "32x32 RGBA" in inspection.summary()
    command("convert", path, "-o", tmp_path / "m.safetensors", "--images", few_images)
    command("export", tmp_path / "m.safetensors", "--onnx", "-o", tmp_path / "m.onnx", "--images", few_images)
    assert "computes what" in command("verify", tmp_path / "m.onnx", path)
    _, repository = export_repository(tmp_path / "m.safetensors", "onnx", tmp_path / "models")
    assert f"data_type: TYPE_FP32 dims: [{channels}, 32, 32]" in repository.config.read_text()
    numbers = ",".join(["0.5"] * channels)
    command("convert", path, "-o", tmp_path / "s.safetensors", "--mean", numbers, "--std", numbers)
    assert cd.load(tmp_path / "s.safetensors").preprocessing == cd.Preprocessing(
        "custom", (0.5,) * channels, (0.5,) * channels, None, (32, 32)
    )  # fmt: skip
    with pytest.raises(InputRefused, match=f"mean has 3 numbers; expected {channels}, as the network reads (grey|RGBA) images"):
        cd.export(path, "onnx", tmp_path / "x.onnx", preprocessing=cd.Overrides(mean=(0.5, 0.5, 0.5)))
    assert CliRunner().invoke(main, ["convert", str(path), "--mean", "0.5,0.5"]).exit_code == 2


@both
def test_images_are_read_in_the_network_s_channels(channels: int, tmp_path: Path, few_images: Path) -> None:
    steps = cd.load(checkpoint(channels, tmp_path)).preprocessing
    mode = {1: "L", 4: "RGBA"}[channels]
    image = Image.open(Path(__file__).parents[2] / "examples" / "images" / "cat.png")
    see_through = image.convert("RGBA")
    see_through.putalpha(image.convert("L"))
    pixels, labels = cifar_records(few_images, 10)
    for name, picture in (("rgb", image.convert("RGB")), ("grey", image.convert("L")), ("rgba", see_through)):
        picture.save(tmp_path / f"{name}.png")
        result = read_images(tmp_path / f"{name}.png", steps, 10).pixels
        expected = np.asarray(picture.convert(mode))
        assert result.shape == (1, channels, 32, 32)
        assert (result[0] == (expected[None] if channels == 1 else expected.transpose(2, 0, 1))).all()
    records = read_images(few_images, steps, 10).pixels
    assert records.shape == (100, channels, 32, 32)
    grey = np.stack([np.asarray(Image.fromarray(one.transpose(1, 2, 0)).convert("L")) for one in pixels])[:, None]
    assert (records == (grey if channels == 1 else np.concatenate([pixels, np.full_like(pixels[:, :1], 255)], 1))).all()
    (evaluated,) = cd.evaluate(tmp_path / "c.pth.tar", few_images).files  # by way of the dataset, which holds RGB
    answers = logits(cd.load(tmp_path / "c.pth.tar"), steps.apply(records)).argmax(1)
    assert (evaluated.answers == answers).all() and evaluated.right1 == (answers == labels).sum()
    assert [answer.guesses[0].label for answer in cd.classify(tmp_path / "c.pth.tar", few_images, top=1)] == answers.tolist()


def test_statistics_of_grey_images_are_known_for_grey_networks() -> None:
    grey = cd.Preprocessing.of((32, 32), 10, "fashion-mnist", channels=1)
    assert (grey.mean, grey.std, grey.guessed) == ((0.286,), (0.353,), ())
    of_colour = cd.Overrides(statistics="cifar10").apply_to(cd.Preprocessing.of((32, 32), 10, channels=1), (32, 32), 1)
    assert of_colour.guessed == ("statistics",)  # no name states them for grey images
    assert of_colour.doubts(cd.Overrides(statistics="cifar10")) == ""  # but whoever gave the name has heard of it


def test_other_numbers_of_channels_are_refused(tmp_path: Path) -> None:
    state = state_dict(training_model(TINY))
    state["module.features.init_conv.weight"] = torch.zeros(16, 2, 3, 3)
    with pytest.raises(InputRefused, match=r"reads images of 2 channels; expected one of 1 \(grey\), 3 \(RGB\), 4 \(RGBA\)"):
        cd.load(save_checkpoint(tmp_path / "c.pth.tar", state))


def test_files_of_different_channels_do_not_fit_each_other(tmp_path: Path) -> None:
    cd.export(network(TINY), "onnx", tmp_path / "m.onnx")
    with pytest.raises(InputRefused, match="reads images of 32x32 RGB and the model of 32x32 grey"):
        cd.verify(tmp_path / "m.onnx", checkpoint(1, tmp_path))


def test_metadata_that_disagrees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    model = network(GREY)
    model.preprocessing = cd.Preprocessing.of((32, 32), 10)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    (tmp_path / "m.safetensors").write_bytes(safetensors.torch.save(tensors, {METADATA_KEY: own_metadata(model)}))
    message = "preprocessing is for RGB images; expected grey images, which the network reads"
    with pytest.raises(InputRefused, match=f"its metadata is damaged: {message}"):
        cd.load(tmp_path / "m.safetensors")
    with pytest.raises(InputRefused, match=message):
        cd.export(model, "onnx", tmp_path / "m.onnx")
    cd.export(network(GREY), "onnx", tmp_path / "m.onnx")
    manifest = tmp_path / "m.onnx.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "preprocessing": model.preprocessing.to_dict()}))
    with pytest.raises(InputRefused, match=message):
        cd.open_session(tmp_path / "m.onnx")


def test_the_reference_s_format_holds_rgb_networks_alone(tmp_path: Path) -> None:
    from cnet_deploy.errors import OutputRefused

    with pytest.raises(OutputRefused, match=r"the reference can't read .*grey images \(only RGB\)"):
        cd.save(network(replace(GREY, classifier_keep=0.5)), tmp_path / "m.pth.tar")
