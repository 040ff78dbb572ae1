"""The repository that is written for a native library, in a real Triton server that has no backend but the one in the repository."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.cli import main
from cnet_deploy.files import digest
from cnet_deploy.hardware.cpu import usable_processors
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.workflows.publish import publish
from tests.builders import TINY
from tests.cases import long
from tests.once import Once

from .helpers import check_the_end, equal, images_run, logits_of, sizes_run
from .server import ANSWER_SECONDS, HEADER, Answer, Array, Installation, Load, Server, serving, wait_until

LIVING = ("--exit-on-error=false", "--strict-readiness=false")  # a server that goes on without the models that can't be loaded
EXPLICIT = ("--model-control-mode=explicit",)


@pytest.fixture(scope="session")
def small(once: Once, compiled: None) -> Path:
    """Two small networks of one shape, ``0.so`` and ``1.so``."""

    def make(place: Path) -> None:
        for seed in (0, 1):
            cd.export(build_random(TINY, seed), "native", place / f"{seed}.so")

    return once("served-native", make)


@pytest.fixture(scope="module")
def repository(converted: DenselyConnected, small: Path, few_images: Path,
               tmp_path_factory: pytest.TempPathFactory) -> Path:  # fmt: skip
    """The real network as ``net``, in integers as ``int8``, and a small one in two instances as ``two``, in two versions as ``both``, and
    for images without a batch as ``single``."""
    place = tmp_path_factory.mktemp("native")
    labels = Path(__file__).parents[2] / "examples/cifar10-labels.txt"
    fp32 = cd.export(converted, "native", place / "net.so", labels=labels)
    int8 = cd.export(converted, "native", place / "int8.so", precision="int8", calibrate=few_images)
    publish(place / "models", fp32.path)
    publish(place / "models", int8.path)
    publish(place / "models", small / "0.so", name="two", instances=2)
    both = publish(place / "models", small / "0.so", name="both").config
    publish(place / "models", small / "1.so", name="both")
    both.write_text(both.read_text().replace("latest: { num_versions: 1 }", "all { }"))
    single = publish(place / "models", small / "0.so", name="single", max_batch=1).config
    single.write_text(re.sub(r"max_batch_size: 1|model_warmup .*", "", single.read_text()))
    return place / "models"


@pytest.fixture(scope="module")
def running(installation: Installation, repository: Path) -> Iterator[Server]:
    with serving(installation, repository, repository.parent / "log") as server:
        yield server


def test_what_export_writes_is_served(checkpoint_path: Path, images: Array, tmp_path: Path, installation: Installation) -> None:
    done = CliRunner().invoke(main, ["export", str(checkpoint_path), "--native", "--triton", str(tmp_path / "models")])
    assert done.exit_code == 0, done.output
    with serving(installation, tmp_path / "models", tmp_path / "log") as server:
        assert server.is_ready("reference-cifar10")
        answer = server.infer("reference-cifar10", images[:4])
        assert server.stop(signal.SIGINT) == 0, server.text()
    assert equal(answer.logits, logits_of(tmp_path / "models/reference-cifar10/1/model.so", images[:4]))


@long
@pytest.mark.parametrize("model", ["net", "int8", "two"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 31, 32])
def test_batches_as_of_the_session(server: Server, repository: Path, images: Array, model: str, count: int) -> None:
    expected = logits_of(repository / model / "1/model.so", images[:count])
    assert equal(server.infer(model, images[:count]).logits, expected)
    assert equal(server.infer_json(model, images[:count]).logits, expected)


@long
def test_grpc(server: Server, repository: Path, images: Array) -> None:
    """With outputs named and not, and images that aren't finite."""
    grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    strange = images[:3].copy()
    strange[0, 0, 0, 0], strange[1, 1, 1, 1] = np.nan, np.inf
    with grpc.InferenceServerClient(server.grpc) as client:
        described = client.get_model_metadata("net", client_timeout=ANSWER_SECONDS)
        assert [(one.name, one.datatype, list(one.shape)) for one in (*described.inputs, *described.outputs)] == [
            ("input", "FP32", [-1, 3, 32, 32]), ("logits", "FP32", [-1, 10]),
        ]  # fmt: skip
        for batch in (images[:1], images[:5], images[:32], strange):
            tensor = grpc.InferInput("input", list(batch.shape), "FP32").set_data_from_numpy(batch)
            expected = logits_of(repository / "net/1/model.so", batch)
            for outputs in (None, [grpc.InferRequestedOutput("logits")]):
                found = client.infer("net", [tensor], outputs=outputs, client_timeout=ANSWER_SECONDS)
                assert equal(found.as_numpy("logits"), expected)


@long
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("piece", [None, 5001])
def test_images_anywhere_in_memory(server: Server, repository: Path, images: Array, padding: int, piece: int | None) -> None:
    """At any address, whether they come at once or not."""
    expected = logits_of(repository / "net/1/model.so", images[:8])
    assert equal(server.infer("net", images[:8], padding=padding, piece=piece).logits, expected)


@long
def test_two_versions_at_once(server: Server, repository: Path, images: Array) -> None:
    """Each library answers for itself, though all have functions of the same names."""
    for version in (1, 2, 1):
        expected = logits_of(repository / f"both/{version}/model.so", images[:3])
        assert equal(server.infer("both", images[:3], version=version).logits, expected)


@long
def test_without_a_batch(server: Server, repository: Path, images: Array) -> None:
    """A configuration may leave the batch out: requests are then single images."""
    answer = server.infer("single", images[0])
    assert equal(answer.logits, logits_of(repository / "single/1/model.so", images[:1])[0])
    assert server.infer("single", images[:1]).status == 400


@long
def test_clients_that_go_away(server: Server, repository: Path, images: Array) -> None:
    """In the middle of a request or before its answer: the others don't notice."""
    expected = logits_of(repository / "net/1/model.so", images)
    tensor = {"name": "input", "datatype": "FP32", "shape": list(images[:32].shape), "parameters": {"binary_data_size": images[:32].nbytes}}
    header = json.dumps({"inputs": [tensor]}).encode()
    body = header + images[:32].tobytes()
    lines = f"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\n{HEADER}: {len(header)}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with Load(server, "net", images, clients=2) as load:
        for length in (*range(0, len(body), len(body) // 20), *[len(body)] * 20):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
                client.sendall(lines + body[:length])
    assert all(isinstance(answer, Answer) and equal(answer.logits, expected[which : which + 1]) for which, answer in load.end())
    assert equal(server.infer("net", images[:32]).logits, expected[:32])


@long
def test_images_in_shared_memory(server: Server, repository: Path, images: Array) -> None:
    """The server reads and writes where the client does: no image is copied into a request."""
    place = Path(f"/dev/shm/cnet-tests-{server.port}-images")
    expected = logits_of(repository / "net/1/model.so", images[:4])
    data = images[:4].tobytes()
    try:
        place.write_bytes(data + bytes(expected.nbytes))
        said = {"key": f"/{place.name}", "offset": 0, "byte_size": len(data) + expected.nbytes}
        assert server.post("/v2/systemsharedmemory/region/images/register", said).status == 200

        def region(offset: int, size: int) -> dict[str, Any]:
            return {"shared_memory_region": "images", "shared_memory_offset": offset, "shared_memory_byte_size": size}

        tensor = {"name": "input", "datatype": "FP32", "shape": [4, 3, 32, 32], "parameters": region(0, len(data))}
        output = {"name": "logits", "parameters": region(len(data), expected.nbytes)}
        answer = server.post("/v2/models/net/infer", {"inputs": [tensor], "outputs": [output]})
        assert answer.status == 200, answer
        assert place.read_bytes()[len(data) :] == expected.tobytes()
    finally:
        server.post("/v2/systemsharedmemory/unregister", {})
        place.unlink(missing_ok=True)


@long
def test_classes_by_name(server: Server, repository: Path, images: Array) -> None:
    """The classification extension takes the names from the repository."""
    (logits,) = logits_of(repository / "net/1/model.so", images[:1])
    with cd.open_session(repository / "net/1/model.so") as session:
        names = session.class_names
    assert names is not None
    answer = server.infer("net", images[:1], output={"classification": 3})
    (output,) = answer.said["outputs"]
    found = [line.split(":") for line in output["data"]]
    best = np.argsort(-logits)[:3]
    assert [(int(number), name) for _, number, name in found] == [(int(number), names[number]) for number in best]
    assert np.allclose([float(value) for value, _, _ in found], logits[best], atol=1e-5)


@long
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"images": np.zeros((33, 3, 32, 32), np.float32)}, "batch-size must be <= 32"),
        ({"shape": (1, 3, 32, 31)}, "unexpected shape"),
        ({"shape": (1, 3, 31, 33)}, "unexpected shape"),
        ({"shape": (3, 32, 32)}, "unexpected shape"),
        ({"shape": (2, 3, 32, 32)}, "byte size mismatch"),
        ({"images": np.zeros((0, 3, 32, 32), np.float32)}, "byte size mismatch"),
        ({"shape": (0, 3, 32, 32)}, "cnet: input has 0 images; expected 1 to 32"),
        ({"datatype": "FP64"}, "data-type is 'FP64'"),
        ({"name": "image"}, "unexpected inference input 'image'"),
        ({"version": 2}, "version 2 is not found"),
    ],
    ids=lambda value: str(sorted(value)[0]) if isinstance(value, dict) else value.replace(" ", "-"),
)
def test_what_does_not_fit_is_refused(server: Server, images: Array, asked: dict[str, Any], says: str) -> None:
    asked = {"images": images[:1], **asked}
    answer = server.infer("net", asked.pop("images"), **asked)
    assert answer.status in (400, 404) and answer.logits is None and says in answer.error, answer
    assert server.infer("net", images[:1]).status == 200


@long
@pytest.mark.parametrize("model", ["net", "int8", "two"])
def test_sixteen_clients_at_once(server: Server, repository: Path, images: Array, model: str) -> None:
    """All answers equal to the session's, requests run together, and the statistics have every one of them."""
    expected = logits_of(repository / model / "1/model.so", images)
    before = server.statistics(model)
    with Load(server, model, images) as load:
        wait_until(lambda: len(load.sent) > 1000)
    for which, answer in load.end():
        assert isinstance(answer, Answer) and answer.status == 200, answer
        assert equal(answer.logits, expected[which : which + 1])
    done = before["inference_count"] + len(load.sent)
    wait_until(lambda: images_run(server.statistics(model)) == done)  # an answer is counted after it was sent
    after = server.statistics(model)
    assert after["inference_count"] == done and after["execution_count"] - before["execution_count"] < len(load.sent)
    assert after["inference_stats"]["fail"]["count"] == before["inference_stats"]["fail"]["count"]
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == len(load.sent)
    sizes = sizes_run(after) - sizes_run(before)
    assert sizes.total() == after["execution_count"] - before["execution_count"] and max(sizes) > 1


@long
def test_sixteen_clients_of_grpc(server: Server, repository: Path, images: Array) -> None:
    """Batches of all sizes at once."""
    grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    expected = logits_of(repository / "two/1/model.so", images[:32])

    def ask(number: int) -> bool:
        count = number % 32 + 1
        tensor = grpc.InferInput("input", [count, 3, 32, 32], "FP32").set_data_from_numpy(images[:count])
        return equal(client.infer("two", [tensor]).as_numpy("logits"), expected[:count])

    with grpc.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(16) as clients:
        assert all(clients.map(ask, range(320)))


@long
def test_a_wrong_request_among_others(server: Server, repository: Path, images: Array) -> None:
    """It alone fails."""
    expected = logits_of(repository / "net/1/model.so", images)
    with Load(server, "net", images, clients=8) as load:
        refused = [server.infer("net", images[:1], shape=(1, 3, 31, 33)) for _ in range(50)]
    assert {answer.status for answer in refused} == {400}
    assert all(isinstance(answer, Answer) and equal(answer.logits, expected[which : which + 1]) for which, answer in load.end())


@long
def test_it_was_warmed_up(installation: Installation, small: Path, tmp_path: Path) -> None:
    publish(tmp_path / "models", small / "0.so", name="net")
    with serving(installation, tmp_path / "models", tmp_path / "log") as server:
        wait_until(lambda: sizes_run(server.statistics("net")) == {1: 3, 32: 3})


def copied(repository: Path, name: str, *changes: tuple[str, str]) -> Path:
    """A copy of the model ``good`` under another name, with these changes in its configuration; its version's folder."""
    shutil.copytree(repository / "good", repository / name)
    config = repository / name / "config.pbtxt"
    text = config.read_text().replace('name: "good"', f'name: "{name}"')
    for old, new in changes:
        assert old in text, (old, text)
        text = text.replace(old, new)
    config.write_text(text)
    return repository / name / "1"


def threads(stated: str) -> tuple[str, str]:
    """The parameter changed to this."""
    text = 'key: "threads" value: {{ string_value: "{}" }}'
    return text.format(1), text.format(stated)


# What is changed in config.pbtxt, and what the server then says of the model.
CONFIGURATIONS = {
    "other-dims": (("dims: [3, 32, 32]", "dims: [3, 16, 64]"), "cnet: config.pbtxt has dims [3,16,64] for the input"),
    "fewer-dims": (("dims: [3, 32, 32]", "dims: [3072]"), "cnet: config.pbtxt has dims [3072] for the input"),
    "free-dims": (("FP32 dims: [3, 32, 32] } ]", "FP32 dims: [3, -1, 32] } ]"), "cnet: config.pbtxt has dims [3,-1,32] for the input"),
    "fewer-classes": (("dims: [10]", "dims: [9]"), "cnet: config.pbtxt has dims [9] for the output"),
    "more-classes": (("dims: [10]", "dims: [1000]"), "cnet: config.pbtxt has dims [1000] for the output"),
    "other-type": (('"input" data_type: TYPE_FP32', '"input" data_type: TYPE_FP16'), "cnet: config.pbtxt has the input of type"),
    "other-logits": (('"logits" data_type: TYPE_FP32', '"logits" data_type: TYPE_FP64'), "cnet: config.pbtxt has the output of type"),
    "other-name": (('name: "logits"', 'name: "scores"'), 'cnet: config.pbtxt calls the output "scores"; expected "logits"'),
    "two-outputs": (("output [ {", 'output [ { name: "x" data_type: TYPE_FP32 dims: [1] }, {'), "config.pbtxt has 2 tensors"),
    "reshaped": (('name: "input"', 'name: "input" reshape: { shape: [3072] }'), "cnet: config.pbtxt has reshape"),
    "passive": (("kind: KIND_CPU", "kind: KIND_CPU passive: true"), "cnet: config.pbtxt has a passive instance_group"),
    "no-threads": (threads("0"), "parameter threads"),
    "threads-in-words": (threads("two"), "parameter threads"),
    "many-threads": (threads("33"), "parameter threads"),
    "gpu": (("KIND_CPU", "KIND_GPU"), "KIND_GPU"),
    "other-file": (('"model.so"', '"network.so"'), "network.so.json can't be read"),
}  # fmt: skip


def flip(path: Path) -> None:
    """One bit of the byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def restate(path: Path, content: bytes | None = None, **changes: Any) -> None:
    """Other content for a library, and in its manifest what makes them a pair; and other changes there."""
    manifest = path.with_name(path.name + ".json")
    if content is not None:
        path.write_bytes(content)
        changes = {"sha256": digest(content), "bytes": len(content), **changes}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def foreign(library: Path) -> bytes:
    """A library of another kind that can be loaded."""
    return (library.parents[1] / "libtriton_cnet.so").read_bytes()


# What is done to model.so and its manifest, and what the server then says of the model.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip, "its manifest states"),
    "cut": (cut, "the pair does not belong together"),
    "longer": (lengthen, "the pair does not belong together"),
    "empty": (lambda library: library.write_bytes(b""), "the pair does not belong together"),
    "gone": (Path.unlink, "model.so can't be read: No such file"),
    "a-folder": (lambda library: (library.unlink(), library.mkdir()), "model.so"),
    "of-another": (lambda library: library.write_bytes(foreign(library)), "the pair does not belong together"),
    "of-another-with-manifest": (lambda library: restate(library, foreign(library)), "is no library of cnet-deploy export --native"),
    "text-with-manifest": (lambda library: restate(library, b"#!/bin/sh\n" * 99), "can't be loaded as a library"),
    "manifest-gone": (lambda library: library.with_name("model.so.json").unlink(), "model.so.json can't be read: No such file"),
    "manifest-cut": (lambda library: cut(library.with_name("model.so.json")), "model.so.json is no manifest"),
    "manifest-empty": (lambda library: library.with_name("model.so.json").write_text(""), "model.so.json is no manifest"),
    "manifest-deep": (lambda library: library.with_name("model.so.json").write_text("[" * 100_000), "model.so.json is no manifest"),
    "other-digest": (lambda library: restate(library, sha256="0" * 64), "SHA-256"),
    "digest-of-one": (lambda library: restate(library, sha256="0"), "states no size and SHA-256"),
    "no-size": (lambda library: restate(library, bytes=-1), "states no size and SHA-256"),
    "other-target": (lambda library: restate(library, target="onnx"), "describes no native library"),
    "other-machine": (lambda library: restate(library, details={"machine": "riscv64"}), "the library is for"),
    "no-backend": (lambda library: (library.parents[1] / "libtriton_cnet.so").unlink(), "backend"),
}  # fmt: skip


class Broken(NamedTuple):
    """A server of a good model among damaged ones, and the repository."""

    server: Server
    repository: Path


@pytest.fixture(scope="module")
def broken(installation: Installation, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    repository = tmp_path_factory.mktemp("broken") / "models"
    publish(repository, small / "0.so", name="good", threads=1)
    for name, (change, _) in CONFIGURATIONS.items():
        copied(repository, name, change)
    for name, (damage, _) in DAMAGES.items():
        damage(copied(repository, name) / "model.so")
    with serving(installation, repository, repository.parent / "log", *LIVING) as server:
        yield Broken(server, repository)


@long
@pytest.mark.parametrize("name", [*CONFIGURATIONS, *DAMAGES])
def test_what_can_not_be_served(broken: Broken, images: Array, name: str) -> None:
    """The model is unavailable with a reason, and the server goes on with the others."""
    server, repository = broken
    state, reason = server.state(name)
    expected = {**CONFIGURATIONS, **DAMAGES}[name][1]
    assert state == "UNAVAILABLE" and expected in reason, (state, reason)
    assert not server.is_ready(name) and server.infer(name, images[:1]).status in (400, 404, 503)
    assert equal(server.infer("good", images[:3]).logits, logits_of(repository / "good/1/model.so", images[:3]))


@long
def test_without_leave_to_go_on_the_server_ends(installation: Installation, small: Path, tmp_path: Path) -> None:
    cut(publish(tmp_path / "models", small / "0.so", name="net").model)
    with pytest.raises(AssertionError, match="the server ended with 1"), serving(installation, tmp_path / "models", tmp_path / "log"):
        pass
    assert "the pair does not belong together" in (tmp_path / "log").read_text()


def held(server: Server) -> dict[str, int]:
    """What a server holds: KiB of memory, open files, threads, mapped parts of libraries (which are copies in memory) and of backends.

    Triton keeps a backend once it has loaded it.
    """
    process = Path("/proc") / str(server.process.pid)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    maps = (process / "maps").read_text()
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "files": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "libraries": maps.count("memfd:cnet") + maps.count("model.so"),
        "backends": maps.count("libtriton_cnet.so"),
    }


@long
def test_a_hundred_loads_leave_nothing(installation: Installation, repository: Path, images: Array, tmp_path: Path) -> None:
    """Neither memory nor files, threads or mapped libraries."""
    shutil.copytree(repository / "net", tmp_path / "models/net")
    expected = logits_of(repository / "net/1/model.so", images[:2])
    with serving(installation, tmp_path / "models", tmp_path / "log", *EXPLICIT) as server:
        seen = []
        for _ in range(100):
            assert server.load("net").status == 200
            assert equal(server.infer("net", images[:2]).logits, expected)
            server.unload("net")
            seen.append(held(server))
    early, late = seen[9], seen[-1]
    assert late["memory"] < 1.2 * early["memory"], (early, late)
    assert late["libraries"] == 0 and late["backends"] == early["backends"], (early, late)
    assert late["files"] == early["files"] and late["threads"] <= early["threads"] + 1, (early, late)


@long
def test_requests_leave_nothing(installation: Installation, small: Path, images: Array, tmp_path: Path) -> None:
    """A server that has answered thousands holds no more than one that has answered a few hundred."""
    publish(tmp_path / "models", small / "0.so", name="net", instances=2)
    with serving(installation, tmp_path / "models", tmp_path / "log") as server:
        with Load(server, "net", images) as load:
            wait_until(lambda: len(load.sent) > 1000)
            early = held(server)
            wait_until(lambda: len(load.sent) > 8000)
            late = held(server)
        assert all(isinstance(answer, Answer) and answer.status == 200 for _, answer in load.end())
    assert late["memory"] < 1.1 * early["memory"] and late["threads"] <= early["threads"] + 1, (early, late)


@long
def test_more_threads_than_processors(installation: Installation, small: Path, images: Array, tmp_path: Path) -> None:
    """The server's log has a warning of several instances that have more together, and of one that has more alone. Where no number is
    stated the backend chooses one."""
    usable = usable_processors()
    threads = min(usable, 32)
    instances = usable // threads + 1
    stated = publish(tmp_path / "models", small / "0.so", name="stated", instances=instances, threads=threads)
    alone = publish(tmp_path / "models", small / "0.so", name="alone", threads=32)
    free = publish(tmp_path / "models", small / "0.so", name="free", instances=2)
    text, count = re.subn(r'parameters \[ \{ key: "threads".*', "", free.config.read_text())
    assert count == 1
    free.config.write_text(text)
    with serving(installation, tmp_path / "models", tmp_path / "log") as server:
        expected = logits_of(stated.model, images[:32])
        assert all(equal(server.infer(done.name, images[:32]).logits, expected) for done in (stated, alone, free))
        assert f"{instances} instances of {threads} threads are more than the {usable} processors" in server.text(), server.text()
        few = f"config.pbtxt has 32 threads, and the server may use {usable} processors: no more run in an instance"
        assert (few in server.text()) == (usable < 32), server.text()


@long
def test_versions_change_under_load(installation: Installation, small: Path, images: Array, tmp_path: Path) -> None:
    """Each request gets the answer of one version or the other and none is lost, although the backend's file is replaced by a newer one."""
    expected = [logits_of(small / f"{seed}.so", images) for seed in (0, 1)]
    publish(tmp_path / "models", small / "0.so", name="net")
    backend = tmp_path / "models/net/libtriton_cnet.so"
    written = backend.read_bytes()
    backend.write_bytes(written + b"an older one")
    with serving(installation, tmp_path / "models", tmp_path / "log", *EXPLICIT, "--load-model=net") as server:
        before = held(server)
        with Load(server, "net", images, clients=4) as load:
            for version in range(2, 8):
                assert publish(tmp_path / "models", small / f"{(version - 1) % 2}.so", name="net").version == version
                assert server.load("net").status == 200
                wait_until(lambda: load.sent[-1].answer.said["model_version"] == str(version))  # type: ignore[union-attr]  # noqa: B023
        answers = load.end()
        versions = []
        for which, answer in answers:
            assert isinstance(answer, Answer) and answer.status == 200, (answer, server.text()[-3000:])
            versions.append(int(answer.said["model_version"]))
            assert equal(answer.logits, expected[(versions[-1] - 1) % 2][which : which + 1])
        assert set(versions) == set(range(1, 8))
        assert backend.read_bytes() == written
        server.unload("net")
        assert held(server)["libraries"] == 0 and held(server)["backends"] == before["backends"]
        assert server.stop() == 0, server.text()[-3000:]


@long
def test_a_version_that_is_damaged_leaves_the_old_one(installation: Installation, small: Path, images: Array, tmp_path: Path) -> None:
    publish(tmp_path / "models", small / "0.so", name="net")
    with serving(installation, tmp_path / "models", tmp_path / "log", *EXPLICIT, "--load-model=net") as server:
        flip(publish(tmp_path / "models", small / "1.so", name="net").model)
        answer = server.load("net")
        assert answer.status == 400 and "the pair does not belong together" in answer.error, answer
        assert equal(server.infer("net", images[:1]).logits, logits_of(small / "0.so", images[:1]))


@long
def test_the_version_before_is_served_again(installation: Installation, small: Path, images: Array, tmp_path: Path) -> None:
    """The newest one's folder is removed, and the model loaded again."""
    publish(tmp_path / "models", small / "0.so", name="net")
    newest = publish(tmp_path / "models", small / "1.so", name="net").model
    with serving(installation, tmp_path / "models", tmp_path / "log", *EXPLICIT, "--load-model=*") as server:
        assert equal(server.infer("net", images[:1]).logits, logits_of(small / "1.so", images[:1]))
        shutil.rmtree(newest.parent)
        assert equal(server.infer("net", images[:1]).logits, logits_of(small / "1.so", images[:1]))
        assert server.load("net").status == 200
        assert equal(server.infer("net", images[:1]).logits, logits_of(small / "0.so", images[:1]))


@long
def test_a_connection_kept_open_delays_the_end(installation: Installation, small: Path, images: Array, tmp_path: Path) -> None:
    """As docs/serving.md has it: the server waits for it to the end of its time, and then fails."""
    publish(tmp_path / "models", small / "0.so", name="net")
    with serving(installation, tmp_path / "models", tmp_path / "log", "--exit-timeout-secs=1") as server:
        assert server.infer("net", images[:1]).status == 200
        server.process.terminate()
        assert server.process.wait(30) == 1 and "Exit timeout expired" in server.text()


@long
def test_sigterm_in_the_middle(installation: Installation, small: Path, images: Array, tmp_path: Path) -> None:
    """What was begun is answered, what comes later finds no server, and it ends as asked."""
    expected = logits_of(small / "0.so", images)
    publish(tmp_path / "models", small / "0.so", name="net")
    with serving(installation, tmp_path / "models", tmp_path / "log") as server:
        with Load(server, "net", images, reconnect=True) as load:
            assert server.stop() == 0, server.text()[-3000:]
        answers = load.end()
    check_the_end(answers, expected, equal)
