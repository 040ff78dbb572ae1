"""Decode the Netpbm files that Pillow decodes value by value in Python, a second for each megabyte: text, and scales other than 255.

Formats: netpbm.sourceforge.net/doc/pbm.html, pgm.html, ppm.html. Values are scaled as Pillow scales them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.images.bounds import Unfit

if TYPE_CHECKING:
    from PIL import Image, ImageFile

MAX_TEXT = 1 << 25  # bytes; each number takes 8 in memory
_BLANKS = b" \t\n\v\f\r"
_SHORT = "the file ends before its pixels do"


def decoded(image: ImageFile.ImageFile, data: bytes) -> Image.Image | None:
    """The pixels of a Netpbm file that Pillow has opened and not loaded; None for one that it decodes quickly. Raises Unfit for values
    that are missing or out of range."""
    decoder, _, offset, arguments = image.tile[0]
    if decoder not in ("ppm", "ppm_plain"):
        return None
    from PIL import Image

    count = image.width * image.height * len(image.getbands())
    if image.mode == "1":
        return Image.fromarray(_bits(data[offset:], count).reshape(image.height, image.width))
    most = int(arguments[-1])  # type: ignore[index]
    values = _numbers(data[offset:], count) if decoder == "ppm_plain" else _binary(data, offset, count, most)
    if int(values.max()) > most:
        if decoder == "ppm_plain":
            raise Unfit(f"it has a value that is not from 0 to {most}")
        values = np.minimum(values, most)
    white = 65535 if image.mode == "I" else 255
    scale: npt.NDArray[Any] = np.rint(np.arange(most + 1) / most * white).astype(np.uint16 if image.mode == "I" else np.uint8)
    scaled = scale[values]
    if image.mode == "I":
        return Image.fromarray(scaled.reshape(image.height, image.width))
    return Image.frombytes(image.mode, image.size, scaled.tobytes())


def _binary(data: bytes, offset: int, count: int, most: int) -> npt.NDArray[Any]:
    kind = np.dtype(np.uint8 if most < 256 else ">u2")
    if len(data) - offset < count * kind.itemsize:
        raise Unfit(_SHORT)
    return np.frombuffer(data, kind, count, offset)


def _bits(text: bytes, count: int) -> npt.NDArray[np.uint8]:
    """Digits 0 (white) and 1 (black), with or without white space between them."""
    digits = np.frombuffer(_without_comments(text).translate(None, _BLANKS), np.uint8)[:count]
    if len(digits) < count:
        raise Unfit(_SHORT)
    if not np.isin(digits, (48, 49)).all():
        raise Unfit("it has other digits than 0 and 1")
    return np.where(digits == 48, np.uint8(255), np.uint8(0))


def _numbers(text: bytes, count: int) -> npt.NDArray[np.int64]:
    text = _without_comments(text)
    if len(text) > MAX_TEXT:
        raise Unfit(f"it has {len(text):,} bytes of text, and at most {MAX_TEXT:,} are read: store it as PNG")
    if text.translate(None, b"0123456789" + _BLANKS):
        raise Unfit("it has something else than numbers from 0")
    values = np.fromstring(text, np.int64, sep=" ")[:count]
    if len(values) < count:
        raise Unfit(_SHORT)
    return values


def _without_comments(text: bytes) -> bytes:
    return re.sub(rb"#[^\r\n]*[\r\n]?", b"", text) if b"#" in text else text
