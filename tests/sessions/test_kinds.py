"""Which backend opens a file is decided by its first bytes; its name counts where these are like nothing known, and for code."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.benchmarks.sweep.figures import figures_of
from cnet_deploy.benchmarks.sweep.plan import backends_of
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build_random
from cnet_deploy.sessions import backend_of, backends
from cnet_deploy.workflows.prepare import default_output
from tests.builders import TINY

NAMES = ("model", "model.ckpt", "model.BIN", "model.th", "model.pkl", "model.PTH", "model.SafeTensors", "model.onnx", "model.so")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network as a checkpoint in each container, as an ONNX file and as a library."""
    folder = tmp_path_factory.mktemp("kinds")
    model = build_random(TINY)
    paths = {"safetensors": folder / "m.safetensors", "zip": folder / "m.pth", "legacy": folder / "m.tar"}
    cd.save(model, paths["safetensors"])
    for name, modern in (("zip", True), ("legacy", False)):
        torch.save({"state_dict": model.state_dict()}, paths[name], _use_new_zipfile_serialization=modern)
    return paths | {
        target: cd.export(model, target, folder / f"m.{suffix}").path for target, suffix in (("onnx", "onnx"), ("native", "so"))
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("what", "backend"), [("safetensors", "torch"), ("zip", "torch"), ("legacy", "torch"), ("onnx", "onnxruntime")])
def test_content_decides(files: dict[str, Path], what: str, backend: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    shutil.copy(files[what], path)
    assert backend_of(path) == backend
    assert backends_of(str(path), ())[0] == backend


def test_figures_are_those_of_the_content(files: dict[str, Path], tmp_path: Path) -> None:
    for what, name, format in (("onnx", "model.ckpt", ".onnx"), ("zip", "model.so", "checkpoint"), ("zip", "model.pth", ".pth")):
        shutil.copy(files[what], tmp_path / name)
        assert figures_of(tmp_path / name).format == format


@pytest.mark.parametrize("name", ["model", "model.ckpt", "model.so"])
def test_every_workflow_opens_an_onnx_file_of_any_name(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    shutil.copy(files["onnx"], path)
    shutil.copy(manifest_path(files["onnx"]), manifest_path(path))
    assert cd.inspect(path).container == "onnx"
    assert all(comparison.passed for comparison in cd.verify(path, files["safetensors"]))
    with cd.open_session(path) as session, cd.open_session(path, backend="openvino") as other:
        assert (session.backend, other.backend) == ("onnxruntime", "openvino")


@pytest.mark.parametrize("name", ["model.onnx", "model.pth", "model", "model.ckpt", "model.so.1"])
def test_code_is_opened_under_its_own_name_alone(
    files: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a stranger's library could call itself model.onnx, which people take for data."""
    monkeypatch.setattr("cnet_deploy.sessions.native._Library", lambda _: pytest.fail("it was loaded"))
    path = tmp_path / name
    shutil.copy(files["native"], path)
    shutil.copy(manifest_path(files["native"]), manifest_path(path))
    for backend in (None, "native", "onnxruntime"):
        with pytest.raises(InputRefused, match="is a shared library, which is code, and is opened under a name that ends in .so alone"):
            cd.open_session(path, backend)
    shutil.copy(path, tmp_path / "model.SO")
    assert backend_of(tmp_path / "model.SO") == "native"


def test_bytes_like_nothing_known_are_what_the_name_says(tmp_path: Path) -> None:
    for name, backend in (("m.onnx", "onnxruntime"), ("m.ONNX", "onnxruntime"), ("m.engine", "tensorrt"), ("m.Pth", "torch")):
        (tmp_path / name).write_bytes(bytes(100))
        assert backend_of(tmp_path / name) == backend


def refusals() -> dict[str, tuple[bytes, str]]:
    archive, arrays, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.add(__file__, "model_best.pth.tar")
    np.savez(arrays, weight=np.ones(3))
    with zipfile.ZipFile(packed, "w") as many:
        many.writestr("metadata.json", "{}")
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    return {
        "tar": (archive.getvalue(), "is a tar archive"),
        "tar.gz": (gzip.compress(archive.getvalue()), "is a gzipped tar archive"),
        "npz": (arrays.getvalue(), r"is a NumPy archive \(.npz\)"),
        "keras": (packed.getvalue(), r"is a Keras file \(.keras\)"),
        "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), r"is an HDF5 file \(Keras\)"),
        "LFS": (lfs, "is a Git LFS pointer.*git lfs pull"),
        "page": (b"<!DOCTYPE html><html>", r"is a web page \(HTML\).*get the file itself again"),
    }


REFUSALS = refusals()


@pytest.mark.parametrize("name", ["model.pth.tar", "model.onnx", "model.engine", "model"])
@pytest.mark.parametrize("kind", REFUSALS)
def test_other_kinds_are_refused_as_what_they_are(kind: str, name: str, tmp_path: Path) -> None:
    content, words = REFUSALS[kind]
    (tmp_path / name).write_bytes(content)
    for look in (cd.open_session, cd.inspect):
        with pytest.raises(InputRefused, match=f"{name}: {words}"):
            look(tmp_path / name)


def test_a_file_of_images_is_no_checkpoint(few_images: Path) -> None:
    with pytest.raises(InputRefused):
        cd.open_session(few_images)


def test_default_outputs() -> None:
    names = (
        *("net.pth.tar", "net.ckpt", "net.pth.zip", "net.pth.tar.gz", "net.PTH", "net.bin", "net.th", "net.pkl", "net.safetensors", "net"),
    )
    assert {default_output(name, ".onnx").as_posix() for name in names} == {"net.onnx"}
    assert default_output("net.v2", ".onnx").as_posix() == "net.v2.onnx"
    assert default_output(".pth", ".onnx").as_posix() == ".pth.onnx"


def test_every_kind_that_is_opened_has_a_backend() -> None:
    from cnet_deploy.files.kinds import EXPECTED

    assert {kind for backend in backends().values() for kind in backend.opens} == set(EXPECTED)
