"""Every JSON format with an entry changed, dropped or added: read whole, or refused in one sentence that is free of Python's words."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.artifacts.pair import read_manifest
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.sweep.results import read_report
from cnet_deploy.benchmarks.tuning.choice import Choice, read
from cnet_deploy.errors import InputRefused
from tests.benchmarks.helpers import QUICK, on_cuda, report
from tests.cases import few
from tests.fuzz import seeds
from tests.fuzz.targets import ARTIFACT

CHANGES = 400
VALUES: list[Any] = [None, True, -1, 1.5, "\x1b[31m", "x" * 3000, [], {}, [[[]]], 10**400, {"a": {"b": 1}}, "\ud800"]
PYTHON = re.compile(r"None|object at|<class|is none|Error|\bdict\b|\bint\b|\bstr\b|`(float|array|object|null|bool)")


def _lowering() -> dict[str, Any]:
    times = [[0.01, 0.011]] * 8
    choice = Choice(
        {"denseblock_1": "dense", "denseblock_2": "gather"}, "combined", {"gather": times, "denseblock_1 dense": times},
        {"gather": times, "combined": times}, QUICK, environment(), "onnx", "cpu", 2, 1, {"precision": "fp32"}, "ab", "",
    )  # fmt: skip
    values: dict[str, Any] = json.loads(choice.to_json())
    return values


FORMATS: dict[str, tuple[Callable[[], Any], Callable[[Path], object]]] = {
    "results": (lambda: report().to_dict(), read_report),
    "results of a GPU": (lambda: on_cuda().to_dict(), read_report),
    "lowering": (_lowering, read),
    "manifest": (lambda: json.loads(seeds.manifests()[1]), lambda path: read_manifest(path.with_suffix(""))),
}


def entries(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value, with each of its keys or indices."""
    own = [(value, key) for key in (list(value) if isinstance(value, dict) else range(len(value)))]
    return own + [entry for container, key in own if isinstance(container[key], (dict, list)) for entry in entries(container[key])]


@pytest.mark.parametrize("kind", few(FORMATS, 1))
def test_a_change_anywhere_is_read_or_described(tmp_path: Path, kind: str) -> None:
    make, reader = FORMATS[kind]
    artifact = tmp_path / "model.so"
    artifact.write_bytes(ARTIFACT)
    path, whole, chance, refused = manifest_path(artifact), make(), random.Random(0), 0
    path.write_text(json.dumps(whole))
    reader(path)
    for _ in range(CHANGES):
        values = copy.deepcopy(whole)
        container, key = chance.choice(entries(values))
        how = chance.randrange(4)
        if how == 0:
            del container[key]
        elif how == 1 and isinstance(container, dict):
            container[chance.choice(["", "x", "\x1b", "\ud800", "cells"])] = chance.choice(VALUES)
        else:
            container[key] = chance.choice(VALUES)
        path.write_text(json.dumps(values))
        try:
            reader(path)
        except InputRefused as error:
            refused += 1
            line = str(error)
            assert line.isprintable() and len(line) <= 1000 and not PYTHON.search(line.replace(str(tmp_path), "")), line
    assert refused > CHANGES // 4
