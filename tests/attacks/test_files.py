"""Paths that are no files, files that are no models, names that would reach a terminal, images that are none."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path

import pytest

from tests.cases import long

from .helpers import REFERENCE, one_line, refused, run_apart, written

IMAGES = REFERENCE.parent / "cifar10-test-500.bin"
COMMANDS = ["inspect", "convert", "export", "verify"]


def run(command: str, path: Path, **claims: object) -> str:
    return refused(command, path, *_others(command, path.parent), file=path, **claims)  # type: ignore[arg-type]


def _others(command: str, folder: Path) -> tuple[str | Path, ...]:
    """The arguments that a command wants beside the hostile file."""
    return {"convert": ("-o", folder / "out.safetensors"), "export": ("--onnx", "-o", folder / "out.onnx"), "verify": (REFERENCE,)}.get(
        command, ()
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["model.pth.tar", "model.safetensors", "model.onnx"])
class TestWhatIsNoFile:
    def test_directory(self, tmp_path: Path, command: str, name: str) -> None:
        (tmp_path / name).mkdir()
        run(command, tmp_path / name, says=("is a directory; expected a file",))

    def test_nothing(self, tmp_path: Path, command: str, name: str) -> None:
        run(command, tmp_path / name, says=("no such file",))

    def test_dangling_link(self, tmp_path: Path, command: str, name: str) -> None:
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
        run(command, tmp_path / name, says=("no such file",))

    def test_link_to_itself(self, tmp_path: Path, command: str, name: str) -> None:
        (tmp_path / name).symlink_to(tmp_path / name)
        run(command, tmp_path / name)

    def test_endless_device(self, tmp_path: Path, command: str, name: str) -> None:
        (tmp_path / name).symlink_to("/dev/zero")
        run(command, tmp_path / name, says=("expected a regular file",), seconds=2)

    def test_pipe(self, tmp_path: Path, command: str, name: str) -> None:
        os.mkfifo(tmp_path / name)
        run(command, tmp_path / name, says=("expected a regular file",), seconds=2)

    def test_empty(self, tmp_path: Path, command: str, name: str) -> None:
        (tmp_path / name).touch()
        run(command, tmp_path / name, says=("is empty; expected",))

    def test_text(self, tmp_path: Path, command: str, name: str) -> None:
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\n")
        run(command, tmp_path / name)


def test_more_bytes_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room on the disk
    done = run_apart("inspect", path, memory=16 << 30)
    assert done.returncode == 4, done.stderr[-300:]
    assert "model.pth.tar" in one_line(done.stderr)


NAMES = ["new\nline.pth.tar", "\x1b[2J\x1b[31mred.pth.tar", "bell\a\r.pth.tar", "\u202erat.htp.pth.tar", "C1\x9b31m.pth.tar"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_file_names_that_would_reach_a_terminal(tmp_path: Path, command: str, name: str) -> None:
    path = written(tmp_path, b"no checkpoint", name)
    refused(command, path, *_others(command, tmp_path), file=tmp_path / ".pth.tar")


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    """Names are bytes: a good file with a name that is no UTF-8 is still inspected."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.pth.tar"))
    shutil.copy(REFERENCE, path)
    done = run_apart("inspect", path)
    assert done.returncode == 0, done.stderr[-300:]
    assert "condensenet 4-4-4" in done.stdout


def picture(width: int, height: int) -> bytes:
    """A PNG of one black colour: a few bytes for any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def convert_on(images: Path, folder: Path, **claims: object) -> str:
    return refused("convert", REFERENCE, "-o", folder / "out.safetensors", "--images", images, file=images, **claims)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1, 3072, 3074, 3 * 3073 - 1])
def test_cifar_of_the_wrong_length(tmp_path: Path, length: int) -> None:
    convert_on(written(tmp_path, bytes(length), "images.bin"), tmp_path, says=(f"{length} bytes; expected records of 3073",))


def test_cifar_with_labels_that_are_no_classes(tmp_path: Path) -> None:
    convert_on(written(tmp_path, b"\x0a" + IMAGES.read_bytes()[1:], "images.bin"), tmp_path, says=("label 10; expected 0 to 9",))


def test_cifar_of_too_many_images(tmp_path: Path) -> None:
    convert_on(written(tmp_path, bytes(10_001 * 3073), "images.bin"), tmp_path, says=("10001 images; expected at most 10000",))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", picture(8, 8)[:40], picture(1 << 30, 1)[:33], b"GIF89a", b"BM"])
def test_images_that_are_none(tmp_path: Path, content: bytes) -> None:
    convert_on(written(tmp_path, content, "image.png"), tmp_path)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize("content", [POSTSCRIPT, b"GIF87a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x01D\0;"], ids=["PostScript", "GIF"])
def test_formats_that_nobody_asked_for(tmp_path: Path, content: bytes) -> None:
    """The decoder's own choice goes by content, and PostScript would start an interpreter."""
    convert_on(written(tmp_path, content, "image.png"), tmp_path, says=("is no readable image",))


@long
def test_an_image_of_more_memory_than_it_is_worth(tmp_path: Path) -> None:
    path = written(tmp_path, picture(9_000, 9_000), "image.png")
    done = run_apart("convert", REFERENCE, "-o", tmp_path / "out.safetensors", "--images", path)
    assert done.returncode == 4 and "9000x9000 pixels would take 405,000,000 bytes" in one_line(done.stderr)


@long
def test_a_line_of_pixels_that_would_grow_to_gigabytes(tmp_path: Path) -> None:
    path = written(tmp_path, picture(1, 20_000_000), "image.png")
    done = run_apart("convert", REFERENCE, "-o", tmp_path / "out.safetensors", "--images", path, memory=4 << 30)
    assert done.returncode == 4, done.stderr[-300:]
    assert "image.png" in one_line(done.stderr)


@pytest.mark.parametrize("name", ["images.bin", "image.png"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "nothing"])
def test_images_that_are_no_file(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    convert_on(path, tmp_path, seconds=2)


def test_a_pipe_among_images(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    os.mkfifo(images / "first.png")
    convert_on(images, tmp_path, seconds=2)
