"""A Triton server on loopback for a study, and perf_analyzer, the client of Triton's authors that loads it.

Both come from an environment of their own: the server from the package nvidia-pytriton, the client from tritonclient 2.49.0, the last one
whose package has it.
"""

from __future__ import annotations

import contextlib
import csv
import http.client
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnet_deploy import subprocesses
from cnet_deploy.errors import Unavailable
from cnet_deploy.files import temporary_text

PACKAGES = ("nvidia-pytriton", "tritonclient")
WINDOWS = 3  # perf_analyzer measures no fewer, and adds them up
READY_SECONDS, STOP_SECONDS, TURN_SECONDS = 60.0, 15.0, 120.0  # at most
_LOCAL = "127.0.0.1"
_LINKS = {
    "libb64.so.0d": "libb64-*.so.0d",
    "libcudart.so.12": "libcudart-*.so.12*",
}  # what perf_analyzer needs, and nvidia-pytriton's copies
_REQUESTS = re.compile(r"Request count: (\d+)")


@dataclass(frozen=True)
class Tools:
    """The programs, the folder of libraries that the client needs, and the versions of the packages."""

    server: Path
    client: Path
    libraries: Path
    versions: dict[str, str]

    @classmethod
    def find(cls, environment: Path, folder: Path) -> Tools:
        """Those of a virtual environment; ``folder`` is empty and gets links to libraries.

        Raises Unavailable where one is missing.
        """
        packages = [place for place in environment.absolute().glob("lib/python3*/site-packages") if (place / "pytriton").is_dir()]
        client = environment.absolute() / "bin" / "perf_analyzer"
        if not packages or not client.is_file():
            raise Unavailable(f"{environment}: has no Triton server with perf_analyzer; make .venv-triton/ready")
        place = packages[0]
        for name, pattern in _LINKS.items():
            for library in sorted((place / "nvidia_pytriton.libs").glob(pattern))[:1]:
                (folder / name).symlink_to(library)
        entries = [entry.name.removesuffix(".dist-info").rpartition("-") for entry in place.glob("*.dist-info")]
        versions = {name.replace("_", "-"): version for name, _, version in entries}
        found = {name: versions.get(name, "unknown") for name in PACKAGES}
        return cls(place / "pytriton" / "tritonserver" / "bin" / "tritonserver", client, folder, found)

    @contextlib.contextmanager
    def serving(self, repository: Path, backends: Path) -> Iterator[str]:
        """The gRPC address of a server of all models of a repository; ``backends`` is its folder of backends. It ends with the block.

        Raises Unavailable if it can't be started, or a model can't be loaded.
        """
        ports = _free_ports(3)
        command = [
            str(self.server), f"--model-repository={repository}", f"--backend-directory={backends}",
            *(f"--{name}-address={_LOCAL}" for name in ("http", "grpc", "metrics")),
            *(f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
            "--pinned-memory-pool-byte-size=0", "--http-thread-count=2", "--exit-timeout-secs=5",
        ]  # fmt: skip
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(temporary_text())
            try:
                surroundings = {"CUDA_VISIBLE_DEVICES": ""}
                process = stack.enter_context(subprocesses.started(command, environment=surroundings, stderr=log))
            except OSError as error:
                raise Unavailable(f"{self.server}: can't be run ({error.strerror}); expected the program of nvidia-pytriton") from None
            end = time.monotonic() + READY_SECONDS
            while not _is_ready(ports[0]):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    lines = [line.strip() for line in log if "error" in line.lower()] or ["it said nothing of an error"]
                    raise Unavailable(f"the Triton server did not become ready: {lines[-1][-300:]}")
                time.sleep(0.02)
            yield f"{_LOCAL}:{ports[1]}"
            process.terminate()
            end = time.monotonic() + STOP_SECONDS
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)

    def load(self, address: str, model: str, *, concurrency: int, shared_memory: bool, seconds: float, folder: Path) -> dict[str, Any]:
        """What so many clients get from a model when each sends one image after another for ``seconds``: numbers by their names.

        ``shared_memory``: images and logits are in memory that client and server share. ``folder`` is a place for a file. Raises
        Unavailable if perf_analyzer fails.
        """
        report = folder / "perf_analyzer.csv"
        report.unlink(missing_ok=True)
        command = [
            str(self.client), "-m", model, "-u", address, "-i", "grpc", "--concurrency-range", str(concurrency),
            "--shared-memory", "system" if shared_memory else "none", "-f", str(report),
            "-p", str(round(seconds * 1e3 / WINDOWS)), "-r", str(WINDOWS), "-s", "999",  # whatever the windows differ by
        ]  # fmt: skip
        try:
            done = subprocesses.run(command, seconds=TURN_SECONDS + seconds, environment={"LD_LIBRARY_PATH": str(self.libraries)})
        except (OSError, subprocesses.TooLong) as error:
            raise Unavailable(f"{self.client}: can't be run to its end: {error or 'it took too long'}") from None
        count = _REQUESTS.search(done.stdout)
        if done.code or count is None or not report.exists():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing"]
            raise Unavailable(f"{self.client}: ended with status {done.code}: {said[0][:300]}")
        return {"requests": int(count[1]), **figures(report.read_text(encoding="utf-8"))}


def figures(report: str) -> dict[str, float]:
    """The figures of perf_analyzer's report: rates in images per second, times in seconds.

    >>> figures("Concurrency,Inferences/Second,Server Queue,Server Compute Infer,p50 latency,p90 latency,p99 latency\\n8,5000,2,3,4,5,6\\n")
    ... # doctest: +NORMALIZE_WHITESPACE
    {'images_per_second': 5000.0, 'p50_seconds': 4e-06, 'p90_seconds': 5e-06, 'p99_seconds': 6e-06,
     'queue_seconds': 2e-06, 'compute_seconds': 3e-06}
    """
    values = next(csv.DictReader(report.splitlines()))
    times = {
        "p50_seconds": "p50 latency", "p90_seconds": "p90 latency", "p99_seconds": "p99 latency", "queue_seconds": "Server Queue",
        "compute_seconds": "Server Compute Infer",
    }  # fmt: skip
    return {"images_per_second": float(values["Inferences/Second"]), **{key: float(values[name]) / 1e6 for key, name in times.items()}}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind((_LOCAL, 0))
        return [one.getsockname()[1] for one in held]


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(_LOCAL, port, timeout=1)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
