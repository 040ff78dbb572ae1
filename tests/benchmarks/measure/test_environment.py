"""What is recorded of a machine, and what makes two of them one."""

from __future__ import annotations

import json

import pytest

from cnet_deploy.benchmarks.measure.environment import differences, environment, fingerprint, read_environment, stolen
from cnet_deploy.errors import InputRefused


def test_environment_is_json() -> None:
    here = environment()
    found = json.loads(json.dumps(here))
    assert read_environment(found) == here
    del found["gpu_state"]  # as runs were recorded before GPUs were looked at
    assert read_environment(found)["gpu_state"] is None
    assert found["cores"] >= 1 and found["cpu"] and "torch" in found["packages"]
    assert found["load_average"] and found["processor_ticks"]["user"] > 0 and found["time"].endswith("+00:00")


def test_what_is_no_environment_is_described() -> None:
    here = environment()
    for change, message in (
        ({"cores": 0}, "there.cores is 0; expected a whole number from 1"),
        ({"cpu": "\x1b[2J"}, r'there.cpu is "\u001b[2J"; expected printable text of at most 900 characters'),
        ({"packages": {"torch": 2}}, 'there.packages["torch"] is 2; expected text'),
        ({"packages": {"\n": "2"}}, 'a name in there.packages is "\\n"; expected printable text of at most 900 characters'),
        ({"clock_mhz": [1.0, "x"]}, 'there.clock_mhz[1] is "x"; expected a number from 0'),
        ({"more": 1}, 'there has an unknown entry "more"; expected time, cpu, cores'),
    ):
        with pytest.raises(InputRefused) as caught:
            read_environment({**here, **change}, "there")
        assert str(caught.value).startswith(message)
    with pytest.raises(InputRefused, match="^environment has no time$"):
        read_environment({})


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
