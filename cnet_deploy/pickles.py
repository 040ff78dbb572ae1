"""What a pickle would call, read off its opcodes without running any: so that a refusal can name it."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile

MAX_BYTES = 64 << 20
_STREAMS = 5  # a legacy checkpoint is a row of pickles: magic number, protocol, system, object, keys
_NAME = re.compile(r"[A-Za-z_][\w.<>]*")
# What torch's own reader of weights builds: tensors, storages, dtypes, sizes, ordered dictionaries.
_HARMLESS = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|torch\.(\w*Storage|Size|Tensor|device|float\w*|double|half|bfloat16|u?int\w*|long|bool|qint\w*)"
    r"|torch\.storage\.\w+|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_\w+|torch\.nn\.parameter\.Parameter"
)


def wanted_globals(data: bytes) -> list[str]:
    """The functions and classes, as ``module.name``, that the pickles in a file ask for beyond tensors; empty where there are none.

    Reads a bare pickle, torch's legacy container and its zip container. Damaged streams give what was found in whole ones before.
    """
    stream = io.BytesIO(_zipped_pickle(data) if data[:2] == b"PK" else data)
    found: list[str] = []
    for _ in range(_STREAMS):
        try:
            found += _one_stream(stream)
        except Exception:  # a stream that is no pickle fails in ways that have no common base; it asks for nothing then
            break
    return list(dict.fromkeys(name for name in found if not _HARMLESS.fullmatch(name)))


def is_torchscript(data: bytes) -> bool:
    """Whether it is an archive of torch.jit.save, which is a program and not a state dict."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _one_stream(stream: io.BytesIO) -> list[str]:
    """Globals of one pickle, up to its STOP; raises for what is no whole pickle."""
    names: list[str] = []
    strings: list[str] = []  # the last strings pushed: STACK_GLOBAL takes its module and name from the stack
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            names.append(str(argument).replace(" ", ".", 1))
        elif opcode.name == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        elif "UNICODE" in opcode.name or "STRING" in opcode.name:
            strings.append(str(argument))
        elif opcode.name == "MEMOIZE" and strings:
            memo[len(memo)] = strings[-1]
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and strings and isinstance(argument, int):
            memo[argument] = strings[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET") and isinstance(argument, int):
            strings.append(memo.get(argument, "?"))
    return [name for name in names if _NAME.fullmatch(name)]


def _zipped_pickle(data: bytes) -> bytes:
    """``data.pkl`` of torch's zip container; nothing if it is not there or too large to be looked into."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entry = next((entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")), None)
            return archive.read(entry) if entry and entry.file_size <= MAX_BYTES else b""
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return b""
