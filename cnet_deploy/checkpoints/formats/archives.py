"""A checkpoint inside a zip archive or a gzip file, as hubs offer it for downloading."""

from __future__ import annotations

import zlib
from pathlib import PurePosixPath

from cnet_deploy.errors import InputRefused, printable
from cnet_deploy.files.pickle_scan import open_zip

_TIMES, _MORE = 16, 16 << 20  # a checkpoint is unpacked to at most so many times its size, plus so many bytes: masks and zeros pack well
_MOST_ENTRIES = 10_000
_SUFFIXES = (".pth", ".pt", ".tar", ".safetensors", ".ckpt", ".bin", ".th", ".pkl")
_PICKLES = ("data.pkl", "constants.pkl")  # of torch.save and torch.jit.save


def unpacked(data: bytes) -> tuple[bytes, str]:
    """The checkpoint in an archive and what it was in, as "zip archive with model.pth"; other bytes unchanged, with no words.

    Raises InputRefused for an archive without a checkpoint or with several, for one that is damaged, and for more bytes than such a file
    can hold.
    """
    if data[:2] == b"\x1f\x8b":
        return _gunzipped(data), "gzip file"
    if data[:4] == b"PK\x03\x04":
        return _unzipped(data)
    return data, ""


def _gunzipped(data: bytes) -> bytes:
    most = _most(data)
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(data, most + 1)
    except zlib.error:
        raise InputRefused("is a damaged gzip file; get it again") from None
    if len(content) > most:
        raise InputRefused(f"is a gzip file that unpacks to more than {most} bytes; expected a checkpoint: unpack it with gunzip")
    if not unpacker.eof:
        raise InputRefused("is a gzip file whose end is missing; get it again")
    return content


def _unzipped(data: bytes) -> tuple[bytes, str]:
    try:
        with open_zip(data) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_hidden(entry.filename)]
            if len(entries) > _MOST_ENTRIES or any(entry.filename.rpartition("/")[2] in _PICKLES for entry in entries):
                return data, ""  # torch's own container, which is read as it is
            chosen = [entry for entry in entries if entry.filename.lower().endswith(_SUFFIXES)]
            chosen = chosen if len(entries) > 1 else entries
            if len(chosen) != 1:
                names = ", ".join(printable(entry.filename, 60) for entry in (chosen or entries)[:5]) or "nothing"
                raise InputRefused(
                    f"is a zip archive with {len(chosen)} checkpoints, expected one; it holds {names}: unzip it and give the checkpoint"
                )
            entry = chosen[0]
            if entry.file_size > _most(data):
                raise InputRefused(f"is a zip archive whose {printable(entry.filename, 60)} takes {entry.file_size} bytes; unzip it first")
            if entry.flag_bits & 1:
                raise InputRefused(f"is a zip archive whose {printable(entry.filename, 60)} is encrypted; unzip it first")
            with archive.open(entry) as file:
                content = file.read(_most(data) + 1)
    except InputRefused:
        raise
    except Exception:  # a damaged archive can raise anything: the readers of containers say what it is
        return data, ""
    return content, f"zip archive with {printable(PurePosixPath(entry.filename).name, 60)}"


def _is_hidden(name: str) -> bool:
    """Whether a system put it beside the files: ``__MACOSX/``, ``.DS_Store`` …"""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _most(data: bytes) -> int:
    return _TIMES * len(data) + _MORE
