"""TIFF files that name the same bytes again and again, or sizes that nobody stores: read or refused, with little time and memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from .dataset_files import plain
from .helpers import ROOT

MEMORY = 400 << 20  # bytes beyond what the interpreter has when all is imported
SECONDS = 2.0  # of processor time
MEGABYTE = bytes(900_000)
Entry = tuple[int, int, int, int]  # tag, type, count, value or place

LIMITED = """
import resource, sys, time
from pathlib import Path
import numpy, PIL.TiffImagePlugin
from cnet_deploy.errors import InputRefused
from cnet_deploy.images.decode import read_image
from cnet_deploy.images.preprocessing import Preprocessing
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        read_image(path, Preprocessing.of((32, 32), 10), upright=True)
        end = "read"
    except InputRefused as error:
        end = str(error)
    print(path.name, time.process_time() - start, end, sep="\\t")
"""


def tiff(*entries: Entry, data: bytes = MEGABYTE) -> bytes:
    """A file of one directory behind its data, which begin at 8."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + body + bytes(4)


def picture(width: int, height: int, *, compression: int = 1, rows: int = 0, without: tuple[int, ...] = ()) -> list[Entry]:
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1),
        (278, 4, 1, rows or height), (279, 4, 1, 900_000),
    ]  # fmt: skip
    return [entry for entry in entries if entry[0] not in without]


HOSTILE = {
    "whole": (tiff(*picture(900, 900)), "read"),
    "many tags of all bytes": (tiff(*picture(8, 8), *((40_000 + n, 7, 890_000, 8) for n in range(5_000))), ""),
    "fractions": (tiff(*picture(8, 8), (282, 5, 110_000, 8), (283, 5, 110_000, 8)), ""),
    "bits of every pixel": (tiff(*picture(8, 8, without=(258,)), (258, 3, 440_000, 8)), "is no readable image"),
    "strips of the same bytes": (tiff(*picture(4, 4, rows=1, without=(273,)), (273, 4, 220_000, 8)), "has 220,000 strips"),
    "more strips than rows": (tiff(*picture(60, 60, rows=1, without=(273,)), (273, 4, 50_000, 8)), "its strips are more than its rows"),
    "a huge tile": (
        tiff(*picture(10, 10, compression=8, without=(273, 278, 279)), *((tag, 4, 1, 30_000) for tag in (322, 323, 324, 325))),
        "its tiles are too large",
    ),
    "a strip beyond the image": (tiff(*picture(20_000, 10, compression=5, rows=60_000)), "is no readable image"),
    "a strip without end": (tiff(*picture(30_000, 10, compression=8, rows=0xFFFFFFFF)), "is no readable image"),
    "gigabytes in packbits": (tiff(*picture(60_000, 60_000, compression=32773)), "would not fit into the memory"),
    "gigabytes in JPEG": (tiff(*picture(16_000, 16_000, compression=7)), "would not fit into the memory"),
    "samples": (tiff(*picture(8, 8, without=(277,)), (277, 4, 1, 4_000_000_000)), "is no readable image"),
    "directories in themselves": (tiff(*picture(8, 8), *((tag, 4, 1, 900_008) for tag in (0x8769, 0x8825, 330))), ""),
    "no pixels": (tiff(*picture(0, 0, rows=1)), "is no readable image"),
    "big": (b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 1 << 60), "is no readable image"),
    "a loop": (b"II*\0" + struct.pack("<IHI", 8, 0, 8), "is no readable image"),
    "turned without end": (tiff(*picture(8, 8), (700, 1, 800_000, 8), data=b'tiff:Orientation="' * 50_000), ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, str]]:
    """What becomes of each, in one process that has little memory: seconds and the line."""
    folder = tmp_path_factory.mktemp("tiff")
    for name, (data, _) in HOSTILE.items():
        (folder / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(MEMORY)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr[-500:]
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {Path(name).name: (float(seconds), plain(end)) for name, seconds, end in lines}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tiff_files(outcomes: dict[str, tuple[float, str]], name: str) -> None:
    seconds, end = outcomes[name]
    assert HOSTILE[name][1] in end and "memory is too small" not in end and seconds < SECONDS
