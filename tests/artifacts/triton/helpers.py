"""Artifacts that a repository is made of, and the configuration as Triton's own schema reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.files import digest

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")


def parsed(config: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(config.read_text(), schema.ModelConfig())


def artifact(path: Path, like: Manifest, content: bytes = b"an engine", **changes: Any) -> Path:
    """Bytes, and the manifest that says so."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    made = replace(like, sha256=digest(content), bytes=len(content), **changes)
    manifest_path(path).write_text(made.to_json())
    return path


def engine(folder: Path, like: Manifest, content: bytes = b"an engine", **details: Any) -> Path:
    """Bytes with the manifest that an engine of ``tensorrt`` has."""
    profiles = [{"min": 1, "opt": 8, "max": 64}]
    said = {"flavour": "tensorrt", "version": "10.13.0", "gpu": "NVIDIA L4", "compute_capability": "8.9", "profiles": profiles, **details}
    return artifact(folder / "net.engine", like, content, target="tensorrt", details=said)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
