"""Damage of any kind: a file loads as a whole model or is refused, and no other exception ever leaves the package."""

from __future__ import annotations

import functools
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import examples, few, long

from .helpers import REFERENCE, group_conv_state, loads_or_refused, refused_checkpoint, saved, training_state, written

CONTAINERS = ("legacy", "zip", "safetensors")
LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"  # signatures of a zip's headers


@functools.cache
def small(container: str) -> bytes:
    if container == "safetensors":
        return safetensors.torch.save(group_conv_state())
    return saved({"epoch": 1, "state_dict": training_state()}, legacy=container == "legacy")


def named(container: str) -> str:
    return "model.safetensors" if container == "safetensors" else "checkpoint.pth.tar"


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_undamaged_file_loads(tmp_path: Path, container: str) -> None:
    assert loads_or_refused(written(tmp_path, small(container), named(container)))


@pytest.mark.parametrize("part", [*(n / 24 for n in range(24)), 0.999])
def test_truncations_of_the_example(tmp_path: Path, part: float) -> None:
    data = REFERENCE.read_bytes()
    refused_checkpoint(written(tmp_path, data[: max(1, int(part * len(data)))]))


@pytest.mark.parametrize("container", few(CONTAINERS))
def test_truncations_at_every_part(tmp_path: Path, container: str) -> None:
    data = small(container)
    for end in sorted({*range(1, 64), *range(64, len(data), len(data) // 60), *range(len(data) - 64, len(data))}):
        assert not loads_or_refused(written(tmp_path, data[:end], named(container))), f"cut at {end} of {len(data)}"


@pytest.mark.parametrize("flips", few([30, 90]))
def test_bit_flips_in_the_example(tmp_path: Path, flips: int) -> None:
    """Seeded; most of the bytes are weights, so half of the flips go to the pickle in front and to the directory at the end."""
    data, chance = REFERENCE.read_bytes(), random.Random(0)
    spots = [(0, len(data)), (0, 40_000), (len(data) - 20_000, len(data))]
    for number in range(flips):
        low, high = spots[number % len(spots)]
        _flip_and_load(tmp_path, data, chance.randrange(low, high), chance.randrange(8), "checkpoint.pth.tar")


@long
@pytest.mark.parametrize("container", few(CONTAINERS))
def test_bit_flips_in_a_small_file(tmp_path: Path, container: str) -> None:
    data, chance = small(container), random.Random(1)
    for _ in range(150):
        start = chance.choice([0, 0, len(data) - 4000])
        _flip_and_load(tmp_path, data, start + chance.randrange(4000), chance.randrange(8), named(container))


def _flip_and_load(folder: Path, data: bytes, position: int, bit: int, name: str) -> None:
    spoiled = bytearray(data)
    spoiled[position] ^= 1 << bit
    try:
        loads_or_refused(written(folder, bytes(spoiled), name))
    except Exception as error:
        raise AssertionError(f"bit {bit} of byte {position} flipped") from error


@pytest.mark.parametrize("method", [8, 12, 14, 99], ids=["deflate", "bzip2", "lzma", "unknown"])
def test_zip_entries_that_lie_about_their_compression(tmp_path: Path, method: int) -> None:
    data = bytearray(small("zip"))
    for signature, offset in ((LOCAL, 8), (CENTRAL, 10)):
        data[data.find(signature) + offset] = method
    refused_checkpoint(written(tmp_path, bytes(data)), "expected a checkpoint (.pth.tar")


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200 << 20))
        archive.writestr("archive/version", "3\n")
    refused_checkpoint(path)


_CHANGE = st.tuples(st.floats(0, 1), st.sampled_from(["head", "anywhere", "tail"]), st.binary(min_size=0, max_size=6), st.integers(0, 6))


@pytest.mark.parametrize("container", CONTAINERS)
def test_random_mutations(tmp_path_factory: pytest.TempPathFactory, container: str) -> None:
    folder = tmp_path_factory.mktemp(container)

    @settings(examples(150), database=None, derandomize=True)
    @given(st.lists(_CHANGE, min_size=1, max_size=4))
    def mutate(changes: list[tuple[float, str, bytes, int]]) -> None:
        """Replace a few bytes by others: more, fewer or none."""
        data = small(container)
        for where, part, new, old in changes:
            low, high = {"head": (0, 6000), "anywhere": (0, len(data)), "tail": (len(data) - 6000, len(data))}[part]
            position = int(low + where * (high - low))
            data = data[:position] + new + data[position + old :]
        loads_or_refused(written(folder, data or b"\0", named(container)))

    mutate()
