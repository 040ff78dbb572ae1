"""Errors of files on real images, and what is said of those that can't be read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.images.datasets import ArrayDataset, open_dataset
from cnet_deploy.images.preprocessing import STATISTICS, Overrides
from cnet_deploy.models.build import build_random
from cnet_deploy.workflows.evaluate import difference, evaluate, ranked, wilson
from tests.builders import TINY, logits, save_checkpoint, state_dict, tiny, training_model
from tests.cases import few, long


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, checkpoint_path: Path) -> list[Path]:
    """The real network in three forms."""
    folder = tmp_path_factory.mktemp("files")
    model = cd.convert(cd.load(checkpoint_path))
    cd.save(model, folder / "model.safetensors")
    cd.export(model, "onnx", folder / "model.onnx")
    return [checkpoint_path, folder / "model.safetensors", folder / "model.onnx"]


def command(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["evaluate", *map(str, words)])
    return done.exit_code, done.output


@pytest.mark.parametrize(("count", "errors"), few([(100, [10.0, 9.0, 9.0]), (500, [10.6, 10.0, 10.0])]))
def test_three_forms_side_by_side(count: int, errors: list[float], files: list[Path], first_images: Callable[[int], Path]) -> None:
    images = first_images(count)
    found = evaluate(files, images)
    assert [file.backend for file in found.files] == ["torch", "torch", "onnxruntime"]
    assert [file.form for file in found.files] == ["training", "group-conv", "group-conv"]
    assert [round(file.top1_error, 2) for file in found.files] == errors
    source = open_dataset(images)
    assert isinstance(source, ArrayDataset)
    model = cd.load(files[0])
    order = np.argsort(-logits(model, model.preprocessing.apply(source.pixels)), axis=1)
    assert found.files[0].right1 == (order[:, 0] == source.labels).sum()
    assert found.files[0].right5 == (order[:, :5] == source.labels[:, None]).any(1).sum()
    values = found.to_dict()
    json.dumps(values, allow_nan=False)
    agreement = np.asarray(values["agreement"])
    assert (agreement == agreement.T).all() and (np.diag(agreement) == 1).all() and agreement[1, 2] == 1 and 0.9 < agreement[0, 1] < 1
    points, (low, high) = difference(found.files[0], found.files[1])
    expected = errors[1] - errors[0]
    assert points == pytest.approx(expected) and low < expected < high


@pytest.mark.parametrize("keyword", ["progress", "told"])  # the second is its name until 0.1.0
def test_progress(keyword: str, files: list[Path], few_images: Path) -> None:
    steps: list[tuple[str, float]] = []
    evaluate(files[1], few_images, batch=50, **{keyword: lambda text, share: steps.append((text, share))})
    assert steps == [("50 of 100 images", 0.5), ("100 of 100 images", 1.0)]


@pytest.mark.parametrize(
    ("count", "error", "points", "low"),
    few([(100, "10.00 % (5.52 to 17.44)", "-1.00", 4.81), (500, "10.60 % (8.20 to 13.61)", "-0.60", 7.67)]),
)
def test_the_command_prints_text_and_json(
    count: int, error: str, points: str, low: float, files: list[Path], first_images: Callable[[int], Path]
) -> None:
    code, output = command(*files[:2], "--data", first_images(count))
    assert code == 0 and f"top-1 error {error}" in output and f"{points} points" in output and f"{count} images" in output
    code, output = command(files[2], "--data", first_images(count), "--json", "--batch", "7", "--statistics", "cifar10")
    assert code == 0 and json.loads(output)["files"][0]["top1_interval"][0] == pytest.approx(low, abs=0.01)


def test_intervals() -> None:
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-9) and wilson(10, 10)[1] == pytest.approx(100)
    low, high = wilson(0, 500)
    assert low == pytest.approx(0, abs=1e-9) and 0.7 < high < 0.8  # the rule of three: 3 / 500 is about right
    # Coverage on a sample of experiments: the interval holds the true rate about 95 times of 100.
    random = np.random.default_rng(0)
    held = [low <= 8 <= high for low, high in (wilson(int(n), 400) for n in random.binomial(400, 0.08, 4000))]
    assert 0.93 < np.mean(held) < 0.97


def test_places_of_labels_ties_and_what_is_not_finite() -> None:
    table = np.asarray([[1, 3, 2], [2, 2, 2], [np.nan, 1, 0], [np.inf, 1, 0]], np.float32)
    answers, place, finite = ranked(table, np.asarray([2, 1, 1, 0]))
    assert place[:2].tolist() == [1, 1] and answers[:2].tolist() == [1, 0] and finite.tolist() == [True, True, False, False]


def test_a_network_of_nan_is_wrong_everywhere(tmp_path: Path, few_images: Path) -> None:
    model = build_random(TINY)
    cd.save(model, tmp_path / "m.safetensors")
    cd.export(model, "onnx", tmp_path / "m.onnx")
    import onnx

    graph = onnx.load(tmp_path / "m.onnx")
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 1 and tensor.dims[0] == 10:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, np.float32), tensor.name))
    onnx.save(graph, tmp_path / "bad.onnx")
    found = evaluate(tmp_path / "bad.onnx", few_images).files[0]
    assert (found.not_finite, found.top1_error, found.top5_error) == (100, 100, 100)
    assert "100 ANSWERS ARE NOT FINITE" in command(tmp_path / "bad.onnx", "--data", few_images)[1]


def write_folder(folder: Path, classes: int, each: int = 2) -> Path:
    """Class folders of small images."""
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            Image.fromarray(random.integers(0, 256, (40, 36, 3), np.uint8)).save(folder / f"class{label}" / f"{number}.png")
    return folder


def test_corrupt_images_are_named_and_counted(tmp_path: Path, files: list[Path]) -> None:
    data = write_folder(tmp_path / "val", 10)
    assert evaluate(files[1], tmp_path).images == 20
    (data / "class3" / "1.png").write_bytes(b"damaged")
    (data / "class7" / "0.png").write_bytes((data / "class7" / "0.png").read_bytes()[:200])
    code, output = command(files[1], "--data", data)
    assert code == 4 and "2 of 20 images can't be read; expected at most 0 (--skip-corrupt)" in output
    assert "class3/1.png" in output and "class7/0.png" in output
    assert command(files[1], "--data", data, "--skip-corrupt", "1")[0] == 4
    code, output = command(*files[1:], "--data", data, "--skip-corrupt", "2")
    assert (
        code == 0
        and "18 images, 10 classes" in output
        and "not counted, because they can't be read: 2 images" in output
        and "class3/1.png" in output
    )
    for path in data.rglob("*.png"):
        path.write_bytes(b"x")
    code, output = command(files[1], "--data", data, "--skip-corrupt", "20")
    assert code == 4 and "none of its 20 images can be read" in output


def test_data_that_does_not_fit_the_network(tmp_path: Path, files: list[Path], few_images: Path) -> None:
    with pytest.raises(InputRefused, match=r"the dataset has 3 classes \(class0, class1, class2 …\), but .* has 10; expected the same"):
        evaluate(files[1], write_folder(tmp_path / "three", 3))
    (tmp_path / "bad.bin").write_bytes(few_images.read_bytes()[: 3073 * 3 - 1])
    assert command(files[1], "--data", tmp_path / "bad.bin")[0] == 4
    (tmp_path / "label.bin").write_bytes(bytes([200]) + bytes(3072))
    code, output = command(files[1], "--data", tmp_path / "label.bin")
    assert code == 4 and "label 200; expected 0 to 9" in output
    code, output = command(files[1], "--data", tmp_path / "nowhere")
    assert code == 4 and "no such folder; expected one with" in output


@long
def test_preprocessing_is_the_file_s_unless_overridden(files: list[Path], few_images: Path) -> None:
    own, other = evaluate(files[1], few_images), evaluate(files[1], few_images, preprocessing=Overrides(statistics="imagenet"))
    assert own.files[0].preprocessing.statistics == "cifar10" and own.files[0].right1 != other.files[0].right1
    mean, std = STATISTICS["cifar10"]
    same = evaluate(files[1], few_images, preprocessing=Overrides(mean=mean, std=std))
    assert (same.files[0].answers == own.files[0].answers).all()
    larger = evaluate(files[1], few_images, preprocessing=Overrides(resize=40))
    assert larger.files[0].preprocessing.resize == 40 and larger.files[0].right1 < own.files[0].right1
    for wrong, message in ((Overrides(statistics="x"), "no statistics are called 'x'"), (Overrides(resize=8), "resize is 8; expected 32"),
                           (Overrides(std=(0.0, 1.0, 1.0)), "over 0"), (Overrides(mean=(math.nan, 0, 0)), "finite")):  # fmt: skip
        with pytest.raises(InputRefused, match=message):
            evaluate(files[1], few_images, preprocessing=wrong)


def test_a_foreign_network_needs_to_be_told(tmp_path: Path, few_images: Path) -> None:
    """An ONNX file that says nothing of itself, as from another tool."""
    import onnx

    cd.export(build_random(TINY), "onnx", tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "foreign.onnx")
    code, output = command(tmp_path / "foreign.onnx", "--data", few_images)
    assert code == 4 and "says nothing of preprocessing; give --statistics" in output
    code, output = command(tmp_path / "foreign.onnx", tmp_path / "m.onnx", "--data", few_images, "--statistics", "cifar10")
    assert code == 0 and "100.00% of answers the same" in output


def test_networks_of_two_sizes_see_the_same_images(tmp_path: Path, few_images: Path) -> None:
    cd.save(build_random(TINY), tmp_path / "small.safetensors")
    cd.save(build_random(tiny(input_size=(48, 48))), tmp_path / "large.safetensors")
    found = evaluate([tmp_path / "small.safetensors", tmp_path / "large.safetensors"], few_images)
    assert [file.preprocessing.crop for file in found.files] == [(32, 32), (48, 48)] and found.images == 100


def test_checkpoints_that_can_not_tell_their_groups(tmp_path: Path, few_images: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY, stage=0)))
    assert command(path, "--data", few_images)[0] == 4
    assert command(path, "--data", few_images, "--groups", "4", "--condense-factor", "4")[0] == 0
    cd.export(build_random(TINY), "onnx", tmp_path / "m.onnx")
    code, output = command(tmp_path / "m.onnx", "--data", few_images, "--groups", "4")
    assert code == 4 and "is an artifact, whose architecture is fixed; expected no groups" in output


def test_a_backend_by_name(files: list[Path], few_images: Path) -> None:
    found = evaluate(files[1], few_images, backend="torch.bf16", threads=1)
    assert found.files[0].precision == "bf16" and found.files[0].top1_error < 13
    assert torch.get_num_threads() > 0
    code, output = command(files[2], "--data", few_images, "--backend", "nobody")
    assert code == 4 and "no backend is called 'nobody'" in output


NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SORTED_OTHERWISE = ("Airplane", "automobile", "Bird", "cat", "Deer", "dog", "Frog", "horse", "Ship", "truck")


@pytest.fixture(scope="module")
def named_files(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The real network with its classes' names, and one whose classes stand in another order."""
    folder = tmp_path_factory.mktemp("named")
    model = cd.load(files[1])
    model.class_names = NAMES
    cd.save(model, folder / "named.safetensors")
    with torch.no_grad():
        for tensor in model.classifier.linear.parameters():
            tensor.copy_(tensor.flip(0))
    model.class_names = NAMES[::-1]
    cd.save(model, folder / "reversed.safetensors")
    return [folder / "named.safetensors", folder / "reversed.safetensors"]


def write_class_folders(folder: Path, images: Path, names: Sequence[str]) -> Path:
    """Real images in folders; ``names`` are those of classes 0, 1 …"""
    source = open_dataset(images)
    assert isinstance(source, ArrayDataset)
    for number, (pixels, label) in enumerate(zip(source.pixels, source.labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / names[label] / f"{number:03}.png")
    return folder


@long
def test_classes_are_matched_by_name_whatever_the_order_of_the_folders(
    files: list[Path], named_files: list[Path], few_images: Path, tmp_path: Path
) -> None:
    """The error is that on the same images in CIFAR's own file."""
    data = write_class_folders(tmp_path / "val", few_images, SORTED_OTHERWISE)
    found = evaluate(named_files, data)
    assert [file.top1_error for file in found.files] == pytest.approx([9.0, 9.0])
    assert [file.matching.how for file in found.files] == ["by name"] * 2 and found.files[0].matching.order != tuple(range(10))
    assert found.to_dict()["agreement"][0][1] == 1 and "classes matched by name" in found.lines()
    assert found.files[0].right5 == evaluate(files[1], few_images).files[0].right5
    code, output = command(files[1], named_files[0], "--data", data)
    assert code == 0 and f"classes matched by the sorted order of the folders ({files[1]})" in output
    assert f"classes matched by name ({named_files[0]})" in output and "top-1 error 9.00 %" in output
    assert evaluate(files[1], data).files[0].top1_error > 50  # a file without names can't tell


@long
def test_published_datasets_are_matched_by_name_too(named_files: list[Path], few_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(*arguments: object, **options: object) -> ArrayDataset:
        dataset = open_dataset(few_images)
        assert isinstance(dataset, ArrayDataset) and not dataset.named
        dataset.class_names, dataset.named = NAMES, True
        return dataset

    assert evaluate(named_files[0], few_images).files[0].matching.how == "by number"
    monkeypatch.setattr("cnet_deploy.workflows.evaluate.open_dataset", named)
    found = evaluate(named_files, few_images)
    assert [file.top1_error for file in found.files] == pytest.approx([9.0, 9.0])
    assert [file.matching.order for file in found.files] == [None, tuple(range(9, -1, -1))]


def test_classes_of_other_names_are_named(named_files: list[Path], few_images: Path, tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "val", few_images, [*NAMES[:9], "lorry"])
    code, output = command(named_files[0], "--data", data)
    assert code == 0 and "only the model has truck; only the dataset has lorry" in output
    values = evaluate(named_files[0], data).to_dict()["files"][0]
    assert values["classes_matched"] == "by the sorted order of the folders" and "lorry" in values["classes_not_by_name"]


@long
def test_what_was_not_taken_and_what_is_tagged_is_told(named_files: list[Path], few_images: Path, tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "val", few_images, NAMES)
    (data / "cat" / "notes.txt").write_text("no image")
    exif = Image.Exif()
    exif[0x0112] = 8
    path = data / "dog" / sorted(file.name for file in (data / "dog").iterdir())[0]
    with Image.open(path) as image:
        image.rotate(-90).save(path.with_suffix(".png"), exif=exif)
    code, output = command(named_files[0], "--data", data)
    assert code == 0 and output.count("1 file was not taken for images: cat/notes.txt") == 2  # as a note and in the result
    assert "1 image has an EXIF orientation and taken as stored" not in output
    assert "1 image has an EXIF orientation, and was taken as stored, as torchvision does; --exif turns it" in output
    values = json.loads(CliRunner().invoke(main, ["evaluate", str(named_files[0]), "--data", str(data), "--exif", "--json"]).stdout)
    assert (values["not_taken"], values["tagged_to_be_turned"], values["exif"]) == (["cat/notes.txt"], 1, True)
    assert values["files"][0]["top1_error"] == pytest.approx(9.0)
    assert "1 image has an EXIF orientation, and was turned" in evaluate(named_files[0], data, exif=True).lines()[2]


@pytest.mark.parametrize(("form", "problem"), [("{}", "the folders are numbers, which sort as 0, 1, 10, 11; "), ("{:02}", "")])
def test_folders_that_are_numbers_sort_as_text(tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str, problem: str) -> None:
    cd.save(build_random(tiny(classes=12)), tmp_path / "m.safetensors")
    for number in range(12):
        (tmp_path / "val" / form.format(number)).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "val" / form.format(number) / "1.png")
    (found,) = evaluate(tmp_path / "m.safetensors", tmp_path, preprocessing=Overrides(statistics="cifar10")).files
    assert found.matching.how == "by the sorted order of the folders" and problem in (found.matching.problem or "")
    assert bool(caplog.messages) == bool(problem) and problem in caplog.text


def test_a_network_of_other_classes_than_cifar_s(tmp_path: Path, few_images: Path) -> None:
    """It was evaluated with an error of 100 %, and `run`, `convert` and `verify` took the labels as its own."""
    model = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(replace(TINY, classes=1000))))
    shape = ["--input-size", "32", "--stem-stride", "1"]
    words = "a CIFAR binary file has 10 or 100 classes, but the network has 1,000"
    for arguments in (
        ["evaluate", model, "--data", few_images], ["run", model, few_images], ["convert", model, "--images", few_images],
        ["export", model, "--onnx", "--images", few_images],
    ):  # fmt: skip
        done = CliRunner().invoke(main, [*map(str, arguments), *shape])
        assert done.exit_code == 4 and words in done.output, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth.tar"]
    cd.save(cd.convert(cd.load(model, input_size=(32, 32), stem_stride=1)), tmp_path / "m.safetensors")
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "m.safetensors"), str(model), "--images", str(few_images)])
    assert done.exit_code == 4 and words in done.output, done.output


def test_an_interruption_says_what_there_is(files: list[Path], few_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, progress: Callable[[str, float], None], **__: object) -> None:
        progress("64 of 500 images", 0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr("cnet_deploy.workflows.evaluate.evaluate", interrupted)
    code, output = command(files[1], "--data", few_images)
    assert code == 130 and "interrupted after 64 of 500 images; there is no result" in output and "written" not in output
