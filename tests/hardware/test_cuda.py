"""hardware/cuda.py: the real cuda-python, and pycuda's rules, with a driver that keeps the device's memory on the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cnet_deploy.errors import Unavailable
from cnet_deploy.hardware.cuda import Device, why_no_device
from tests.cases import few

ROOT = Path(__file__).parents[2]
pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python: cnet-deploy[rtx]")

BEGIN = """
import ctypes, numpy as np
from cnet_deploy.hardware.cuda import Device, why_no_device
from cnet_deploy.errors import InputRefused, Unavailable
driver = ctypes.CDLL("libcuda.so.1")
live = lambda: [driver.stand_in_live(kind) for kind in range(7)]
assert why_no_device() is None
"""


@pytest.fixture(scope="module", params=["cuda-python", "pycuda"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the driver; with pycuda's rules also a package of that name."""
    folder = tmp_path_factory.mktemp("driver")
    here = Path(__file__).parent
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / "libcuda.so.1"), str(here / "stand_in_driver.c"), "-lpthread"]
    subprocess.run(command, check=True, capture_output=True)
    package = folder / "pycuda"
    package.mkdir()
    if request.param == "pycuda":
        (package / "__init__.py").write_text("VERSION_TEXT = '2026.1'\n")
        shutil.copy(here / "stand_in_pycuda.py", package / "driver.py")
    else:
        (package / "__init__.py").write_text("raise ImportError\n")
    return folder


def run(driver: Path, script: str) -> None:
    surroundings = {**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": os.pathsep.join([str(driver), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", BEGIN + script], env=surroundings, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_copies_times_and_graphs(driver: Path, system_tool: Callable[[str], str]) -> None:
    system_tool("cc")
    run(driver, f"expected = {'pycuda' if (driver / 'pycuda' / 'driver.py').exists() else 'cuda-python'!r}" + """
with Device() as device:
    assert device.library == expected and device.library_version and device.compute_capability == (9, 1)
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


@pytest.mark.parametrize("left", few(["two devices", "nothing", "a device", "a closed device", "a device that a thread closes"], 2))
def test_threads_and_what_is_left_open_end_no_process(driver: Path, left: str) -> None:
    run(driver, f"left = {left!r}" + """
import threading
def in_a_thread(work):
    failed = []
    def run():
        try: work()
        except BaseException as error: failed.append(error)
    thread = threading.Thread(target=run); thread.start(); thread.join()
    assert not failed, failed
device = Device()
pointer = device.allocate(64)
host = device.pinned((4,), np.float32)
def use():
    device.upload(pointer, host); device.synchronize()
    device.release(device.allocate(8))
in_a_thread(use)
use()
if left == "two devices":
    with Device() as other: other.allocate(8)
    use(); device.close()
if left in ("nothing", "a closed device"): device.close()
if left == "a device that a thread closes": in_a_thread(device.close)
if left == "nothing": del device, host
if left != "a device": assert live() == [0] * 7, live()
""")  # fmt: skip


@pytest.mark.skipif(why_no_device() is None, reason="a device is here")
def test_no_device_is_explained() -> None:
    assert "libcuda.so.1" in str(why_no_device())
    with pytest.raises(Unavailable, match="install the NVIDIA driver") as refused:
        Device()
    assert refused.value.exit_code == 5
