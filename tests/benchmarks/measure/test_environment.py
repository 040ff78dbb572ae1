"""What is recorded of a machine, and what makes two of them one."""

from __future__ import annotations

import json

from cnet_deploy.benchmarks.measure.environment import check_environment, differences, environment, fingerprint, stolen


def test_environment_is_json() -> None:
    found = json.loads(json.dumps(environment()))
    check_environment(found)
    assert found["cores"] >= 1 and found["cpu"] and "torch" in found["packages"]
    assert found["load_average"] and found["processor_ticks"]["user"] > 0 and found["time"].endswith("+00:00")


def test_a_machine_is_itself_and_not_another() -> None:
    here = fingerprint(environment())
    assert differences(here, json.loads(json.dumps(fingerprint(environment())))) == []
    other = {**here, "cpu": "Another", "packages": {**here["packages"], "torch": "0.1"}}
    found = differences(here, other)
    assert len(found) == 2 and "cpu: " in found[0] and "Another there" in found[0] and "torch" in found[1]
    assert differences(here, {}) != []


def test_what_a_hypervisor_took() -> None:
    before = {"processor_ticks": {"user": 100, "idle": 100, "steal": 10}}
    after = {"processor_ticks": {"user": 150, "idle": 130, "steal": 30}}
    assert stolen(before, after) == 0.2
    assert stolen(before, before) is None and stolen({}, after) is None
