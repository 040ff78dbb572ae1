"""Sessions in the child of a fork: an error, where their threads are missing, and no waiting for ever."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.errors import CnetDeployError
from cnet_deploy.sessions.torch.session import _COMPUTED

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
IMAGE = np.zeros((1, 3, 32, 32), np.float32)


def in_a_fork(work: Callable[[], object]) -> str:
    """What ``work`` raises in the child of a fork; "ran" if nothing."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def child() -> None:
        try:
            work()
            answers.put("ran")
        except CnetDeployError as error:
            answers.put(str(error))

    process = context.Process(target=child)
    process.start()
    try:
        return str(answers.get(timeout=60))
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_a_session_does_not_cross_a_fork(backend: str, checkpoint_path: Path, onnx_path: Path) -> None:
    with cd.open_session(checkpoint_path if backend == "torch" else onnx_path, backend, threads=2) as session:
        session.run(IMAGE)
        assert "the session was opened before a fork, and its threads are not in this process" in in_a_fork(lambda: session.run(IMAGE))
        session.run(IMAGE)


def test_torch_is_not_opened_again_with_threads_that_are_missing(checkpoint_path: Path) -> None:
    with cd.open_session(checkpoint_path, threads=2) as session:
        session.run(IMAGE)
    assert _COMPUTED

    def again(threads: int) -> None:
        with cd.open_session(checkpoint_path, threads=threads) as session:
            session.run(IMAGE)

    assert "use one thread (threads=1), or start processes by spawn" in in_a_fork(lambda: again(2))
    assert in_a_fork(lambda: again(1)) == "ran"
