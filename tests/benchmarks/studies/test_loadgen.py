"""MLPerf's LoadGen drives a session: short runs here, `make bench` records longer ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.benchmarks.studies.loadgen import Driver, in_words
from cnet_deploy.errors import InputRefused
from tests.cases import long


@long
@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_a_session_is_driven(scenario: str, onnx_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="needs the extra: cnet-deploy[loadgen]")
    with cd.open_session(onnx_path, backend="onnxruntime", threads=1) as session:
        _, *shape = session.input_shape
        images = np.random.default_rng(0).standard_normal((8, *shape), np.float32)
        driver = Driver(session, images)
        found = driver.run(scenario, 0.2)
        assert found["images_per_second"] > 0 and driver.indices
        assert driver.logits == pytest.approx(session.run(images[driver.indices]), abs=1e-5)
        assert ("p50_seconds" in found) == (scenario == "SingleStream")
        if scenario == "SingleStream":
            assert 0 < found["p50_seconds"] <= found["p90_seconds"]
        words = in_words({"network": "n", "backend": "b", "threads": 1, "scenario": scenario, "runs": [{**found, "valid": True}]})
        assert words.startswith(f"n on b, 1 thread(s), {scenario}: VALID") and words.endswith(" images/s")
        driver._images = images[:, :, :-1]  # the session refuses them
        with pytest.raises(InputRefused):
            driver.run(scenario, 0.2)
