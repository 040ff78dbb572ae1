"""What every test may use: the real checkpoint and images, what is made of them once a run, and the rule for what a machine may lack."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: spinning threads crawl on a busy machine

import cnet_deploy as cd
from cnet_deploy.benchmarks.measure import cells
from cnet_deploy.errors import Unavailable
from cnet_deploy.exporters.native.toolchain import find_compiler, resolve
from cnet_deploy.hardware.cpu import host_machine
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from tests.builders import TINY, write_idx
from tests.forks import Forks
from tests.once import Once
from tests.release.pages import README, of_the_road, shell, steps

ROOT = Path(__file__).parent.parent
LONGEST = ("test_readme.py", "test_doctor.py", "test_run.py", "test_installations.py")
ITEMS = pytest.StashKey[list[pytest.Item]]()
hypothesis.settings.register_profile("quick", max_examples=20)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, with the driver's reason. What takes long comes first, else one process ends alone."""
    config.stash[ITEMS] = list(items)
    items.sort(key=lambda item: item.path.name not in LONGEST)
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
def first_images(once: Once, images_path: Path) -> Callable[[int], Path]:
    """So many of them, the first, in a file of their own."""

    def first(count: int) -> Path:
        data = images_path.read_bytes()
        return once(f"{count}-images", lambda place: (place / "images.bin").write_bytes(data[: count * 3073])) / "images.bin"

    return first


@pytest.fixture(scope="session")
def few_images(first_images: Callable[[int], Path]) -> Path:
    """A hundred of them: the network is as right as on all, and need not run as long."""
    return first_images(100)


@pytest.fixture(scope="session")
def trained(checkpoint_path: Path) -> DenselyConnected:
    """The real checkpoint in training form. Not to be changed."""
    return cd.load(checkpoint_path)


@pytest.fixture(scope="session")
def converted(trained: DenselyConnected) -> DenselyConnected:
    """The real checkpoint in group-conv form. Not to be changed."""
    return cd.convert(trained)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Folders that are filled once a run."""
    return Once(tmp_path_factory)


@pytest.fixture(scope="session")
def onnx_path(once: Once, request: pytest.FixtureRequest) -> Path:
    """The real checkpoint as a verified ONNX artifact, its manifest beside it."""
    return once("artifact", lambda place: cd.export(request.getfixturevalue("converted"), "onnx", place / "model.onnx")) / "model.onnx"


class Road(NamedTuple):
    """The README's files and what the commands that made them printed, by the README's text. Not to be changed."""

    folder: Path
    ran: dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def road(once: Once, compiled: None, request: pytest.FixtureRequest) -> Road:
    """The README's convert, export and verify, each as it stands there."""

    def make(place: Path) -> None:
        (folder := place / "files").mkdir()
        (folder / "examples").symlink_to(ROOT / "examples")
        ran = {}
        for block in filter(of_the_road, dict(steps(README))):
            done = shell(block, folder, request.getfixturevalue("forks").command)
            ran[block] = (block, done.returncode, done.stdout, done.stderr)
        (place / "ran.json").write_text(json.dumps(ran))

    place = once("road", make)
    ran = json.loads((place / "ran.json").read_text())
    return Road(place / "files", {block: subprocess.CompletedProcess(*done) for block, done in ran.items()})


@pytest.fixture(scope="session")
def compiled(once: Once) -> None:
    """The kernels of native libraries, compiled into the user's cache by one process and not by several at a time."""

    def make(place: Path) -> None:
        with contextlib.suppress(Unavailable):  # it is for the tests to tell
            cd.export(build_random(TINY), "native", place / "model.so")

    once("kernels", make)


@pytest.fixture(scope="session")
def compiled_int8(once: Once) -> None:
    """The same kernels in integers."""
    from tests.exporters.native.helpers import in_integers, library_of, network

    def make(place: Path) -> None:
        with contextlib.suppress(Unavailable):
            library_of(in_integers(network(TINY)), place / "model.so", resolve(None, "int8").isas)

    once("kernels-int8", make)


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


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """The process that runs commands in children of its own: its start is what takes long."""
    found = Forks(tmp_path_factory.mktemp("forks"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def quick_compiler(once: Once) -> Path:
    """For $CXX where kernels are compiled anew: nothing depends on how quick they are."""

    def make(place: Path) -> None:
        command = shlex.join(find_compiler(host_machine()).command)
        (place / "c++").write_text(f'#!/bin/sh\nexec {command} "$@" -O0\n')
        (place / "c++").chmod(0o755)

    return once("compiler", make) / "c++"


@pytest.fixture(scope="module")
def warm(forks: Forks) -> Iterator[None]:
    """Processes that measure are forked from one that has imported all: for tests that are not about how they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_SCRIPT", forks.worker)
        yield


@pytest.fixture(scope="session")
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
