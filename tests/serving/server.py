"""A real Triton server on this machine's loopback, and a client in the protocol that it speaks (KServe V2, with the binary extension)."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.processes import interruptible

ROOT = Path(__file__).parents[2]
STANDINS = ("onnxruntime", "openvino")
READY_SECONDS = 60.0
ANSWER_SECONDS = 30.0  # a server that hangs fails a test, and does not stop all of them
EXIT_SECONDS = 5  # the server waits so long for requests that it has begun
HEADER = "Inference-Header-Content-Length"

Array = np.ndarray[Any, np.dtype[Any]]


class Installation(NamedTuple):
    """An environment that has nvidia-pytriton, whose wheel has the server."""

    venv: Path
    packages: Path

    @property
    def triton(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"

    @property
    def program(self) -> Path:
        return self.triton / "bin" / "tritonserver"


def find_installation() -> Installation:
    """The one that `make .venv-triton/ready` makes, or that CNET_TRITON names. Without one, the test is skipped or fails."""
    venv = Path(os.environ.get("CNET_TRITON") or ROOT / ".venv-triton").absolute()
    version = "python{}.{}".format(*sys.version_info)
    found = Installation(venv, venv / "lib" / version / "site-packages")
    if not found.program.is_file():
        message = f"needs a Triton server: make .venv-triton/ready ({found.program} is not there)"
        if os.environ.get("CNET_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def make_standins(installation: Installation, place: Path) -> None:
    """Fill a folder of backends: Triton's for Python, and ours that it runs, which are in ``<name>_standin`` here.

    All are copies: the server refuses links that lead out of the folder.
    """
    python = place / "python"
    shutil.copytree(installation.triton / "backends" / "python", python, ignore=shutil.ignore_patterns("__pycache__"))
    stub = installation.triton / "python_backend_stubs" / "{}.{}".format(*sys.version_info)
    for file in stub.iterdir():
        shutil.copy(file, python)
        (python / file.name).chmod(0o755)
    for name in STANDINS:
        shutil.copytree(Path(__file__).parent / f"{name}_standin", place / name, ignore=shutil.ignore_patterns("__pycache__"))


def _surroundings(installation: Installation) -> dict[str, str]:
    """What the Python backend needs: it looks for libpython where the loader does, and for packages through the first python3 of PATH."""
    libraries = [str(sysconfig.get_config_var("LIBDIR")), str(installation.packages / "nvidia_pytriton.libs")]
    return {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": f"{installation.venv / 'bin'}:/usr/bin:/bin"}


class Answer(NamedTuple):
    """What the server answered: status, the JSON, and the output tensor if there was one."""

    status: int
    said: Any
    logits: Array | None = None

    @property
    def error(self) -> str:
        return str(self.said.get("error", ""))


class Server:
    """A running server. Each thread that asks it keeps a connection of its own."""

    def __init__(self, process: subprocess.Popen[bytes], ports: tuple[int, int], log: Path) -> None:
        self.process, (self.port, self.grpc_port), self.log = process, ports, log
        self._own = threading.local()

    @property
    def grpc(self) -> str:
        """Where its gRPC is."""
        return f"127.0.0.1:{self.grpc_port}"

    def request(self, method: str, path: str, body: bytes | Iterator[bytes] = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """One request over HTTP. Raises OSError or HTTPException if the connection is not kept."""
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            data = response.read()
        except BaseException:
            self.disconnect()
            raise
        length = int(response.headers.get(HEADER, len(data)))
        said = json.loads(data[:length]) if length else {}
        logits = None
        if response.status == 200 and len(data) > length:
            logits = np.frombuffer(data[length:], np.float32).reshape(said["outputs"][0]["shape"])
        return Answer(response.status, said, logits)

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, path: str, said: Any) -> Answer:
        return self.request("POST", path, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def infer(self, model: str, images: Array, *, version: int | None = None, name: str = "input", datatype: str = "FP32",
              shape: tuple[int, ...] | None = None, output: Mapping[str, Any] | None = None, padding: int = 0,
              piece: int | None = None) -> Answer:  # fmt: skip
        """Logits of images, both as bytes. ``output`` are the parameters of the output in place of those bytes.

        ``padding`` moves the images so many bytes on in the request, and with them where the server has them in memory. Pieces of
        ``piece`` bytes are sent with pauses between them.
        """
        data = images.tobytes()
        tensor = {"name": name, "datatype": datatype, "shape": list(shape or images.shape), "parameters": {"binary_data_size": len(data)}}
        outputs = [{"name": "logits", "parameters": dict(output or {"binary_data": True})}]
        header = json.dumps({"inputs": [tensor], "outputs": outputs}).encode() + b" " * padding
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
        body = header + data
        headers = {HEADER: str(len(header)), "Content-Length": str(len(body))}
        return self.request("POST", path, _in_pieces(body, piece) if piece else body, headers)

    def infer_json(self, model: str, images: Array) -> Answer:
        """The same, all in JSON."""
        tensor = {"name": "input", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
        answer = self.post(f"/v2/models/{model}/infer", {"inputs": [tensor]})
        if answer.status != 200:
            return answer
        (output,) = answer.said["outputs"]
        return answer._replace(logits=np.array(output["data"], np.float32).reshape(output["shape"]))

    def is_ready(self, model: str | None = None) -> bool:
        return self.get(f"/v2/models/{model}/ready" if model else "/v2/health/ready").status == 200

    def statistics(self, model: str) -> dict[str, Any]:
        (found,) = self.get(f"/v2/models/{model}/stats").said["model_stats"]
        return dict(found)

    def load(self, model: str) -> Answer:
        return self.post(f"/v2/repository/models/{model}/load", {})

    def unload(self, model: str) -> Answer:
        """Unload a model and wait until it is gone, which the server does behind its answer."""
        answer = self.post(f"/v2/repository/models/{model}/unload", {})
        wait_until(lambda: self.state(model) == ("UNAVAILABLE", "unloaded"))
        return answer

    def state(self, model: str) -> tuple[str, str]:
        """State and reason of a model in the repository's index; of its last version, if there are several."""
        index = self.post("/v2/repository/index", {}).said
        found = [entry for entry in index if entry["name"] == model]
        return (found[-1].get("state", ""), found[-1].get("reason", "")) if found else ("", "")

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(number)
        self.disconnect()
        return self.process.wait(EXIT_SECONDS + 15)

    def disconnect(self) -> None:
        """Close this thread's connection. The server waits for open ones when it ends, used or not, and fails if they stay."""
        if connection := getattr(self._own, "connection", None):
            connection.close()
            self._own.connection = None


def wait_until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Until something holds; fails if it never does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.01)


def _in_pieces(body: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]
        time.sleep(0.002)


def _free_ports() -> tuple[int, int]:
    """Two ports below those that the system gives to connections, so that none takes one before the server does."""
    found: list[int] = []
    while len(found) < 2:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            found.append(port)
    return found[0], found[1]


@contextlib.contextmanager
def serving(installation: Installation, repository: Path, log: Path, *options: str, backends: Path | None = None) -> Iterator[Server]:
    """A server of this repository, ready to answer. It is killed at the end, with all that it started, if it was not stopped before.

    Without ``backends`` it has none but what lies in the repository. Raises AssertionError with the log if it does not become ready.
    """
    ports = _free_ports()
    empty = log.parent / "no-backends"
    empty.mkdir(exist_ok=True)
    command = [
        str(installation.program), f"--model-repository={repository}", f"--backend-directory={backends or empty}",
        "--http-address=127.0.0.1", f"--http-port={ports[0]}", "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}",
        "--allow-metrics=false", "--http-thread-count=4", "--model-load-thread-count=1", "--pinned-memory-pool-byte-size=0",
        f"--exit-timeout-secs={EXIT_SECONDS}", *options,
    ]  # fmt: skip
    shared = f"cnet-tests-{ports[0]}-"  # memory that a backend in Python shares with the server, and a killed server leaves behind
    if backends:
        command += [f"--backend-config={own.name},shm-region-prefix-name={shared}" for own in backends.iterdir()]
    surroundings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(_surroundings(installation) if backends else {})}
    with open(log, "wb") as out:
        process = subprocess.Popen(
            interruptible(command, dies_with_us=True), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=surroundings,
            start_new_session=True,
        )  # fmt: skip
    server = Server(process, ports, log)
    try:
        end = time.monotonic() + READY_SECONDS
        while not _answers(server):
            assert process.poll() is None, f"the server ended with {process.returncode}:\n{server.text()[-5000:]}"
            assert time.monotonic() < end, f"the server is not ready after {READY_SECONDS} s:\n{server.text()[-5000:]}"
            time.sleep(0.01)
        yield server
    finally:
        server.disconnect()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for left in Path("/dev/shm").glob(f"{shared}*"):
            left.unlink(missing_ok=True)


def _answers(server: Server) -> bool:
    try:
        return server.is_ready()
    except (OSError, http.client.HTTPException):
        return False


class Sent(NamedTuple):
    """A request of a ``Load``: which of the images, and the answer, or what became of the connection."""

    which: int
    answer: Answer | Exception


class Load:
    """Clients that ask for one image after the other, each over a connection of its own, until they are told to stop or lose it.

    With ``reconnect`` each request has a connection of its own.
    """

    def __init__(self, server: Server, model: str, images: Array, clients: int = 16, *, reconnect: bool = False) -> None:
        self.sent: list[Sent] = []
        self._reconnect = reconnect
        self._server, self._model, self._images = server, model, images
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(clients)]

    def _ask(self, number: int) -> None:
        chosen = random.Random(number)
        while not self._over.is_set():
            which = chosen.randrange(len(self._images))
            try:
                self.sent.append(Sent(which, self._server.infer(self._model, self._images[which : which + 1])))
            except (OSError, http.client.HTTPException) as error:
                self.sent.append(Sent(which, error))
                break
            if self._reconnect:
                self._server.disconnect()
        self._server.disconnect()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.sent) >= 2 * len(self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> list[Sent]:
        """Stop asking; all that was asked."""
        self._over.set()
        for thread in self._threads:
            thread.join(40)
            assert not thread.is_alive(), "a request was never answered"
        return self.sent
