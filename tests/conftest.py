"""What every test may use: the real checkpoint and images, and the rule for system tools that a machine may lack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: spinning threads crawl on a busy machine

import cnet_deploy as cd
from cnet_deploy.models.condensenet import DenselyConnected
from tests.builders import write_idx

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, with the driver's reason. The longest module first, else one process ends alone."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
    from cnet_deploy.hardware.cuda import why_no_device

    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if wanted and (reason := why_no_device()):
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was not run for want of a GPU, so that nobody takes it for tested."""
    skipped = terminalreporter.stats.get("skipped", [])
    if names := [report.nodeid for report in skipped if "needs a GPU" in str(report.longrepr)]:
        terminalreporter.section(f"{len(names)} tests need a GPU and were not run")
        for name in names:
            terminalreporter.line(name)


@pytest.fixture(scope="session")
def checkpoint_path() -> Path:
    """The real training checkpoint."""
    return ROOT / "examples" / "reference-cifar10.pth.tar"


@pytest.fixture(scope="session")
def images_path() -> Path:
    """500 real test images."""
    return ROOT / "examples" / "cifar10-test-500.bin"


@pytest.fixture(scope="session")
def trained(checkpoint_path: Path) -> DenselyConnected:
    """The real checkpoint in training form. Not to be changed."""
    return cd.load(checkpoint_path)


@pytest.fixture(scope="session")
def converted(trained: DenselyConnected) -> DenselyConnected:
    """The real checkpoint in group-conv form. Not to be changed."""
    return cd.convert(trained)


@pytest.fixture(scope="session")
def onnx_path(converted: DenselyConnected, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real checkpoint as a verified ONNX artifact, its manifest beside it."""
    return cd.export(converted, "onnx", tmp_path_factory.mktemp("artifact") / "model.onnx").path


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory, images_path: Path) -> Path:
    """96 images to train on and 41 to test on: real photographs in the layout of Fashion-MNIST, which tells its own size."""
    from cnet_deploy.images.decode import cifar_records

    folder = tmp_path_factory.mktemp("dataset")
    pixels, labels = cifar_records(images_path, 10)
    grey = pixels.mean(1).astype(np.uint8)[:, 2:30, 2:30]
    for prefix, part in (("train", slice(0, 96)), ("t10k", slice(96, 137))):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", grey[part])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels[part].astype(np.uint8))
    return folder


@pytest.fixture
def system_tool() -> Callable[[str], str]:
    """Path of a tool that pip can't install. Where it is missing the test is skipped by name, or fails if CNET_REQUIRE_ALL is set."""

    def find(name: str) -> str:
        if path := shutil.which(name):
            return path
        message = f"needs the system tool {name}"
        if os.environ.get("CNET_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)

    return find
