"""Manifests: round trip, and pairs that do not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnet_deploy import manifest
from cnet_deploy.architecture import NAMED, Architecture
from cnet_deploy.errors import InputRefused
from cnet_deploy.manifest import Manifest, manifest_path
from cnet_deploy.preprocessing import Preprocessing
from tests.builders import TINY, TINY_DENSENET, TINY_LGC


def test_round_trip(onnx_path: Path) -> None:
    found = manifest.read(onnx_path)
    assert found is not None
    assert Manifest.from_json(found.to_json()) == found
    assert found.target == "onnx" and found.precision == "fp32"


def test_no_manifest(onnx_path: Path, tmp_path: Path) -> None:
    shutil.copy(onnx_path, tmp_path / "m.onnx")
    assert manifest.read(tmp_path / "m.onnx") is None


def test_a_swapped_artifact_is_refused(onnx_path: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "m.onnx"
    artifact.write_bytes(onnx_path.read_bytes() + b"\0")
    shutil.copy(manifest_path(onnx_path), manifest_path(artifact))
    with pytest.raises(InputRefused, match=r"with SHA-256 .* expects .*export the model again"):
        manifest.read(artifact)


WORDS = ("target", "sha256", "precision", "source_sha256")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in WORDS for value in (None, 3.5, [1], ...)),
        *((key, value) for key in ("bytes", "details") for value in (None, 3.5, "x", [1], ...)),
        *(("architecture", value) for value in (3.5, "x", [1], {}, ...)),
        *(("preprocessing", value) for value in (3.5, "x", [1], {}, ...)),
    ],
)
def test_entries_of_another_kind(onnx_path: Path, key: str, value: Any) -> None:
    values = json.loads(manifest_path(onnx_path).read_text())
    values[key] = value
    if value is ...:
        del values[key]
    with pytest.raises(InputRefused):
        Manifest.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"cnet_deploy_manifest": 2}', "[" * 100_000])
def test_texts_that_are_no_manifest(text: str) -> None:
    with pytest.raises(InputRefused):
        Manifest.from_json(text)


def test_a_huge_manifest_is_not_read(onnx_path: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "m.onnx"
    shutil.copy(onnx_path, artifact)
    manifest_path(artifact).write_text(" " * (manifest.MAX_BYTES + 1))
    with pytest.raises(InputRefused, match="expected at most 1048576"):
        manifest.read(artifact)


def test_unknown_entries_are_refused(onnx_path: Path) -> None:
    values = json.loads(manifest_path(onnx_path).read_text())
    with pytest.raises(InputRefused):
        Manifest.from_json(json.dumps({**values, "signature": "x"}))


@pytest.mark.parametrize("details", ["[" * 40 + "]" * 40, "NaN", "-Infinity", "1e999", "[[1e999]]", '{"a":' * 33 + "1" + "}" * 33])
def test_details_that_could_not_be_printed(onnx_path: Path, details: str) -> None:
    values = json.loads(manifest_path(onnx_path).read_text()) | {"details": {"x": 0}}
    with pytest.raises(InputRefused, match="is no whole manifest"):
        Manifest.from_json(json.dumps(values).replace('{"x": 0}', f'{{"x": {details}}}'))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
_ENTRIES = st.dictionaries(st.text(max_size=10), _VALUES, max_size=4)
_ARCHITECTURES = st.none() | st.sampled_from([*NAMED.values(), TINY, TINY_LGC, TINY_DENSENET])


@settings(deadline=None)
@given(
    st.text(), st.text(), st.integers(min_value=0), st.text(), st.text(), _ARCHITECTURES, _ENTRIES,
    st.dictionaries(st.text(), st.text(), max_size=3), st.lists(_ENTRIES, max_size=3), st.none() | _ENTRIES,
)  # fmt: skip
def test_any_manifest_comes_back(target: str, sha256: str, size: int, precision: str, source: str, arch: Architecture | None, details: Any,
                                 libraries: Any, verification: Any, proof: Any) -> None:  # fmt: skip
    steps = None if arch is None else Preprocessing.of(arch)
    made = Manifest(target, sha256, size, precision, source, arch, steps, details, libraries, tuple(verification), proof)
    assert Manifest.from_json(made.to_json()) == made
