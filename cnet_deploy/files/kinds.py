"""Kinds of files by their first bytes: what a file is, and what to do with one that no command opens."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cnet_deploy.errors import InputRefused
from cnet_deploy.files import check_input

HEAD = 4096  # bytes that are looked at
_MAX_DIRECTORY = 1 << 20  # bytes of a zip archive's directory; torch's largest files of the family have 200 KB
_END = struct.Struct("<4s4H2LH")  # the record at the end of a zip archive (PKWARE's APPNOTE.TXT, 4.3.16)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    ``name`` is a noun with its article. ``remedy`` is the next step for somebody who gave such a file where another was expected, as the
    second half of a sentence; "" if there is none. ``opened_by`` says what opens it: "checkpoint" (readers of weights), "onnx" (runtimes
    of ONNX files), "library" and "engine" (what `export` compiled); "" if nothing here does.
    """

    name: str
    remedy: str = ""
    opened_by: str = ""


def _weights(expression: str) -> str:
    return f"save its weights as a checkpoint: {expression}"


_AGAIN = "get the file itself again"
_TO_ONNX = "convert it to ONNX where it was made"
_ONE_CHECKPOINT = "give the checkpoint in it (the reference's .pth.tar is no tar archive)"

# What opens each, in the words of a message that expects one.
EXPECTED = {
    "checkpoint": "a checkpoint",
    "onnx": "an ONNX file",
    "library": "a library of `export`",
    "engine": "a TensorRT engine",
}

GIT_LFS = Kind("a Git LFS pointer", "fetch the content that it stands for: git lfs pull")
GIT_ANNEX = Kind("a git-annex pointer", "fetch the content that it stands for: git annex get")
WEB_PAGE = Kind("a web page (HTML)", f"such a page comes where a download failed: {_AGAIN}")
SVG = Kind("an SVG drawing", "give the model's own file, not its picture")
XML = Kind("an XML file", f"servers answer with one where a download failed: {_AGAIN}")
JSON = Kind("a JSON file", "give the model's own file, not its description")
TEXT = Kind("a text file", "give the model's own file")

TAR = Kind("a tar archive", f"unpack it with tar xf, and {_ONE_CHECKPOINT}")
TAR_GZIP = Kind("a gzipped tar archive", f"unpack it with tar xzf, and {_ONE_CHECKPOINT}")
GZIP = Kind("a gzip file", "unpack it with gunzip, and give the file in it", "checkpoint")
ZIP = Kind("a zip archive", "unpack it with unzip, and give the one file in it that is a model", "checkpoint")

SAFETENSORS = Kind("a safetensors file", opened_by="checkpoint")
TORCH_ZIP = Kind("a checkpoint of torch.save", opened_by="checkpoint")
TORCH_LEGACY = Kind("a checkpoint of torch.save before torch 1.6", opened_by="checkpoint")
PICKLE = Kind("a pickle", opened_by="checkpoint")
ONNX = Kind("an ONNX file", opened_by="onnx")
LIBRARY = Kind("a shared library", opened_by="library")
ENGINE = Kind("a TensorRT engine", opened_by="engine")

TORCHSCRIPT = Kind("a TorchScript program", _weights("torch.save(torch.jit.load(FILE).state_dict(), 'model.pth')"))
EXPORTED_PROGRAM = Kind("a program of torch.export", _weights("torch.save(torch.export.load(FILE).state_dict, 'model.pth')"))
NPZ = Kind("a NumPy archive (.npz)", _weights("safetensors.numpy.save_file(dict(numpy.load(FILE)), 'model.safetensors')"))
NPY = Kind("a NumPy array (.npy)", "one array is no network: give a checkpoint with all its weights, by name")
HDF5 = Kind("an HDF5 file (Keras)", f"{_TO_ONNX}, with Keras 3: keras.saving.load_model(FILE).export('model.onnx', format='onnx')")
KERAS = Kind("a Keras file (.keras)", f"{_TO_ONNX}, with Keras 3: keras.saving.load_model(FILE).export('model.onnx', format='onnx')")
TFLITE = Kind("a TensorFlow Lite model", f"{_TO_ONNX}: python -m tf2onnx.convert --tflite FILE --output model.onnx")
SAVED_MODEL = Kind("a TensorFlow SavedModel", f"{_TO_ONNX}: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx")
TF_GRAPH = Kind(
    "a TensorFlow graph", f"{_TO_ONNX}: python -m tf2onnx.convert --graphdef FILE --inputs X:0 --outputs Y:0 --output model.onnx"
)
CORE_ML = Kind("a Core ML model", "give the checkpoint that it was made from")
OPENVINO_IR = Kind("an OpenVINO model (IR)", "give the ONNX file that it was made from")
ORT = Kind("an ORT file (.ort)", "give the ONNX file that it was made from")
GGUF = Kind("a GGUF file", "give the checkpoint that it was made from")

_NOT_LINUX = "libraries are run on Linux, where `export` wrote them: export the model again on this machine"
_PICTURE = "give pictures as images, after the model"


def _unpack(command: str) -> str:
    return f"unpack it with {command}, and give the file in it"


# Each kind with the expression that a file's first bytes match. The first match counts.
_BY_FIRST_BYTES: tuple[tuple[bytes, Kind], ...] = (
    (rb"version https://git-lfs\.github\.com/", GIT_LFS),
    (rb"(\.\./)*(\.git/|/)annex/objects/", GIT_ANNEX),
    (rb".{4}\0{4}\{", SAFETENSORS),
    (rb"\x80[\x02-\x05]\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", TORCH_LEGACY),  # its magic number, pickled
    (rb"\x80[\x02-\x05]", PICKLE),
    (rb"\x80\x01|\((dp|lp|d\n|l\n|c__)|c[a-z_]+(\.[a-z_]+)*\n[A-Za-z_]+\n|\}q\0|\]q\0", PICKLE),  # protocols 0 and 1
    # The number of the IR's version, then a name, a graph or a list of opsets (fields 2 to 8 of onnx.proto's ModelProto).
    (rb"\x08[\x01-\x3f](\x12\0|\x12[\x01-\x7f][ -~]|[\x1a\x22\x28\x32\x3a\x42])", ONNX),
    (rb"\x08\x01\x12[\x80-\xff]{0,4}[\0-\x7f]\x0a", SAVED_MODEL),
    (rb"\x08[\x02-\x0f]\x12[\x80-\xff]{0,4}[\0-\x7f]\x0a", CORE_ML),
    (rb"\x0a[\x80-\xff]?[\0-\x7f]\x0a[\0-\x7f][\w/.-]+\x12[\0-\x7f][A-Z]\w+", TF_GRAPH),
    (rb"\x7fELF(?!.{12}[\1\2\4])", LIBRARY),
    (rb"\x7fELF", Kind("a compiled program (ELF)", "give the file that `export` wrote")),
    (rb"MZ", Kind("a Windows program or library", _NOT_LINUX)),
    (rb"[\xce\xcf]\xfa\xed\xfe|\xca\xfe\xba\xbe", Kind("a macOS program or library", _NOT_LINUX)),
    (rb"[fv]trt", ENGINE),  # vtrt: those of TensorRT for RTX
    (rb".{2}\0\0\{\"", Kind("a TensorRT engine of Ultralytics", "give the ONNX file that it was made from")),
    (rb".{257}ustar", TAR),
    (rb"\x1f\x8b", GZIP),
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", ZIP),
    (rb"\xfd7zXZ\0", Kind("an xz file", _unpack("unxz"))),
    (rb"BZh[1-9]", Kind("a bzip2 file", _unpack("bunzip2"))),
    (rb"\x28\xb5\x2f\xfd", Kind("a Zstandard file", _unpack("unzstd"))),
    (rb"\x04\x22\x4d\x18", Kind("an LZ4 file", _unpack("unlz4"))),
    (rb"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive", _unpack("7z x"))),
    (rb"Rar!\x1a\x07", Kind("a RAR archive", _unpack("unrar x"))),
    (rb"\x89HDF\r\n\x1a\n", HDF5),
    (rb"\x93NUMPY", NPY),
    (rb".{4}TFL3", TFLITE),
    (rb".{4}ORTM", ORT),
    (rb"GGUF", GGUF),
    (rb"\x89PNG\r\n\x1a\n", Kind("a PNG image", _PICTURE)),
    (rb"\xff\xd8\xff", Kind("a JPEG image", _PICTURE)),
    (rb"GIF8[79]a", Kind("a GIF image", _PICTURE)),
    (rb"RIFF.{4}WEBP", Kind("a WebP image", _PICTURE)),
    (rb"II\x2a\0|MM\0\x2a", Kind("a TIFF image", _PICTURE)),
    (rb"BM.{4}\0{4}.\0\0\0", Kind("a BMP image", _PICTURE)),
    (rb"%PDF-", Kind("a PDF", "give the model's own file")),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<!--.{0,2000}?-->\s*)?<(!doctype html|html|head|body|script|title|meta)\b", WEB_PAGE),
    (rb"\s*(<\?xml[^>]*>\s*)?<net\s[^>]*version=", OPENVINO_IR),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]{0,200}>\s*)?(<!DOCTYPE svg[^>]{0,300}>\s*)?<svg\b", SVG),
    (rb"(\xef\xbb\xbf)?\s*<(\?xml|Error>)", XML),
    (rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\"\[{\]}\d-]", JSON),
)
_TABLE = tuple((re.compile(pattern, re.DOTALL), kind) for pattern, kind in _BY_FIRST_BYTES)


def kind_of(data: bytes | memoryview) -> Kind | None:
    """The kind of a file with these bytes, or with these first bytes; None if they are like nothing known.

    4 KiB are enough, but what a zip archive holds is known for sure only from the whole.
    """
    return _kind(bytes(data[:HEAD]), lambda: io.BytesIO(data))


def kind_of_file(path: Path | str) -> Kind | None:
    """``kind_of`` for a file, which is not read whole. Raises InputRefused for a path that is no readable file with content."""
    check_input(path)
    try:
        with open(path, "rb") as file:
            if head := file.read(HEAD):
                return _kind(head, lambda: file)
    except OSError as error:
        raise InputRefused(f"{path}: can't be read: {error.strerror}") from None
    raise InputRefused(f"{path}: is empty; expected a file with content")


def described(data: bytes | memoryview, expected: str = "") -> str:
    """What a file is and what to do with it, as the rest of a sentence that begins with its name.

    >>> described(b"version https://git-lfs.github.com/spec/v1", "an ONNX file")
    'is a Git LFS pointer; expected an ONNX file: fetch the content that it stands for: git lfs pull'
    """
    return describe(kind_of(data), expected)


def describe(kind: Kind | None, expected: str = "") -> str:
    """``described`` for a kind that is known already."""
    text = f"is {kind.name}" if kind is not None else "is of no kind that is known here"
    remedy = kind.remedy if kind is not None else ""
    if expected:
        return f"{text}; expected {expected}" + (f": {remedy}" if remedy else "")
    return f"{text}; {remedy}" if remedy else text


def _kind(head: bytes, whole: Callable[[], BinaryIO]) -> Kind | None:
    kind = next((kind for pattern, kind in _TABLE if pattern.match(head)), TEXT if _is_text(head) else None)
    if kind is ZIP:
        return _zip_kind(_members(head, whole()))
    return TAR_GZIP if kind is GZIP and _is_tar_inside(head) else kind


def _is_text(head: bytes) -> bool:
    """Whether it is UTF-8 without control characters. The last character may be cut off."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except ValueError:
        return False
    return bool(text) and all(c.isprintable() or c in "\t\n\r\f\ufeff" for c in text)


def _zip_kind(names: Sequence[str]) -> Kind:
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return TORCHSCRIPT
    if last & {"archive_format", "serialized_exported_program.json"}:
        return EXPORTED_PROGRAM
    if "data.pkl" in last:
        return TORCH_ZIP
    if "model.weights.h5" in last or names[:1] == ["metadata.json"]:
        return KERAS
    return NPZ if names and all(name.endswith(".npy") for name in names) else ZIP


def _members(head: bytes, file: BinaryIO) -> list[str]:
    """The names in a zip archive; only the first one, which stands at the beginning, if the directory at the end is missing or long."""
    with contextlib.suppress(Exception):  # a damaged archive can raise anything
        file.seek(max(0, file.seek(0, io.SEEK_END) - _END.size - 0xFFFF))
        end = file.read()
        if _END.unpack_from(end, end.rindex(b"PK\x05\x06"))[5] <= _MAX_DIRECTORY:
            with zipfile.ZipFile(file) as archive:
                return archive.namelist()
    length = int.from_bytes(head[26:28], "little")
    return [head[30 : 30 + length].decode("utf-8", "replace")] if length else []


def _is_tar_inside(head: bytes) -> bool:
    """Whether a gzip file holds a tar archive. No more than the first bytes are unpacked."""
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEAD)[257:262] == b"ustar"
    return False
