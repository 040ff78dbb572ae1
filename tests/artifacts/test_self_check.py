"""proof.py, and the first opening of an artifact that could not be run where it was made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.artifacts import self_check as proof
from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.errors import CheckFailed, InputRefused
from cnet_deploy.files import digest
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.sessions.torch import from_module


def test_the_images_are_the_same_for_ever() -> None:
    made = proof.images((3, 32, 32), 20180618, 2)
    assert made.shape == (2, 3, 32, 32) and made.dtype == np.float32
    assert digest(made.tobytes()) == "906f10944bac2d587880a5a6d85368279f9f70249d59419388cbcd95701ea2cc"
    assert abs(made.mean()) < 0.05 and abs(made.std() - 1) < 0.05


def test_made_and_checked(converted: DenselyConnected) -> None:
    run = from_module(converted).run
    made = json.loads(json.dumps(proof.make(run, (3, 32, 32), 1e-4)))
    assert proof.check(run, (3, 32, 32), made)["passed"]
    with pytest.raises(CheckFailed, match="computes something else than its model"):
        proof.check(lambda batch: run(batch) * 1.01, (3, 32, 32), made)
    with pytest.raises(CheckFailed, match="something else"):
        proof.check(lambda batch: run(batch) * np.nan, (3, 32, 32), made)
    with pytest.raises(CheckFailed, match=r"gives logits \[2, 9\], its model \[2, 10\]"):
        proof.check(lambda batch: run(batch)[:, :9], (3, 32, 32), made)
    for damage in ({"logits": []}, {"logits": [["a"]]}, {"logits": [[float("nan")]]}, {"seed": "x"}, {"tolerance": None}):
        with pytest.raises(InputRefused, match="proof is damaged"):
            proof.check(run, (3, 32, 32), {**made, **damage})
    with pytest.raises(InputRefused, match="proof is damaged"):
        proof.check(run, (3, 32, 32), {})


def test_in_int8_the_cosine_counts_too(converted: DenselyConnected) -> None:
    run = from_module(converted).run
    made = proof.make(run, (3, 32, 32), 0.4)
    logits = run(proof.images((3, 32, 32), made["seed"], 2))
    other = logits + 0.35 * np.abs(logits).max() * np.sign(np.roll(logits, 1, 1))

    def check(answers: np.ndarray[Any, Any], precision: str) -> bool:
        most, least = proof.tolerance_of(precision), proof.cosine_of(precision)
        return bool(proof.check(lambda _: answers, (3, 32, 32), made, most=most, least_cosine=least)["passed"])

    assert check(logits, "int8") and check(logits * 1.3, "int8")
    with pytest.raises(CheckFailed, match=r"the cosine of their logits is 0\.\d+, in int8 at least 0\.95"):
        check(other, "int8")
    with pytest.raises(CheckFailed, match="max error"):
        check(logits * 1.3, "bf16")
    with pytest.raises(CheckFailed, match="cosine"):
        check(logits * np.nan, "int8")


@pytest.fixture
def unverified(converted: DenselyConnected, tmp_path: Path) -> Path:
    """A native library whose manifest says what one for another processor's does, on a machine that can run it."""
    path = cd.export(converted, "native", tmp_path / "m.so").path
    made = proof.make(from_module(converted).run, (3, 32, 32), 1e-4)
    found = Manifest.from_json(manifest_path(path).read_text())
    details = {**found.details, "verified": False, "reason": "built for another processor"}
    manifest_path(path).write_text(replace(found, details=details, verification=(), proof=made).to_json())
    return path


def test_the_first_opening_verifies_and_says_so(unverified: Path) -> None:
    assert Manifest.from_json(manifest_path(unverified).read_text()).unverified == "built for another processor"
    with cd.open_session(unverified) as session:
        assert session.manifest is not None and session.manifest.unverified is None
    found = Manifest.from_json(manifest_path(unverified).read_text())
    assert found.unverified is None and found.proof is None and "reason" not in found.details
    (entry,) = found.verification
    assert entry["passed"] and entry["inputs"] == "the manifest's proof" and entry["images"] == 2
    cd.open_session(unverified).close()


def test_a_liar_is_not_opened(unverified: Path) -> None:
    path = manifest_path(unverified)
    values = json.loads(path.read_text())
    values["proof"]["logits"][1][3] += 1
    path.write_text(json.dumps(values))
    before = path.read_bytes()
    with pytest.raises(CheckFailed, match=r"m\.so: the artifact computes something else than its model"):
        cd.open_session(unverified)
    assert path.read_bytes() == before
    del values["proof"]
    path.write_text(json.dumps(values))
    with pytest.raises(InputRefused, match="has no self-check to do so"):
        cd.open_session(unverified)


def test_a_folder_that_can_not_be_written_to(unverified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    before = manifest_path(unverified).read_bytes()
    monkeypatch.setattr("os.replace", full)
    with cd.open_session(unverified) as session:
        assert session.manifest is not None and session.manifest.unverified is None
    assert manifest_path(unverified).read_bytes() == before


def test_an_artifact_for_another_machine_carries_its_proof(converted: DenselyConnected, tmp_path: Path) -> None:
    """bf16 in ONNX: onnxruntime has no such convolution for processors, OpenVINO has."""
    pytest.importorskip("openvino", reason="needs the extra: cnet-deploy[openvino]")
    done = cd.export(converted, "onnx", tmp_path / "m.onnx", precision="bf16")
    assert done.unverified == "onnxruntime has no bf16 convolution for CPUs"
    assert done.manifest.proof is not None and done.manifest.precision == "bf16"
    with cd.open_session(done.path, backend="openvino") as session:
        assert session.manifest is not None and session.manifest.unverified is None
    assert Manifest.from_json(manifest_path(done.path).read_text()).verification[0]["passed"]
