"""Images -> names, by every kind of file; and what becomes of the names on the way from a checkpoint to an artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.files import digest
from cnet_deploy.images.answers import Answer, Guess
from cnet_deploy.images.preprocessing import Overrides
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.workflows.classify import classify
from tests.builders import ending_in_softmax
from tests.cases import few, long

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LABELS = EXAMPLES / "cifar10-labels.txt"
NAMES = tuple(LABELS.read_text().split())
PICTURES = EXAMPLES / "images"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def named(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real checkpoint as a model and as artifacts that carry names."""
    folder = tmp_path_factory.mktemp("named")
    assert run("convert", checkpoint_path, "-o", folder / "m.safetensors", "--labels", LABELS).exit_code == 0
    for target in ("--onnx", "--native"):
        assert run("export", folder / "m.safetensors", target).exit_code == 0
    return folder


@pytest.mark.parametrize("file", ["m.safetensors", "m.onnx", "m.so"])
def test_real_images_by_name(named: Path, file: str) -> None:
    done = run("run", named / file, PICTURES)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * 6
    for picture, block in zip(("cat", "ship", "truck"), (lines[:6], lines[6:12], lines[12:]), strict=True):
        assert block[0] == str(PICTURES / f"{picture}.png")
        assert block[1].split(" %  ")[1] == picture and float(block[1].split()[0]) > 50
    as_json = json.loads(run("run", named / file, PICTURES / "cat.png", "--json", "--top", 2).stdout)
    assert [guess["name"] for guess in as_json[0]["guesses"]] == ["cat", "dog"] and as_json[0]["guesses"][0]["class"] == 3


def test_names_travel_from_the_model_to_every_artifact(named: Path) -> None:
    assert cd.load(named / "m.safetensors").class_names == NAMES
    for file in ("m.safetensors", "m.onnx", "m.so"):
        with cd.open_session(named / file) as session:
            assert session.class_names == NAMES
        assert "airplane" in run("inspect", named / file).output
    alone = named / "alone.onnx"
    shutil.copy(named / "m.onnx", alone)  # an ONNX file says so itself, without its manifest
    with cd.open_session(alone) as session:
        assert session.class_names == NAMES
    again = named / "again.safetensors"
    cd.save(cd.load(named / "m.safetensors"), again)
    assert again.read_bytes() == (named / "m.safetensors").read_bytes()


@long
def test_training_checkpoints_tell_the_names_of_their_classes(small_dataset: Path, tmp_path: Path) -> None:
    arguments = ("--stages", "1-1", "--growth", "4-4", "--group-1x1", 2, "--group-3x3", 2, "--condense-factor", 2, "-b", 32, "--epochs", 4)
    assert run("train", small_dataset, *arguments, "--savedir", tmp_path / "run", "--no-save-model").exit_code == 0
    checkpoint = tmp_path / "run" / "save_models" / "checkpoint_003.pth.tar"
    assert cd.load(checkpoint).class_names[:2] == ("T-shirt/top", "Trouser")
    assert run("export", checkpoint, "--onnx", "-o", tmp_path / "m.onnx").exit_code == 0
    done = run("run", tmp_path / "m.onnx", PICTURES / "cat.png", "--top", 10)
    assert done.exit_code == 0 and "Ankle boot" in done.stdout


@pytest.mark.parametrize("count", few([100, 500]))
def test_the_same_answers_as_the_network_itself(count: int, onnx_path: Path, first_images: Callable[[int], Path]) -> None:
    images_path = first_images(count)
    answers = list(classify(onnx_path, images_path, top=10, batch=7))
    assert len(answers) == count and answers[-1].image == f"{images_path}#{count - 1}"
    with cd.open_session(onnx_path) as session:
        from cnet_deploy.images.decode import cifar_records

        logits = session.run(session.preprocessing.apply(cifar_records(images_path, 10)[0])).astype(np.float64)  # type: ignore[union-attr]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for answer, row in zip(answers, shares, strict=True):
        assert sum(guess.probability for guess in answer.guesses) == pytest.approx(1)
        assert [guess.label for guess in answer.guesses] == list(np.argsort(-row, kind="stable"))
        assert answer.guesses[0].probability == pytest.approx(row.max(), rel=1e-4)


def test_labels_win_over_none_and_over_the_models_own(named: Path, onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("\n".join(f"no {number}" for number in range(10)))
    assert "class 3" in run("run", onnx_path, PICTURES / "cat.png").stdout
    for file in (onnx_path, named / "m.onnx"):
        assert "no 3" in run("run", file, PICTURES / "cat.png", "--labels", tmp_path / "labels").stdout
    (tmp_path / "labels").write_text("one\ntwo\n")
    done = run("run", onnx_path, PICTURES / "cat.png", "--labels", tmp_path / "labels")
    assert done.exit_code == 4 and "2 class names; expected 10" in done.stderr
    done = run("convert", EXAMPLES / "reference-cifar10.pth.tar", "-o", tmp_path / "m.safetensors", "--labels", tmp_path / "labels")
    assert done.exit_code == 4 and not (tmp_path / "m.safetensors").exists()


def test_an_image_that_can_not_be_read_does_not_stop_the_others(onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    for name in ("a.png", "c.png"):
        shutil.copy(PICTURES / "ship.png", tmp_path / name)
    done = run("run", onnx_path, tmp_path, "--batch", 2)
    assert done.exit_code == 4
    assert done.stdout.count("class 8") == 2
    assert f"1 of 3 images were not classified: {tmp_path / 'b.png'}: is no readable image" in done.stderr
    as_json = json.loads(run("run", onnx_path, tmp_path, "--json").stdout)
    assert [bool(answer["guesses"]) for answer in as_json] == [True, False, True] and "is no readable image" in as_json[1]["problem"]


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((".png", mode) for mode in ("RGBA", "P", "L", "I;16", "1", "LA", "RGB")),
        *((".jpg", mode) for mode in ("L", "CMYK", "RGB")),
        *((".webp", mode) for mode in ("RGBA", "L", "RGB")),
        *((".bmp", mode) for mode in ("P", "L", "1", "RGB")),
        *((".ppm", mode) for mode in ("L", "1", "RGB")),
    ],
)
def test_pictures_of_every_kind(onnx_path: Path, tmp_path: Path, suffix: str, mode: str) -> None:
    picture = Image.open(PICTURES / "truck.png").resize((45, 61)).convert(mode if mode != "I;16" else "L").convert(mode)
    picture.save(tmp_path / f"picture{suffix}")
    (answer,) = classify(onnx_path, tmp_path / f"picture{suffix}")
    assert answer.problem is None and len(answer.guesses) == 5


def test_models_without_preprocessing_need_to_be_told(onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "m.onnx")
    done = run("run", tmp_path / "m.onnx", PICTURES / "cat.png")
    assert done.exit_code == 4 and "give --statistics" in done.stderr
    assert run("run", tmp_path / "m.onnx", PICTURES / "cat.png", "--statistics", "imagenet").stdout.count("class ") == 5
    done = run("export", "mobilenet-1.0-224", "--onnx", "-o", tmp_path / "n.onnx", "--labels", LABELS)
    assert done.exit_code == 4 and "can't hold class names" in done.stderr


def test_refusals(onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        ((onnx_path, tmp_path / "empty"), "holds no images"),
        ((tmp_path / "none.onnx", PICTURES), "no such file"),
        ((onnx_path, PICTURES, "--backend", "tflite"), "no backend is called"),
        ((onnx_path, PICTURES, "--groups", 4), "expected no groups"),
    ):
        done = run("run", *arguments)
        assert done.exit_code == 4 and says in done.stderr and done.stdout == ""


def test_logits_that_are_not_finite(converted: DenselyConnected, onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_path)
    for entry in model.graph.initializer:
        if entry.name.endswith("classifier.bias") or ("classifier" in entry.name and len(entry.dims) == 1 and entry.data_type == 1):
            entry.raw_data = np.full(entry.dims, np.inf, np.float32).tobytes()
    onnx.save(model, tmp_path / "m.onnx")
    done = run("run", tmp_path / "m.onnx", PICTURES / "cat.png")
    assert done.exit_code == 4 and "is not finite" in done.stderr


def test_a_pinned_digest(named: Path, tmp_path: Path) -> None:
    """Whoever swaps an artifact and its manifest together is stopped by --sha256 alone."""
    swapped = tmp_path / "m.so"
    cd.export(build_random(cd.load(named / "m.safetensors").architecture, seed=5), "native", swapped)
    meant = digest((named / "m.so").read_bytes())
    assert run("run", named / "m.so", PICTURES / "cat.png", "--sha256", meant.upper()).exit_code == 0
    assert run("run", swapped, PICTURES / "cat.png").exit_code == 0  # the pair is whole: a digest is integrity, not origin
    for command in (("run", swapped, PICTURES / "cat.png"), ("inspect", swapped), ("verify", swapped, named / "m.safetensors")):
        done = run(*command, "--sha256", meant)
        assert done.exit_code == 4 and "as pinned" in done.stderr
    for command in (("convert", named / "m.safetensors", "-o", tmp_path / "n.safetensors"),
                    ("export", named / "m.safetensors", "--onnx", "-o", tmp_path / "n.onnx"),
                    ("inspect", named / "m.safetensors")):  # fmt: skip
        done = run(*command, "--sha256", meant)
        assert done.exit_code == 4 and "as pinned" in done.stderr and sorted(tmp_path.iterdir()) == [swapped, manifest_path(swapped)]
    done = run("export", "condensenet-50", "--onnx", "-o", tmp_path / "n.onnx", "--sha256", meant)
    assert done.exit_code == 4 and "has no digest" in done.stderr


def test_lines_can_not_steer_the_terminal() -> None:
    answer = Answer("a\x1b[2J\n.png", (Guess(0, "\x1b[31mred", 0.5),))
    assert all(line.isprintable() for line in answer.lines())
    with pytest.raises(InputRefused):
        list(classify("nothing", [], preprocessing=Overrides(statistics="none")))


def test_a_photograph_is_turned_as_it_is_tagged(named: Path, tmp_path: Path) -> None:
    upright = run("run", named / "m.onnx", PICTURES / "cat.png", "--top", 1).stdout.split("\n", 1)[1]
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(PICTURES / "cat.png") as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "cat.png", exif=exif)
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png")
    assert run("run", named / "m.onnx", tmp_path / "cat.png", "--top", 1).stdout.split("\n", 1)[1] == upright
    assert run("run", named / "m.onnx", tmp_path / "lying.png", "--top", 1).stdout.split("\n", 1)[1] != upright


def test_16_bits_are_the_picture_of_8(named: Path, tmp_path: Path) -> None:
    with Image.open(PICTURES / "ship.png") as picture:
        grey = picture.convert("L")
    grey.save(tmp_path / "eight.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    eight, sixteen = classify(named / "m.onnx", [tmp_path / "eight.png", tmp_path / "sixteen.png"])
    assert eight.guesses == sixteen.guesses


def test_probabilities_are_printed_as_they_are(named: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ending_in_softmax(named / "m.onnx", tmp_path / "s.onnx")
    stated = Overrides(statistics="cifar10")  # else a note says that they were guessed
    (logits,), (shares,) = (
        list(classify(file, PICTURES / "cat.png", preprocessing=stated)) for file in (named / "m.onnx", tmp_path / "s.onnx")
    )
    assert shares.guesses[0].name == "cat" and shares.guesses[0].probability > 0.5
    assert [guess.probability for guess in shares.guesses] == pytest.approx([guess.probability for guess in logits.guesses], abs=1e-5)
    assert caplog.messages == [f"{tmp_path / 's.onnx'}: answers with probabilities (it ends in a softmax), which are printed as they are"]
    caplog.clear()
    assert len(list(classify(tmp_path / "s.onnx", PICTURES, batch=1, preprocessing=stated))) == 3 and len(caplog.messages) == 1


def test_urls_and_folders_of_other_files(onnx_path: Path, tmp_path: Path) -> None:
    done = run("run", onnx_path, "https://example.org/cat.jpg")
    assert (
        done.exit_code == 4
        and "https://example.org/cat.jpg: is a URL; download it first: curl -O https://example.org/cat.jpg" in done.stderr
    )
    shutil.copy(PICTURES / "cat.png", tmp_path / "cat.png")
    (tmp_path / "dog.heic").write_bytes(b"x")
    done = run("run", onnx_path, tmp_path, "--top", 1, "--statistics", "cifar10")
    assert done.exit_code == 0 and done.stderr == f"{tmp_path}: 1 file was not taken for images: dog.heic\n"
    assert not run("run", onnx_path, tmp_path, "--top", 1, "--quiet").stderr
