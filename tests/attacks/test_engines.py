"""Engines, libraries and their manifests swapped or lied about, before anything of them is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.artifacts import self_check as proof
from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.cli import main
from cnet_deploy.files import digest
from cnet_deploy.hardware.tensorrt import find
from cnet_deploy.models.build import build_random

from .helpers import ARCHITECTURE, group_conv_state, one_line, refused, written

Made = tuple[bytes, dict[str, Any]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A real engine, built here and for another machine, and its manifest with its proof."""
    out = tmp_path_factory.mktemp("engine") / "model.engine"
    cd.export(build_random(ARCHITECTURE), "tensorrt", out, flavour="tensorrt-rtx")
    return out.read_bytes(), json.loads(Path(f"{out}.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def ended(*arguments: object, code: int) -> str:
    """The one line that a command ends with, and its code."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code and done.stdout == "", done.output
    return one_line(done.stderr)


def pair(folder: Path, content: bytes, manifest: Any, name: str = "model.engine") -> Path:
    path = folder / name
    path.write_bytes(content)
    if manifest is not None:
        manifest_path(path).write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize("command", ["inspect", "run"])
@pytest.mark.parametrize("change", ["a byte", "a part", "more", "another's", "no manifest", "empty"])
def test_a_swapped_engine(folder: Path, picture: Path, engine: Made, command: str, change: str) -> None:
    content, manifest = engine
    spoiled = bytearray(content)
    spoiled[len(spoiled) // 2] ^= 1
    contents = {"a byte": bytes(spoiled), "a part": content[:-100], "more": content + b"\0", "another's": b"\x7fELF" * 1000, "empty": b""}
    path = pair(folder, contents.get(change, content), None if change == "no manifest" else manifest)
    swapped = "is a shared library" if command == "run" else "does not belong together"
    says = {"no manifest": "has no manifest", "empty": "is empty", "another's": swapped}.get(change, "does not belong together")
    refused(command, path, *([picture] if command == "run" else []), file=path, says=(says,))


@pytest.mark.parametrize(
    ("change", "says", "code"),
    [
        ({"target": "native"}, "describes no TensorRT engine", 4),
        ({"target": "onnx"}, "describes no TensorRT engine", 4),
        ({"flavour": "os.system"}, "unknown TensorRT flavour", 4),
        ({"flavour": "../../x"}, "unknown TensorRT flavour", 4),
        ({"flavour": None}, "does not name the TensorRT that built it", 4),
        ({"version": "0.0.0"}, "was built by tensorrt-rtx 0.0.0, and only that version reads it", 5),
        ({"version": "\x1b[31m" * 100}, "and only that version reads it", 5),
        ({"version": []}, "does not name the TensorRT that built it", 4),
    ],
    ids=str,
)
def test_a_manifest_that_lies_about_an_engine(
    folder: Path, picture: Path, engine: Made, change: dict[str, Any], says: str, code: int
) -> None:
    """Refused by what it says, before TensorRT is given a byte."""
    content, manifest = engine
    lies = {**manifest, **{key: value for key, value in change.items() if key == "target"}}
    lies["details"] = {**manifest["details"], **{key: value for key, value in change.items() if key != "target"}}
    path = pair(folder, content, lies)
    said = ended("run", path, picture, code=code)
    assert said.startswith(f"Error: {path}") and says in said
    assert json.loads(manifest_path(path).read_text()) == lies  # nothing is written into what was not believed


def test_an_engine_under_another_suffix(folder: Path, picture: Path, engine: Made) -> None:
    content, manifest = engine
    for name in ("model.so", "model.onnx"):
        path = pair(folder, content, manifest, name)
        refused("run", path, picture, file=path)


@pytest.mark.parametrize("target", ["onnx", "native"])
def test_a_pair_swapped_whole_is_stopped_by_its_pin_alone(folder: Path, tmp_path: Path, target: str) -> None:
    suffix = {"onnx": ".onnx", "native": ".so"}[target]
    meant, other = (cd.export(build_random(ARCHITECTURE, seed), target, tmp_path / f"{seed}{suffix}").path for seed in (1, 2))
    pin = digest(meant.read_bytes())
    path = folder / f"model{suffix}"
    for source in (meant, other):
        shutil.copy(source, path)
        shutil.copy(manifest_path(source), manifest_path(path))
        with cd.open_session(path):
            pass  # a digest is integrity, not origin
    refused("inspect", path, "--sha256", pin, says=("as pinned",))
    with pytest.raises(cd.CnetDeployError, match="as pinned"):
        cd.open_session(path, sha256=pin)
    shutil.copy(manifest_path(meant), manifest_path(path))  # half of the pair
    refused("inspect", path, says=("does not belong together",))


PROOFS: dict[str, Any] = {
    "none": None,
    "a list": [],
    "no logits": {"logits": []},
    "a row": {"logits": [1.0, 2.0]},
    "ragged": {"logits": [[1.0], [1.0, 2.0]]},
    "words": {"logits": [["a"] * 10] * 2},
    "too many": {"logits": [[0.0] * 10] * 5},
    "deep": {"logits": [[[0.0] * 10]] * 2},
    "a seed below 0": {"seed": -1},
    "a seed that is true": {"seed": True},
    "a seed of words": {"seed": "1"},
    "a tolerance of words": {"tolerance": "wide"},
    "a tolerance that is none": {"tolerance": None},
    "other logits": {"logits": [[1e3] * 10] * 2},
    "a tolerance below 0": {"tolerance": -1.0},
    "a tolerance of everything": {"tolerance": 1e300},
}


@pytest.fixture(scope="module")
def unverified(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact that says that nobody verified it, with an honest proof."""
    made = cd.export(build_random(ARCHITECTURE), "onnx", tmp_path_factory.mktemp("unverified") / "m.onnx")
    with cd.open_session(made.path) as session:
        honest = proof.make(session.run, session.input_shape[1:], 1e-4)
    values = json.loads(made.manifest.to_json())
    values["details"] |= {"verified": False, "reason": "elsewhere"}
    return made.path.read_bytes(), {**values, "proof": json.loads(json.dumps(honest))}


@pytest.mark.parametrize("kind", PROOFS)
def test_proofs_that_prove_nothing(folder: Path, tmp_path: Path, unverified: Made, kind: str) -> None:
    """What nobody verified is not believed before its proof is."""
    content, honest = unverified
    change = PROOFS[kind]
    values = {**honest, "proof": {**honest["proof"], **change} if isinstance(change, dict) else change}
    path = pair(folder, content, values, "model.onnx")
    code = 1 if kind == "other logits" else 4
    assert ended("verify", path, written(tmp_path, group_conv_state()), code=code).startswith(f"Error: {path}")
    assert json.loads(manifest_path(path).read_text()) == values  # it is still unverified


def test_an_honest_proof_is_believed_and_written_down(folder: Path, unverified: Made) -> None:
    path = pair(folder, *unverified, "model.onnx")
    with cd.open_session(path):
        pass
    found = Manifest.from_json(manifest_path(path).read_text())
    assert found.unverified is None and found.proof is None and found.verification[-1]["passed"]


@pytest.mark.parametrize("name", ["os", "tensorrt_rtx.os", "", "__main__", "tensorrt; import os"])
def test_flavours_that_a_manifest_may_not_name(name: str) -> None:
    with pytest.raises(cd.CnetDeployError, match="unknown TensorRT flavour"):
        find(name)
