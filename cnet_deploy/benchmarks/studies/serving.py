"""The native library behind a real Triton server, and in the process itself, on the same cores.

``python -m cnet_deploy.benchmarks.studies.serving RESULTS.json ENVIRONMENT``: ENVIRONMENT is a virtual environment with a Triton server and
perf_analyzer (triton.py); `make bench` makes it. Server and client share the cores of this machine. Weights and images are random.

Each round has a turn of every way through the server and of every batch size in the process, in a new order. Rates are images over time, a
turn's figures are those of perf_analyzer, and ratios are taken within rounds. The limits are those of LEAST.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnet_deploy.benchmarks.measure.cells import SETTLE_SECONDS, Cell, Worker, worker
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.studies.overhead import EXAMPLE
from cnet_deploy.benchmarks.studies.runtimes import Notify, bar, bar_in_words
from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.benchmarks.studies.triton import Tools
from cnet_deploy.errors import Unavailable
from cnet_deploy.files import check_output, write_text
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build_random
from cnet_deploy.workflows.export import export
from cnet_deploy.workflows.publish import publish

FORMAT_VERSION = 1
NETWORKS = {"the example": EXAMPLE, "condensenet-74-g4": NAMED["condensenet-74-g4"]}
INSTANCES = ((1, 1), (1, 2), (2, 1))  # instances and the threads of each
DEFAULT = (1, 2)  # what `export` writes for two cores
CONCURRENCY = (1, 2, 4, 8)
THREADS, BATCHES = (1, 2), (1, 2, 4, 8, 32)  # in the process
LEAST = {"the example": 0.85, "condensenet-74-g4": 0.80}  # of the rate in the process, image by image, at MOST_CLIENTS
MOST_CLIENTS = 8


@dataclass(frozen=True)
class Settings:
    """Rounds, and the seconds of a turn through the server and in the process, where ``rewarm`` seconds come first."""

    rounds: int = 6
    served: float = 1.2
    inside: float = 0.25
    rewarm: float = 0.1


@dataclass
class Way:
    """A way to run a network: what it is, how a turn of it is measured, and the turns' results."""

    facts: dict[str, Any]
    turn: Callable[[], dict[str, Any]]
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Images per second, round by round."""
        return [one["images_per_second"] for one in self.rounds]

    def entry(self) -> dict[str, Any]:
        """It as it is recorded."""
        return {**self.facts, "images_per_second": statistics.median(self.rates), "rounds": self.rounds}

    def line(self) -> str:
        """It in a line of text."""
        facts = self.facts
        if facts["what"] == "in process":
            where = f"in the process, {facts['threads']} thread(s), batch {facts['batch']}"
        else:
            where = (
                f"{facts['instances']} instance(s) of {facts['threads']} thread(s), {facts['transport']}, {facts['concurrency']} client(s)"
            )
        times = [one["p50_seconds"] for one in self.rounds]
        median = f"{statistics.median(self.rates):.0f} images/s, median of a request {statistics.median(times) * 1e6:.0f} µs"
        return f"{facts['network']}, {where}: {median}"


def ways_inside(network: str, library: Path, settings: Settings, stack: contextlib.ExitStack) -> list[Way]:
    """Batch by batch in a process, which lasts as long as ``stack``. Raises Unavailable where the library can't be run."""
    ways = []
    for threads in THREADS:
        for batch in BATCHES:
            held = stack.enter_context(worker(Cell(network, str(library), "native", threads, batch)))
            _answer(held.open())
            facts = {"what": "in process", "network": network, "threads": threads, "batch": batch}
            ways.append(Way(facts, _inside(held, batch, settings)))
    return ways


def _inside(held: Worker, batch: int, settings: Settings) -> Callable[[], dict[str, Any]]:
    def turn() -> dict[str, Any]:
        samples = _answer(held.measure(settings.rewarm, settings.inside, 3))["samples"]
        rate = batch * len(samples) / sum(samples)
        return {"images_per_second": rate, "p50_seconds": statistics.median(samples), "samples": samples}

    return turn


def _answer(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise Unavailable(str(answer["error"]))
    return answer


def ways_through(
    network: str, models: dict[tuple[int, int], str], tools: Tools, address: str, settings: Settings, folder: Path
) -> list[Way]:
    """From one client to MOST_CLIENTS through each of ``models``, a server's names by instances and threads."""
    ways = []
    for (instances, threads), model in models.items():
        for transport in ("gRPC", "gRPC, shared memory")[: 2 if (instances, threads) == DEFAULT else 1]:
            for clients in CONCURRENCY:
                facts = {
                    "what": "served", "network": network, "instances": instances, "threads": threads, "transport": transport,
                    "concurrency": clients,
                }  # fmt: skip
                ways.append(Way(facts, _through(tools, address, model, clients, "shared" in transport, settings, folder)))
    return ways


def _through(
    tools: Tools, address: str, model: str, clients: int, shared: bool, settings: Settings, folder: Path
) -> Callable[[], dict[str, Any]]:  # fmt: skip
    return lambda: tools.load(address, model, concurrency=clients, shared_memory=shared, seconds=settings.served, folder=folder)


def bars(network: str, ways: list[Way]) -> list[dict[str, Any]]:
    """The rate through the server at MOST_CLIENTS by rates in the process: image by image, with a limit, and in batches."""
    found = []
    instances, threads = DEFAULT
    served = {"network": network, "instances": instances, "threads": threads, "concurrency": MOST_CLIENTS}
    for transport in ("gRPC", "gRPC, shared memory"):
        through = _find(ways, **served, transport=transport)
        for number, batch in ((1, 1), (threads, 1), (threads, MOST_CLIENTS), (threads, BATCHES[-1])):
            inside = _find(ways, what="in process", network=network, threads=number, batch=batch)
            share = statistics.median(a / b for a, b in zip(through.rates, inside.rates, strict=True))
            limited = transport == "gRPC" and (number, batch) == (threads, 1)
            what = f"{network}: {MOST_CLIENTS} clients by {transport}, of the rate in the process with {number} thread(s), batch {batch}"
            found.append(bar(what, share, least=LEAST.get(network) if limited else None))
    return found


def _find(ways: list[Way], **facts: Any) -> Way:
    return next(way for way in ways if facts.items() <= way.facts.items())


def publish_all(folder: Path, networks: dict[str, Architecture]) -> tuple[dict[str, Path], dict[str, dict[tuple[int, int], str]]]:
    """The libraries of networks by their names, and the models of the repository in ``folder``/models."""
    libraries, models = {}, dict[str, dict[tuple[int, int], str]]()
    for number, (network, architecture) in enumerate(networks.items()):
        libraries[network] = folder / f"{number}.so"
        export(build_random(architecture), "native", libraries[network])
        models[network] = {}
        for instances, threads in INSTANCES:
            name = models[network][instances, threads] = f"network{number}-{instances}x{threads}"
            publish(folder / "models", libraries[network], name=name, instances=instances, threads=threads)
    return libraries, models


def main(output: Path, installation: Path, notify: Notify = print, settings: Settings = Settings()) -> None:
    """Run it, which takes about seven minutes. ``installation`` is the environment with the server."""
    check_output(output)
    before = environment()
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-serving-") as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        (folder / "libraries").mkdir()
        (folder / "backends").mkdir()  # empty: the backend lies beside the model
        tools = Tools.find(installation, folder / "libraries")
        libraries, models = publish_all(folder, NETWORKS)
        address = stack.enter_context(tools.serving(folder / "models", folder / "backends"))
        ways: list[Way] = []
        for network, library in libraries.items():
            ways += ways_through(network, models[network], tools, address, settings, folder)
            ways += ways_inside(network, library, settings, stack)
        for number in range(settings.rounds):
            for way in random.Random(number).sample(ways, len(ways)):
                time.sleep(SETTLE_SECONDS)
                way.rounds.append(way.turn())
            notify(f"round {number + 1} of {settings.rounds} is measured")
    limits = [one for network in NETWORKS for one in bars(network, ways)]
    for way in ways:
        notify(way.line())
    for one in limits:
        notify(bar_in_words(one))
    report = {
        "cnet_deploy_serving": FORMAT_VERSION, "environment": before, "environment_after": environment(), "packages": tools.versions,
        "settings": {"rounds": settings.rounds, "served_seconds": settings.served, "inside_seconds": settings.inside},
        "results": [way.entry() for way in ways], "bars": limits,
    }  # fmt: skip
    write_text(output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main, "cnet_deploy.benchmarks.studies.serving RESULTS.json ENVIRONMENT")
