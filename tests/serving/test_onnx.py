"""The repository that is written for an ONNX file, in a real Triton server, with a backend that stands in for Triton's onnxruntime."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.cli import main
from cnet_deploy.models.build import build_random
from cnet_deploy.workflows.publish import publish
from tests.builders import TINY
from tests.cases import long
from tests.once import Once

from .helpers import check_the_end, close, equal, images_run, logits_of, sizes_run
from .server import ANSWER_SECONDS, Answer, Array, Installation, Load, Server, serving, wait_until

LABELS = Path(__file__).parents[2] / "examples" / "cifar10-labels.txt"


@pytest.fixture(scope="session")
def small(once: Once) -> Path:
    """Two small networks of one shape, ``0.onnx`` with names of classes and ``1.onnx``, and ``eight.onnx``, which takes eight images."""

    def make(place: Path) -> None:
        for seed, labels in enumerate((LABELS, None)):
            cd.export(build_random(TINY, seed), "onnx", place / f"{seed}.onnx", labels=labels)
        cd.export(build_random(TINY), "onnx", place / "eight.onnx", batch=8)

    return once("served-onnx", make)


@pytest.fixture(scope="module")
def repository(onnx_path: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real network as ``net``, one of fixed batch, and one of an odd name."""
    folder = tmp_path_factory.mktemp("onnx") / "models"
    publish(folder, onnx_path, name="net")
    publish(folder, small / "eight.onnx")
    publish(folder, small / "0.onnx", name='v1.2-a_b "}')
    return folder


@pytest.fixture(scope="module")
def running(installation: Installation, repository: Path, standins: Path) -> Iterator[Server]:
    with serving(installation, repository, repository.parent / "log", backends=standins) as server:
        yield server


def test_what_export_writes_is_served(
    checkpoint_path: Path, images: Array, tmp_path: Path, installation: Installation, standins: Path
) -> None:
    done = CliRunner().invoke(main, ["export", str(checkpoint_path), "--triton", str(tmp_path / "models")])
    assert done.exit_code == 0, done.output
    with serving(installation, tmp_path / "models", tmp_path / "log", backends=standins) as server:
        assert server.is_ready("reference-cifar10")
        answer = server.infer("reference-cifar10", images[:4])
        assert server.stop(signal.SIGINT) == 0, server.text()
    expected = logits_of(tmp_path / "models/reference-cifar10/1/model.onnx", images[:4])
    assert equal(answer.logits, expected)


@long
def test_it_was_warmed_up(server: Server) -> None:
    """Three times with one image and with the largest batch, before anybody asked."""
    wait_until(lambda: sizes_run(server.statistics("v1.2-a_b___")) == {1: 3, 32: 3})


@long
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 31, 32])
def test_batches_as_of_the_session(server: Server, repository: Path, images: Array, count: int) -> None:
    """To the bit: the same runtime runs the same batch."""
    expected = logits_of(repository / "net/1/model.onnx", images[:count])
    binary, json = server.infer("net", images[:count]), server.infer_json("net", images[:count])
    assert equal(binary.logits, expected)
    assert equal(json.logits, expected)


@long
def test_grpc(server: Server, repository: Path, images: Array) -> None:
    grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    with grpc.InferenceServerClient(server.grpc) as client:
        described = client.get_model_metadata("net", client_timeout=ANSWER_SECONDS)
        assert [(one.name, one.datatype, list(one.shape)) for one in (*described.inputs, *described.outputs)] == [
            ("input", "FP32", [-1, 3, 32, 32]), ("logits", "FP32", [-1, 10]),
        ]  # fmt: skip
        for count in (1, 5, 32):
            tensor = grpc.InferInput("input", [count, 3, 32, 32], "FP32").set_data_from_numpy(images[:count])
            found = client.infer("net", [tensor], client_timeout=ANSWER_SECONDS).as_numpy("logits")
            assert equal(found, logits_of(repository / "net/1/model.onnx", images[:count]))


@long
def test_a_network_of_fixed_batch(server: Server, repository: Path, images: Array) -> None:
    expected = logits_of(repository / "eight/1/model.onnx", images[:8])
    answer = server.infer("eight", images[:8])
    assert equal(answer.logits, expected)
    assert server.infer("eight", images[:7]).status == 400


@long
def test_classes_by_name(server: Server, repository: Path, images: Array) -> None:
    """The classification extension takes the names from the repository."""
    answer = server.infer("v1.2-a_b___", images[:2], output={"classification": 2})
    (output,) = answer.said["outputs"]
    names = LABELS.read_text().split()
    logits = logits_of(repository / "v1.2-a_b___/1/model.onnx", images[:2])
    best = [int(number) for row in logits for number in np.argsort(-row)[:2]]
    assert [line.partition(":")[2] for line in output["data"]] == [f"{number}:{names[number]}" for number in best]


@long
def test_openvino(onnx_path: Path, images: Array, tmp_path: Path, installation: Installation, standins: Path) -> None:
    """The same file for the other backend that Triton has for it."""
    done = publish(tmp_path / "models", onnx_path, name="net", backend="openvino")
    with serving(installation, tmp_path / "models", tmp_path / "log", backends=standins) as server:
        answers = [server.infer("net", images[:count]) for count in (1, 32)]
        wait_until(lambda: sizes_run(server.statistics("net")) == {1: 4, 32: 4})  # with three for the warm-up
    with cd.open_session(done.model, backend="openvino", threads=1) as session:
        assert all(close(answer.logits, session.run(images[: len(answer.logits)])) for answer in answers if answer.logits is not None)
    assert [answer.status for answer in answers] == [200, 200]


@long
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"images": np.zeros((33, 3, 32, 32), np.float32)}, "batch-size must be <= 32"),
        ({"shape": (1, 3, 32, 31)}, "unexpected shape"),
        ({"shape": (3, 32, 32)}, "unexpected shape"),
        ({"shape": (2, 3, 32, 32)}, "byte size mismatch"),
        ({"images": np.zeros((0, 3, 32, 32), np.float32)}, "byte size mismatch|batch-size"),
        ({"datatype": "FP64"}, "data-type is 'FP64'"),
        ({"name": "image"}, "unexpected inference input 'image'"),
        ({"version": 2}, "version 2 is not found"),
    ],
    ids=lambda value: str(sorted(value)[0]) if isinstance(value, dict) else value.split("|")[0].replace(" ", "-"),
)
def test_what_does_not_fit_is_refused(server: Server, images: Array, asked: dict[str, Any], says: str) -> None:
    asked = {"images": images[:1], **asked}
    answer = server.infer("net", asked.pop("images"), **asked)
    assert answer.status in (400, 404) and answer.logits is None
    assert any(part in answer.error for part in says.split("|")), answer.error
    assert server.infer("net", images[:1]).status == 200


@long
def test_sixteen_clients_at_once(server: Server, repository: Path, images: Array) -> None:
    """All answers right, and requests that wait for the processor run together."""
    expected = logits_of(repository / "net/1/model.onnx", images)
    before = server.statistics("net")
    with Load(server, "net", images) as load:
        wait_until(lambda: len(load.sent) > 500)
    for which, answer in load.end():
        assert isinstance(answer, Answer) and answer.status == 200, answer
        assert close(answer.logits, expected[which : which + 1])
    done = before["inference_count"] + len(load.sent)
    wait_until(lambda: images_run(server.statistics("net")) == done)  # an answer is counted after it was sent
    assert server.statistics("net")["execution_count"] - before["execution_count"] < len(load.sent)


@long
def test_a_version_is_published_under_load(small: Path, images: Array, tmp_path: Path, installation: Installation, standins: Path) -> None:
    """Each request gets the answer of one version or the other, and after the change of the new one alone."""
    expected = [logits_of(small / f"{seed}.onnx", images) for seed in (0, 1)]
    publish(tmp_path / "models", small / "0.onnx", name="net")
    poll = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with serving(installation, tmp_path / "models", tmp_path / "log", *poll, backends=standins) as server:
        with Load(server, "net", images, clients=4) as load:
            assert publish(tmp_path / "models", small / "1.onnx", name="net").version == 2
            wait_until(lambda: load.sent[-1].answer.said["model_version"] == "2")  # type: ignore[union-attr]
            time.sleep(0.3)
        answers = load.end()
        versions = []
        for which, answer in answers:
            assert isinstance(answer, Answer) and answer.status == 200, (answer, server.text()[-3000:])
            versions.append(int(answer.said["model_version"]))
            assert close(answer.logits, expected[versions[-1] - 1][which : which + 1])
        assert set(versions) == {1, 2} and set(versions[-4:]) == {2}
        assert server.stop() == 0, server.text()[-3000:]


@long
def test_unloaded_and_loaded_again(
    small: Path, images: Array, tmp_path: Path, installation: Installation, standins: Path
) -> None:  # fmt: skip
    expected = [logits_of(small / f"{seed}.onnx", images[:1]) for seed in (0, 1)]
    publish(tmp_path / "models", small / "0.onnx", name="net")
    explicit = ("--model-control-mode=explicit", "--load-model=net")
    with serving(installation, tmp_path / "models", tmp_path / "log", *explicit, backends=standins) as server:
        assert close(server.infer("net", images[:1]).logits, expected[0])
        server.unload("net")
        assert server.infer("net", images[:1]).status == 404 or "no available versions" in server.infer("net", images[:1]).error
        publish(tmp_path / "models", small / "1.onnx", name="net")
        assert server.load("net").status == 200
        assert close(server.infer("net", images[:1]).logits, expected[1])


@long
def test_sigterm_in_the_middle(
    small: Path, images: Array, tmp_path: Path, installation: Installation, standins: Path
) -> None:  # fmt: skip
    """What was begun is answered, what comes later finds no server, and it ends as asked."""
    expected = logits_of(small / "0.onnx", images)
    publish(tmp_path / "models", small / "0.onnx", name="net")
    with serving(installation, tmp_path / "models", tmp_path / "log", backends=standins) as server:
        with Load(server, "net", images, reconnect=True) as load:
            assert server.stop() == 0, server.text()[-3000:]
        answers = load.end()
    check_the_end(answers, expected, close)


@long
def test_a_damaged_file_leaves_the_others_served(
    small: Path, images: Array, tmp_path: Path, installation: Installation, standins: Path
) -> None:
    good = publish(tmp_path / "models", small / "0.onnx", name="good")
    bad = publish(tmp_path / "models", small / "1.onnx", name="bad")
    bad.model.write_bytes(bad.model.read_bytes()[:1000])
    options = ("--exit-on-error=false", "--strict-readiness=false")
    with serving(installation, tmp_path / "models", tmp_path / "log", *options, backends=standins) as server:
        assert server.state("bad")[0] == "UNAVAILABLE" and "model.onnx" in server.state("bad")[1]
        assert not server.is_ready("bad") and server.infer("bad", images[:1]).status in (400, 404, 503)
        assert close(server.infer("good", images[:1]).logits, logits_of(good.model, images[:1]))
