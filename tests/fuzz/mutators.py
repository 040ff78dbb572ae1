"""Changes that leave a file's container whole, so that what lies inside is reached: instructions of pickles, entries of JSON, checksums."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Bytes = Callable[[bytes, int], bytes]  # the fuzzer's own change of some bytes, at most so many after it
_NUMBERS = (0, 1, 2, 3, 7, 8, 127, 255, 256, 65_535, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 61, (1 << 63) - 1, 1 << 63, 1 << 64)
_NAMES = (
    b"torch\nFloatStorage", b"torch\nHalfStorage", b"torch\nBFloat16Storage", b"torch\nBoolStorage", b"torch\nLongStorage",
    b"torch\nQInt8Storage", b"torch\nUntypedStorage", b"torch.storage\nUntypedStorage", b"torch\nfloat32", b"torch\nbfloat16",
    b"torch\nSize", b"torch\ndevice", b"torch._utils\n_rebuild_tensor", b"torch._utils\n_rebuild_tensor_v2",
    b"torch._utils\n_rebuild_tensor_v3", b"torch._utils\n_rebuild_parameter", b"torch._utils\n_rebuild_sparse_tensor",
    b"torch._utils\n_rebuild_qtensor", b"torch._tensor\n_rebuild_from_type_v2", b"torch._utils\n_rebuild_meta_tensor_no_storage",
    b"collections\nOrderedDict", b"collections\nCounter", b"_codecs\nencode", b"__builtin__\nset", b"__builtin__\nbytearray",
    b"builtins\ncomplex", b"posix\nsystem", b"torch.storage\n_load_from_bytes", b"torch.nn.parameter\nParameter",
    b"torch._utils\n_rebuild_device_tensor_from_numpy", b"torch._utils\n_rebuild_device_tensor_from_cpu_tensor",
    b"numpy.core.multiarray\n_reconstruct", b"numpy._core.multiarray\nscalar", b"numpy._core.numeric\n_frombuffer", b"numpy\nndarray",
    b"numpy\ndtype", b"argparse\nNamespace", b"copyreg\n_reconstructor", b"builtins\nobject", b"collections\ndefaultdict",
)  # fmt: skip
_INSTRUCTIONS = [
    b"N", b"\x88", b"\x89", b"]", b")", b"}", b"(", b"0", b"1", b"2", b"a", b"b", b"e", b"s", b"u", b"t", b"\x85", b"\x86", b"\x87", b"R",
    b"\x81", b"\x8f", b"\x90", b"\x91", b"\x94", b"Q", b"K\0", b"K\1", b"K\x7f", b"J\xff\xff\xff\xff", b"G\x7f\xf8\0\0\0\0\0\0",
    b"X\1\0\0\0a", b"U\1a", b"B\1\0\0\0a", b"\x8c\1a", b"\x8b\1\0\0\0\1", b"\x95\0\0\0\0\0\0\0\0", b"h\0", b"h\1", b"h\2", b"q\0", b"q\1",
    b"\x92", b"o", b"\x98", b"\x97", *(b"c" + name + b"\n" for name in _NAMES), *(b"i" + name + b"\n" for name in _NAMES),
]  # fmt: skip
_VALUES = (
    None, True, False, 0, 1, -1, 2, 10, 1 << 24, 1 << 63, 0.5, -0.0, 1e308, 1e-300, 1e-9, -1e-3, 900_000.0,
    "", "x", "\x1b[31m\n", "\ud800", "\u202e", "training",
    "x" * 2000, [], {}, [1, 2], {"a": 1}, [[[[]]]], [1] * 50,
)  # fmt: skip


def checkpoint(data: bytes, limit: int, chance: random.Random, change: Bytes) -> bytes:
    """Another checkpoint."""
    if data[:2] == b"PK":
        return _zip(data, limit, chance, change)
    length = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and length + 8 <= len(data):
        header = json_text(data[8 : 8 + length], limit, chance, change)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    pickles, rest = _row(data)
    if not pickles:
        return change(data, limit)
    place = chance.choice([len(pickles) - 2, len(pickles) - 2, chance.randrange(len(pickles))])
    pickles[place] = _pickle(pickles[place], chance, change)
    return b"".join(pickles) + rest


def _row(data: bytes) -> tuple[list[bytes], bytes]:
    """The pickles at the beginning, and what follows them."""
    stream, pickles, start = io.BytesIO(data), list[bytes](), 0
    try:
        while len(pickles) < 5:
            for _ in pickletools.genops(stream):
                pass
            pickles.append(data[start : stream.tell()])
            start = stream.tell()
    except Exception:
        pass
    return pickles, data[start:]


def _zip(data: bytes, limit: int, chance: random.Random, change: Bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    place = chance.choice(
        [number for number, (name, _) in enumerate(entries) if name.endswith("data.pkl")] * len(entries) + [*range(len(entries))]
    )
    name, content = entries[place]
    how = chance.randrange(12)
    if how == 0:
        del entries[place]
    elif how == 1:
        entries.append((chance.choice(entries)[0] + chance.choice(["", "x", "/data.pkl"]), content))
    elif name.endswith("data.pkl"):
        entries[place] = (name, _pickle(content, chance, change))
    else:
        entries[place] = (name, change(content, limit))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", chance.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _pickle(data: bytes, chance: random.Random, change: Bytes) -> bytes:
    """Some instructions dropped, doubled, moved, replaced, or with other arguments."""
    places = [place or 0 for _, _, place in pickletools.genops(data)]
    parts = [data[start:end] for start, end in zip(places, [*places[1:], len(data)], strict=True)]
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at, how = chance.randrange(len(parts)), chance.randrange(8)
        if how == 0:
            del parts[at : at + chance.choice([1, 1, 2, 10])]
        elif how == 1:
            parts[at:at] = parts[at : at + chance.choice([1, 2, 10, 50])]
        elif how == 2:
            parts.insert(chance.randrange(len(parts)), parts.pop(at))
        elif how in (3, 4):
            parts[at : at + (how == 4)] = [chance.choice(_INSTRUCTIONS)]
        elif how == 5 and parts[at][:1] in b"KMJ\x8a":
            number = chance.choice(_NUMBERS)
            raw = number.to_bytes(9, "little")
            parts[at] = b"\x8a\x09" + raw
        elif parts[at][:1] == b"c":
            parts[at] = b"c" + chance.choice(_NAMES) + b"\n"
        else:
            parts[at] = change(parts[at], len(parts[at]) + 8)
        if not parts:
            return b"."
    return b"".join(parts)


def json_text(data: bytes, limit: int, chance: random.Random, change: Bytes) -> bytes:
    """JSON with an entry changed, dropped, added or nested."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return change(data, limit)
    holders: list[tuple[Any, Any]] = []

    def collect(container: Any) -> None:
        for key in list(container) if isinstance(container, dict) else range(len(container)):
            holders.append((container, key))
            if isinstance(container[key], (dict, list)):
                collect(container[key])

    if isinstance(value, (dict, list)):
        collect(value)
    if not holders:
        return json.dumps(chance.choice(_VALUES)).encode()
    container, key = chance.choice(holders)
    how = chance.randrange(6)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[chance.choice(["", "x", "\x1b", "stages", "proof", "crop"])] = chance.choice(_VALUES)
    elif how == 2:
        for _ in range(chance.choice([1, 10, 40, 2000])):
            container[key] = [container[key]]
    elif how == 3 and isinstance(container[key], str):
        text = change(container[key].encode("utf-8", "surrogatepass"), 200)
        container[key] = text.decode("utf-8", "replace")
    elif how == 4 and type(container[key]) in (int, float):
        container[key] = chance.choice([*_NUMBERS, *(-number for number in _NUMBERS)])
    else:
        container[key] = chance.choice(_VALUES)
    try:
        made = json.dumps(value).encode()
    except RecursionError:
        return b"[" * 3000
    return made if len(made) <= limit else change(data, limit)


def image(data: bytes, limit: int, chance: random.Random, change: Bytes) -> bytes:
    """The fuzzer's own change, and a PNG's checksums made right again."""
    data = change(data, limit)
    if data[:8] != b"\x89PNG\r\n\x1a\n" or not chance.randrange(4):
        return data
    made, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        made += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return made


MUTATORS: dict[str, Callable[[bytes, int, random.Random, Bytes], bytes]] = {
    "checkpoint": checkpoint, "manifest": json_text, "image": image, "results": json_text, "baseline": json_text, "choice": json_text,
}  # fmt: skip


def mutate(target: str, data: bytes, limit: int, seed: int, change: Bytes) -> bytes:
    """One change, most often one that knows the format."""
    chance = random.Random(seed)
    if chance.randrange(5):
        try:
            if (made := MUTATORS[target](data, limit, chance, change)) and len(made) <= limit:
                return made
        except Exception:  # the container is damaged already
            pass
    return change(data, limit)
