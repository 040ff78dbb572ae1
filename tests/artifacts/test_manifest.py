"""Manifests: round trip, and pairs that do not belong together."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnet_deploy.artifacts import manifest
from cnet_deploy.artifacts import pair as pairs
from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.artifacts.pair import atomic_pair, read_manifest, read_pair, update_manifest
from cnet_deploy.errors import InputRefused, OutputRefused
from cnet_deploy.files import digest
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import NAMED, Architecture
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, TINY_V2


def test_round_trip(onnx_path: Path) -> None:
    found = read_manifest(onnx_path)
    assert found is not None
    assert Manifest.from_json(found.to_json()) == found
    assert found.target == "onnx" and found.precision == "fp32"


def test_no_manifest(onnx_path: Path, tmp_path: Path) -> None:
    shutil.copy(onnx_path, tmp_path / "m.onnx")
    assert read_manifest(tmp_path / "m.onnx") is None


def test_a_swapped_artifact_is_refused(onnx_path: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "m.onnx"
    artifact.write_bytes(onnx_path.read_bytes() + b"\0")
    shutil.copy(manifest_path(onnx_path), manifest_path(artifact))
    with pytest.raises(InputRefused, match=r"with SHA-256 .* expects .*export the model again"):
        read_manifest(artifact)


WORDS = ("target", "sha256", "precision", "source_sha256")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in WORDS for value in (None, 3.5, [1], ...)),
        *((key, value) for key in ("bytes", "details") for value in (None, 3.5, "x", [1], ...)),
        *(("libraries", value) for value in (None, [], {"onnx": 1}, ...)),
        *(("verification", value) for value in (None, {}, ["passed"], ...)),
        *(("proof", value) for value in (1, [], "x")),
        *(("architecture", value) for value in (3.5, "x", [1], {}, ...)),
        *(("preprocessing", value) for value in (3.5, "x", [1], {}, ...)),
        *(("class_names", value) for value in (0, False, None, "", {}, [], "x", [1], ["a"])),
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


def test_damage_is_described_with_what_to_do(artifact: Path) -> None:
    whole = json.loads(manifest_path(artifact).read_text())
    for changes, message in (
        ({"bytes": "x"}, 'is damaged: bytes is "x"; expected a whole number'),
        ({"verification": [{}, 1]}, "is damaged: verification[1] is 1; expected an object"),
        ({"libraries": {"onnx": "1", "\x1b[2J": 1}}, r'is damaged: libraries["\u001b[2J"] is 1; expected text'),
        ({"cnet_deploy_manifest": 2}, "is of another version: cnet_deploy_manifest is 2; expected 1"),
        ({"signature": 1}, 'is damaged: it has an unknown entry "signature"; expected target, '),
        ({"replaces": {"sha256": "x"}}, "is damaged: replaces has no bytes"),
    ):
        manifest_path(artifact).write_text(json.dumps({**whole, **changes}))
        with pytest.raises(InputRefused) as caught:
            read_manifest(artifact)
        assert str(caught.value).startswith(f"{manifest_path(artifact)} {message}")
        assert str(caught.value).endswith("; export the model again, or delete the manifest if you trust m.onnx")


def test_a_huge_manifest_is_not_read(onnx_path: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "m.onnx"
    shutil.copy(onnx_path, artifact)
    manifest_path(artifact).write_text(" " * (manifest.MAX_BYTES + 1))
    with pytest.raises(InputRefused, match="expected at most 4194304"):
        read_manifest(artifact)


def test_unknown_entries_are_refused(onnx_path: Path) -> None:
    values = json.loads(manifest_path(onnx_path).read_text())
    with pytest.raises(InputRefused):
        Manifest.from_json(json.dumps({**values, "signature": "x"}))


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ("[" * 40 + "]" * 40, "it nests more than 32"), ('{"a":' * 33 + "1" + "}" * 33, "it nests more than 32"),
        ("NaN", "it has NaN, which is no number of JSON"), ("-Infinity", "it has -Infinity, which"),
        ("1e999", "it has a number that is too large"), ("[[1e999]]", "it has a number that is too large"),
    ],
)  # fmt: skip
def test_details_that_could_not_be_printed(onnx_path: Path, details: str, message: str) -> None:
    values = json.loads(manifest_path(onnx_path).read_text()) | {"details": {"x": 0}}
    with pytest.raises(InputRefused, match=message):
        Manifest.from_json(json.dumps(values).replace('{"x": 0}', f'{{"x": {details}}}'))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
_ENTRIES = st.dictionaries(st.text(max_size=10), _VALUES, max_size=4)
_ARCHITECTURES = st.none() | st.sampled_from([*NAMED.values(), TINY, TINY_LGC, TINY_DENSENET, TINY_V2])


@settings(deadline=None)
@given(
    st.text(), st.text(), st.integers(min_value=0), st.text(), st.text(), _ARCHITECTURES, _ENTRIES,
    st.dictionaries(st.text(), st.text(), max_size=3), st.lists(_ENTRIES, max_size=3), st.none() | _ENTRIES,
)  # fmt: skip
def test_any_manifest_comes_back(target: str, sha256: str, size: int, precision: str, source: str, arch: Architecture | None, details: Any,
                                 libraries: Any, verification: Any, proof: Any) -> None:  # fmt: skip
    steps = None if arch is None else Preprocessing.of(arch.input_size, arch.classes)
    made = Manifest(target, sha256, size, precision, source, arch, steps, details, libraries, tuple(verification), proof=proof)
    assert Manifest.from_json(made.to_json()) == made


# ---- pairs -----------------------------------------------------------------------------------------------------------


def described(content: bytes, target: str = "onnx") -> Manifest:
    return Manifest(target, digest(content), len(content), "fp32", "", None, None)


def put(artifact: Path, content: bytes) -> None:
    with atomic_pair(artifact) as (temporary, beside):
        temporary.write_bytes(content)
        beside.write_text(described(content).to_json())


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    put(path, b"old")
    return path


class Killed(BaseException):
    """The process ends here: nothing more is renamed, and nothing is mended."""


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("before", ["pair", "alone", "torn", "nothing"])
def test_a_kill_between_any_two_renames_leaves_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, step: int) -> None:
    artifact = tmp_path / "m.onnx"
    if before != "nothing":
        put(artifact, b"old")
    if before == "alone":
        manifest_path(artifact).unlink()
    if before == "torn":
        manifest_path(artifact).write_text(described(b"another").to_json())
    replace, left = os.replace, [step]

    def until(*paths: Path) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        replace(*paths)

    monkeypatch.setattr(os, "replace", until)
    with contextlib.suppress(Killed):
        put(artifact, b"new")
    monkeypatch.undo()
    if not artifact.exists():
        assert before == "nothing"
    elif before == "torn" and artifact.read_bytes() == b"old":
        with pytest.raises(InputRefused, match="does not belong together"):
            read_pair(artifact)
    else:
        pair = read_pair(artifact)
        assert pair.data in (b"old", b"new")
        if pair.data == b"old" and before == "alone":
            assert pair.manifest is None
        else:
            assert pair.manifest is not None and pair.manifest.sha256 == digest(pair.data)
    put(artifact, b"newer")  # and the next writer finds its way
    assert read_pair(artifact).data == b"newer" and "replaces" not in manifest_path(artifact).read_text()


def test_an_artifact_that_can_not_be_renamed_keeps_the_old_pair(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def refusing(source: Path, target: Path) -> None:
        if target == artifact:
            raise OSError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    for already in (True, False):
        if not already:
            monkeypatch.setattr(pairs, "_there", lambda _: None)  # as where nothing was there to begin with
        before = manifest_path(artifact).read_bytes()
        with pytest.raises(OutputRefused, match="Permission denied; nothing was changed"):
            put(artifact, b"new")
        assert manifest_path(artifact).read_bytes() == before and read_pair(artifact).data == b"old"
    assert sorted(path.name for path in artifact.parent.iterdir()) == ["m.onnx", "m.onnx.json"]


@pytest.mark.parametrize("replaces", [[], 1, {}, {"sha256": 1, "bytes": 3}, {"sha256": "x", "bytes": 3, "manifest": {"a": 1}}])
def test_a_transitional_manifest_that_makes_no_sense(artifact: Path, replaces: Any) -> None:
    values = json.loads(described(b"new").to_json())
    manifest_path(artifact).write_text(json.dumps({**values, "replaces": replaces}))
    with pytest.raises(InputRefused):
        read_manifest(artifact)


def test_a_reader_that_meets_a_writer_tries_again(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, writes = pairs.read_bytes, [b"new", b"newer"]

    def meanwhile(path: Path, *limit: int) -> bytes:
        data = read(path, *limit)
        if path == artifact and writes:
            content = writes.pop()
            monkeypatch.setattr(pairs, "read_bytes", read)
            put(artifact, content)
            monkeypatch.setattr(pairs, "read_bytes", meanwhile)
        return data

    monkeypatch.setattr(pairs, "read_bytes", meanwhile)
    pair = read_pair(artifact)
    assert pair.data == b"new" and pair.manifest == described(b"new")


def test_a_pinned_digest(artifact: Path) -> None:
    assert read_pair(artifact, digest(b"old").upper()).data == b"old"
    put(artifact, b"somebody else's, with a manifest of its own")
    read_pair(artifact)
    with pytest.raises(InputRefused, match="has SHA-256 .*; expected .*, as pinned"):
        read_pair(artifact, digest(b"old"))


def test_an_update_does_not_undo_another_writers(artifact: Path) -> None:
    before = read_manifest(artifact)
    assert before is not None
    put(artifact, b"new")
    update_manifest(artifact, before, replace(before, details={"verified": True}))
    assert read_manifest(artifact) == described(b"new")
    now = read_manifest(artifact)
    assert now is not None
    update_manifest(artifact, now, replace(now, details={"verified": True}))
    assert read_manifest(artifact) == replace(now, details={"verified": True})
