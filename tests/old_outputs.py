"""What lies where an output is to go: small files of the same kind, which it may replace."""

from __future__ import annotations

from pathlib import Path

_BY_SUFFIX = {
    ".onnx": b"\x08\x08:\0 old",
    ".so": b"\x7fELF" + bytes(12) + b"\3\0 old",
    ".engine": b"ftrt old",
    ".onnx.json": b'{"cnet_deploy_manifest": 1, "old": 1}\n',
    ".engine.json": b'{"cnet_deploy_manifest": 1, "old": 1}\n',
    ".json": b'{"cnet_deploy_bench": 1, "old": 1}\n',
    ".html": b"<!doctype html>\n<p>old\n",
    ".csv": b"model,old\n",
}


def old_output(path: Path) -> bytes:
    """Write such a file, and return what is in it."""
    content = _BY_SUFFIX["".join(path.suffixes)]
    path.write_bytes(content)
    return content
