"""Refuse image files that cost a decoder far more than their size and their pixels suggest. No pixel is decoded here.

The time that a decoder takes grows with the scans of a JPEG file, and with the segments, chunks and entries of any file; a hostile file of
a megabyte has as many of them as it likes. The bounds are many times what cameras and programs write.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
from collections.abc import Sequence

MAX_FILE = 1 << 27  # bytes; an uncompressed photograph of 40 megapixels
MAX_SCANS = 100  # of a JPEG file; encoders write at most 18
MAX_SCANNED = 1 << 30  # pixels times scans
MAX_METADATA = 1 << 24  # bytes before the first scan
MAX_SEGMENTS = 10_000
MAX_PROFILES = 8  # colour profiles in a PNG file, each of which is unpacked; the format has one
MAX_VALUES = 1 << 18  # of a TIFF entry; a palette of 16 bits has 196,608
MAX_STRIPS = 1 << 16  # of a TIFF file; for each of them up to 64 kB are read
MAX_RUNS = 1 << 22  # bytes of run lengths in a BMP file, which Pillow decodes in Python
_READS = 100_000  # and one for every 64 bytes: a PNG file of chunks of 256 bytes takes as many
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # of JPEG; after 00 to D7 the data of a scan go on
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's frame headers (ITU T.81, table B.1)
_TIFF_ORDERS = {b"II": "<", b"MM": ">"}
_STRIPS = (273, 279, 324, 325)  # TIFF's tags of offsets and lengths of strips and tiles


class Unfit(ValueError):
    """A reason, as part of a sentence, why an image is not read."""


class Counted(io.BytesIO):
    """The bytes of a file, of which only so many may be read in so many parts: a TIFF file may name the same bytes again and again, and
    some of Pillow's readers take a byte at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = 4 * len(data) + (1 << 20)  # decoders read a file once or twice
        self.reads = _READS + len(data) // 64

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(size)
        self.left -= len(part)
        self.reads -= 1
        if self.left < 0:
            raise Unfit("it names the same bytes too often")
        if self.reads < 0:
            raise Unfit("it has far more parts, or far longer comments, than its size suggests")
        return part


def check_structure(data: bytes) -> None:
    """Raise Unfit for a file with more parts than the bounds above allow. What is damaged is left to the decoder."""
    with contextlib.suppress(struct.error):  # it ends too early
        if data[:2] == b"\xff\xd8":
            _check_jpeg(data, 0)
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            _check_png(data)
        elif data[:2] in _TIFF_ORDERS:
            _check_tiff(data, _TIFF_ORDERS[data[:2]])


def check_jpeg_strips(data: bytes, starts: Sequence[int]) -> None:
    """Raise Unfit where the JPEG streams that begin at ``starts``, the strips of a TIFF file, have more scans than one may have."""
    segments = 0
    for start in set(starts):
        with contextlib.suppress(struct.error):
            segments += _check_jpeg(data, start)
        if segments > MAX_SEGMENTS + 16 * len(starts):
            raise Unfit("its strips have far more segments than their number suggests")


def _check_jpeg(data: bytes, start: int) -> int:
    """Returns the number of segments of the stream that begins at ``start``."""
    position, segments, scans, pixels, begun = start + 2, 0, 0, 0, False
    while match := _MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        segments += 1
        if marker == 0xD9:  # the end; what follows are other images
            break
        if marker in (0x01, 0xD8):
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            pixels = max(pixels, height * width)
        position += length
        if marker == 0xDA:
            scans, begun = scans + 1, True
        if not begun and position - start > MAX_METADATA:
            raise Unfit(f"it has more than {MAX_METADATA:,} bytes before its pixels")
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
            raise Unfit(f"its pixels come in {scans} scans or more, and decoding each takes as long as an image: store it anew")
        if segments > MAX_SEGMENTS:
            raise Unfit(f"it has more than {MAX_SEGMENTS:,} segments")
    return segments


def _check_png(data: bytes) -> None:
    position, chunks, profiles = 8, 0, 0
    most = _READS // 4 + len(data) // 256
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks, profiles = chunks + 1, profiles + (kind == b"iCCP")
        if kind == b"IEND":
            return
        if chunks > most:
            raise Unfit(f"it has more than {most:,} chunks")
        if profiles > MAX_PROFILES:
            raise Unfit(f"it has more than {MAX_PROFILES} colour profiles")
        position += 12 + length


def _check_tiff(data: bytes, order: str) -> None:
    """The entries of the first directory, of TIFF and of BigTIFF; more of them than the format has is left to ``Counted``."""
    big = data[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    (entries,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)
    first, size = start + (8 if big else 2), 20 if big else 12
    for number in range(min(entries, 1 << 16)):
        tag, kind, count = struct.unpack_from(f"{order}HH{'Q' if big else 'I'}", data, first + size * number)
        if tag in _STRIPS and count > MAX_STRIPS:
            raise Unfit(f"it has {count:,} strips, and at most {MAX_STRIPS:,} are read")
        if kind not in (1, 2, 6, 7) and count > MAX_VALUES:  # bytes and text stay in one piece
            raise Unfit(f"an entry has {count:,} values, and at most {MAX_VALUES:,} are read")
