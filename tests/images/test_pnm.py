"""Netpbm files are decoded as Pillow decodes them, and not by Pillow's decoders that are written in Python."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PpmImagePlugin

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.image_file import _eight_bit, opened_image

RANDOM = np.random.default_rng(0)


def text(magic: str, most: int, values: np.ndarray[Any, Any], comments: str = "") -> bytes:
    height, width = values.shape[:2]
    words = [str(value) for value in values.reshape(-1)]
    lines = "\n".join(" ".join(words[n : n + 7]) + comments for n in range(0, len(words), 7))
    return f"{magic}\n{width} {height}\n{f'{most}' if magic != 'P1' else ''}\n{lines}\n".encode()


def binary(magic: str, most: int, values: np.ndarray[Any, Any]) -> bytes:
    height, width = values.shape[:2]
    return f"{magic}\n{width} {height}\n{most}\n".encode() + values.astype(np.uint8 if most < 256 else ">u2").tobytes()


def numbers(most: int, *shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.integers(0, most + 1, shape)


FILES = {
    **{f"P2 {most}": text("P2", most, numbers(most, 5, 7)) for most in (1, 7, 100, 255, 256, 1000, 65535)},
    **{f"P3 {most}": text("P3", most, numbers(most, 5, 7, 3)) for most in (1, 100, 255, 1000, 65535)},
    **{f"P5 {most}": binary("P5", most, numbers(most, 5, 7)) for most in (1, 100, 254, 256, 1000, 65534, 65535)},
    **{f"P6 {most}": binary("P6", most, numbers(most, 5, 7, 3)) for most in (1, 100, 254, 256, 65535)},
    "P5 beyond its most": binary("P5", 100, numbers(255, 5, 7)),
    "P1": text("P1", 1, numbers(1, 5, 7)),
    "P1 without blanks": b"P1\n7 2\n" + b"10011010101110",
    "P3 with comments": text("P3", 255, numbers(255, 5, 7, 3), " # a comment"),
    "P3 with more than its pixels": text("P3", 255, numbers(255, 5, 7, 3)) + b"1 2 3",
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "x.ppm").write_bytes(FILES[name])
    with Image.open(io.BytesIO(FILES[name])) as image:
        image.load()
        theirs = np.asarray(_eight_bit(image).convert("RGB"))
    for decoder in ("PpmPlainDecoder", "PpmDecoder"):
        monkeypatch.setattr(getattr(PpmImagePlugin, decoder), "decode", lambda *_: pytest.fail("decoded in Python"))
    with opened_image(tmp_path / "x.ppm") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), theirs)


@pytest.mark.parametrize(("data", "words"), [
    (b"P3\n2 2\n255\n1 2 3", "the file ends before its pixels do"),
    (b"P3\n1 1\n255\n1 x 3", "it has something else than numbers from 0"),
    (b"P3\n1 1\n255\n1 256 3", "it has a value that is not from 0 to 255"),
    (b"P2\n1 1\n255\n-1", "it has something else than numbers from 0"),
    (b"P2\n1 1\n255\n99999999999999999999999999", "it has a value that is not from 0 to 255"),
    (b"P1\n2 1\n1 2", "it has other digits than 0 and 1"),
    (b"P1\n2 1\n1", "the file ends before its pixels do"),
    (b"P6\n2 2\n100\n123", "the file ends before its pixels do"),
    (b"P6\n2 2\n1000\n123", "the file ends before its pixels do"),
])  # fmt: skip
def test_what_is_damaged(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.ppm").write_bytes(data)
    with pytest.raises(InputRefused, match=words), opened_image(tmp_path / "x.ppm"):
        pass
