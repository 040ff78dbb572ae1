"""Files of each kind, written by the libraries that write such files, are known by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import TensorProto, helper
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters import target_by_suffix
from cnet_deploy.files import kinds
from cnet_deploy.files.kinds import HEAD, described, kind_of, kind_of_file
from cnet_deploy.models.build import build_random
from tests.builders import TINY

ARRAYS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
PICTURES = {
    "PNG": "a PNG image",
    "JPEG": "a JPEG image",
    "GIF": "a GIF image",
    "BMP": "a BMP image",
    "TIFF": "a TIFF image",
    "WEBP": "a WebP image",
    "PDF": "a PDF",
}


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def tar(mode: str = "w") -> bytes:
    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
            archive.add(__file__, "model_best.pth.tar")

    return written(write)


def zipped(*names: str) -> bytes:
    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, b"content")

    return written(write)


def saved(value: object, **options: object) -> bytes:
    return written(lambda file: torch.save(value, file, **options))  # type: ignore[arg-type]


def onnx_file(**fields: object) -> bytes:
    image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [image], [logits])
    return helper.make_model(graph, **fields).SerializeToString()


class Weights(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


MADE: dict[str, tuple[bytes, str, str]] = {
    "tar": (tar(), "a tar archive", ""),
    "tar.gz": (tar("w:gz"), "a gzipped tar archive", ""),
    "gzip": (gzip.compress(b"weights" * 100), "a gzip file", "checkpoint"),
    "gzip, damaged": (gzip.compress(os.urandom(100))[:12], "a gzip file", "checkpoint"),
    "xz": (lzma.compress(b"weights"), "an xz file", ""),
    "bzip2": (bz2.compress(b"weights"), "a bzip2 file", ""),
    "zip": (zipped("model.pth", "readme.txt"), "a zip archive", "checkpoint"),
    "empty zip": (zipped(), "a zip archive", "checkpoint"),
    "npz": (written(lambda file: np.savez(file, **ARRAYS)), "a NumPy archive (.npz)", ""),
    "npy": (written(lambda file: np.save(file, ARRAYS["weight"])), "a NumPy array (.npy)", ""),
    "keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "a Keras file (.keras)", ""),
    "safetensors": (safetensors.numpy.save(ARRAYS), "a safetensors file", "checkpoint"),
    "torch": (saved({"a": torch.ones(2)}), "a checkpoint of torch.save", "checkpoint"),
    "torch before 1.6": (
        saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False), "a checkpoint of torch.save before torch 1.6", "checkpoint"
    ),
    "TorchScript": (written(lambda file: torch.jit.save(torch.jit.script(Weights()), file)), "a TorchScript program", ""),
    "torch.export": (
        written(lambda file: torch.export.save(torch.export.export(Weights(), (torch.ones(3),)), file)), "a program of torch.export", ""
    ),
    **{f"pickle {protocol}": (pickle.dumps({"a": [1]}, protocol), "a pickle", "checkpoint") for protocol in range(6)},
    "ONNX": (onnx_file(), "an ONNX file", "onnx"),
    "ONNX of a producer": (
        onnx_file(producer_name="pytorch", ir_version=3, opset_imports=[helper.make_opsetid("", 9)]), "an ONNX file", "onnx"
    ),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 12345\n", "a Git LFS pointer", ""
    ),
    "git-annex": (b"/annex/objects/SHA256E-s12--" + b"4" * 64 + b".onnx\n", "a git-annex pointer", ""),
    "web page": (b"\n<!DOCTYPE html>\n<html><head><title>404</title>", "a web page (HTML)", ""),
    "web page without doctype": (b"<HTML><HEAD>", "a web page (HTML)", ""),
    "answer of a store": (b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>', "an XML file", ""),
    "OpenVINO": (b'<?xml version="1.0"?>\n<net name="m" version="11">\n<layers>', "an OpenVINO model (IR)", ""),
    "JSON": (json.dumps({"error": "not found"}, indent=1).encode(), "a JSON file", ""),
    "JSON list": (b"[1, 2]", "a JSON file", ""),
    "text": ("ein Zeichen über ASCII".encode(), "a text file", ""),
    "long text": (b"a" + "ü".encode() * HEAD, "a text file", ""),
    # By the formats' own descriptions, since their libraries are large.
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file (Keras)", ""),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(100), "a TensorFlow Lite model", ""),
    "onnxruntime": (b"\x1c\0\0\0ORTM" + bytes(100), "an ORT file (.ort)", ""),
    "SavedModel": (b"\x08\x01\x12\xcc\x95\x0a\x0a\xd2\x05\x12", "a TensorFlow SavedModel", ""),
    "frozen graph": (b"\x0a\x2e\x0a\x05input\x12\x0bPlaceholder*", "a TensorFlow graph", ""),
    "Core ML": (b"\x08\x04\x12\x8a\x02\x0a\x10\x0a\x05image", "a Core ML model", ""),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\x04", "a 7-Zip archive", ""),
    "rar": (b"Rar!\x1a\x07\x01\0", "a RAR archive", ""),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\0", "a Zstandard file", ""),
    "lz4": (b"\x04\x22\x4d\x18\x64", "an LZ4 file", ""),
    "engine": (b"ftrt" + bytes(100), "a TensorRT engine", "engine"),
    "engine of Ultralytics": (b'\x12\0\0\0{"task": "detect"}ftrt', "a TensorRT engine of Ultralytics", ""),
    "DLL": (b"MZ\x90\0" + bytes(100), "a Windows program or library", ""),
    "dylib": (b"\xcf\xfa\xed\xfe" + bytes(100), "a macOS program or library", ""),
    "GGUF": (b"GGUF\x03\0\0\0", "a GGUF file", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_a_kind(name: str, tmp_path: Path) -> None:
    data, expected, opened_by = MADE[name]
    for given in (data, memoryview(data)):
        kind = kind_of(given)
        assert kind is not None and (kind.name, kind.opened_by) == (expected, opened_by)
    assert kind.opened_by or kind.remedy  # what nothing opens has a next step
    (tmp_path / "file").write_bytes(data)
    assert kind_of_file(tmp_path / "file") == kind


@pytest.mark.parametrize("format", PICTURES)
def test_pictures(format: str) -> None:
    kind = kind_of(written(lambda file: Image.new("RGB", (32, 32)).save(file, format)))
    assert kind is not None and kind.name == PICTURES[format]


@pytest.mark.parametrize(
    ("name", "options", "opened_by"),
    [("m.onnx", {}, "onnx"), ("m.so", {}, "library"), ("m.engine", {"flavour": "tensorrt-rtx"}, "engine")],
)
def test_what_export_writes(name: str, options: dict[str, str], opened_by: str, tmp_path: Path) -> None:
    target = target_by_suffix(Path(name).suffix)
    assert target is not None
    kind = kind_of_file(cd.export(build_random(TINY), target, tmp_path / name, **options).path)
    assert kind is not None and kind.opened_by == opened_by


def test_the_example_is_a_checkpoint_under_any_name(checkpoint_path: Path) -> None:
    kind = kind_of_file(checkpoint_path)
    assert kind is kinds.TORCH_ZIP


def test_a_program_of_the_interpreter_is_no_library() -> None:
    libraries = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line]
    assert kind_of_file(libraries[0]) is kinds.LIBRARY


@pytest.mark.parametrize("data", [b"", b"\0", bytes(100), b"\x03" + bytes(range(256)) * 12], ids=["empty", "a zero", "zeros", "an image"])
def test_nothing_known(data: bytes) -> None:
    assert kind_of(data) is None
    assert described(data) == "is of no kind that is known here"


def test_a_long_directory_of_an_archive_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = MADE["torch"][0]
    monkeypatch.setattr("zipfile.ZipFile.namelist", lambda _: pytest.fail("the directory was read"))
    monkeypatch.setattr(kinds, "_MAX_DIRECTORY", 100)
    assert kind_of(data) is kinds.TORCH_ZIP  # by its first entry


def test_a_gzip_file_that_holds_itself_ends() -> None:
    inner = b"weights"
    for _ in range(100):
        inner = gzip.compress(inner)
    assert kind_of(inner) is kinds.GZIP


def test_sentences() -> None:
    assert described(tar()) == (
        "is a tar archive; unpack it with tar xf, and give the checkpoint in it (the reference's .pth.tar is no tar archive)"
    )
    assert described(onnx_file(), "a checkpoint") == "is an ONNX file; expected a checkpoint"


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="is a directory"):
        kind_of_file(tmp_path)


def test_the_remedy_for_arrays_is_right(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", **ARRAYS)
    safetensors.numpy.save_file(dict(np.load(tmp_path / "model.npz")), tmp_path / "model.safetensors")
    kind = kind_of_file(tmp_path / "model.safetensors")
    assert kind is kinds.SAFETENSORS


def test_the_remedies_for_programs_are_right(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Weights()), tmp_path / "script")
    torch.save(torch.jit.load(tmp_path / "script").state_dict(), tmp_path / "weights")
    torch.export.save(torch.export.export(Weights(), (torch.ones(3),)), tmp_path / "program.pt2")
    torch.save(torch.export.load(tmp_path / "program.pt2").state_dict, tmp_path / "others")
    for name in ("weights", "others"):
        assert kind_of((tmp_path / name).read_bytes()) is kinds.TORCH_ZIP


def test_every_ir_version_is_onnx() -> None:
    versions = range(3, onnx.IR_VERSION + 1)
    assert {kind_of(onnx_file(ir_version=version)) for version in versions} == {kinds.ONNX}
