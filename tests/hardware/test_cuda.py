"""device_memory.py: the real cuda-python (or pycuda) against a driver that keeps the device's memory on the host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cnet_deploy.errors import Unavailable
from cnet_deploy.hardware.cuda import Device, why_no_device

pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python: cnet-deploy[rtx]")

BEGIN = """
import ctypes, numpy as np
from cnet_deploy.hardware.cuda import Device, why_no_device
from cnet_deploy.errors import InputRefused, Unavailable
driver = ctypes.CDLL("libcuda.so.1")
live = lambda: [driver.stand_in_live(kind) for kind in range(7)]
assert why_no_device() is None
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).parent / "stand_in_driver.c"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / "libcuda.so.1"), str(source), "-lpthread"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def run(driver: Path, script: str) -> None:
    surroundings = {**os.environ, "LD_LIBRARY_PATH": str(driver)}
    done = subprocess.run([sys.executable, "-c", BEGIN + script], env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_copies_times_and_graphs(driver: Path, system_tool: Callable[[str], str]) -> None:
    system_tool("cc")
    run(driver, """
with Device() as device:
    assert device.library in ("cuda-python", "pycuda") and device.library_version and device.compute_capability == (9, 1)
    there, back = (device.pinned((3, 4), np.float32) for _ in range(2))
    there[:] = np.arange(12).reshape(3, 4)
    pointer = device.allocate(there.nbytes)
    device.upload(pointer, there); device.download(back, pointer); device.synchronize()
    assert (there == back).all()
    graph = device.capture(lambda: (device.upload(pointer, there), device.download(back, pointer)))
    there[:] = 7
    device.synchronize()
    assert back[0, 0] == 0  # recorded, not run
    graph.launch(); device.synchronize()
    assert (back == 7).all()
    assert abs(device.seconds(graph.launch, 3) - 0.006) < 1e-9  # two copies of a millisecond each, three times
    assert live()[:2] == [1, 2]
    device.unpin(back); device.release(pointer); graph.close(); graph.close()
    assert live()[:2] == [0, 1]
    last = device.allocate(8)
assert live() == [0] * 7, live()
device.close()
device.release(last)  # went with the device
try: device.allocate(4)
except InputRefused as error: assert "was closed" in str(error)
else: raise AssertionError
""")  # fmt: skip


def test_everything_is_freed_after_an_error(driver: Path) -> None:
    run(driver, """
try:
    with Device() as device:
        device.pinned((8,), np.float32)
        device.allocate(64)
        driver.stand_in_fail(b"cuMemAlloc", 1, 2)
        device.allocate(64)
except Unavailable as error: assert "out of memory" in str(error) and "smaller batch" in str(error), error
else: raise AssertionError("nothing was refused")
assert live() == [0] * 7, live()
with Device() as device:
    def work(): raise ValueError("mine")
    try: device.capture(work)
    except ValueError: pass
    else: raise AssertionError
    device.synchronize()  # the stream is no longer recording
assert live() == [0] * 7, live()
""")  # fmt: skip


@pytest.mark.skipif(why_no_device() is None, reason="a device is here")
def test_no_device_is_explained() -> None:
    assert "libcuda.so.1" in str(why_no_device())
    with pytest.raises(Unavailable, match="install the NVIDIA driver") as refused:
        Device()
    assert refused.value.exit_code == 5
