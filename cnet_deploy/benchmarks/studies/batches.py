"""What threads gain from a batch in the native library: each takes images of its own, or all share every layer.

``python -m cnet_deploy.benchmarks.studies.batches RESULTS.json``. Weights and images are random. All cells of a network are one interleaved
run, and ratios are taken within rounds (``ratio``). By itself the library gives each thread images of its own where a batch has as many
images as there are threads, and runs no more threads than there are processors: on two, four threads are two. The limits are those of
FASTER and LEAST_WITH_MORE.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Result, Settings, measure, ratio
from cnet_deploy.benchmarks.studies.overhead import EXAMPLE
from cnet_deploy.benchmarks.studies.runtimes import Notify, bar, bar_in_words
from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.files import check_output, write_text
from cnet_deploy.models.architecture import NAMED
from cnet_deploy.models.build import build_random
from cnet_deploy.sessions import open_session
from cnet_deploy.sessions.native import NativeSession
from cnet_deploy.workflows.export import export

FORMAT_VERSION = 1
NETWORKS = {"the example": EXAMPLE, **{name: NAMED[name] for name in ("condensenet-86", "condensenet-74-g4")}}
THREADS, BATCHES = (1, 2, 4), (1, 2, 8, 32)
ITSELF, LAYERS = "auto", "layers"  # how threads share a batch: see cnet.h
SETTINGS = Settings(rounds=7, seconds=0.15, warmup=0.1, rewarm=0.05)
FASTER = {"the example": 1.8, "condensenet-86": 1.8}  # times, with two threads for one and the largest batch
LEAST_WITH_MORE = 0.9  # times as fast, with four threads for two on two cores

Key = tuple[int, int, str]  # threads, batch, sharing
KEYS: list[Key] = [
    (threads, batch, sharing)
    for threads in THREADS
    for batch in BATCHES
    for sharing in ((ITSELF, LAYERS) if threads > 1 and batch > 1 else (ITSELF,))
]


def cells_of(network: str, library: Path) -> list[Cell]:
    """A network's cells, in the order of KEYS."""
    return [
        Cell(f"{network}, {threads} thread(s), {sharing}", str(library), "native", threads, batch, {"sharing": sharing})
        for threads, batch, sharing in KEYS
    ]


def bars(network: str, results: Mapping[Key, Result]) -> list[dict[str, Any]]:
    """How many times as fast a network is with more threads, and with images of their own for layers in common."""
    least = FASTER.get(network)
    most, two = BATCHES[-1], ITSELF
    found = [
        bar(f"{network}, batch {most}: 2 threads for 1", _faster(results, (2, most, two), (1, most, two)), least=least),
        bar(f"{network}, batch 1: 2 threads for 1", _faster(results, (2, 1, two), (1, 1, two))),
    ]
    for batch in BATCHES:
        more = _faster(results, (4, batch, two), (2, batch, two))
        found.append(bar(f"{network}, batch {batch}: 4 threads for 2", more, least=LEAST_WITH_MORE))
    for batch in BATCHES[1:]:
        own = _faster(results, (2, batch, two), (2, batch, LAYERS))
        found.append(bar(f"{network}, batch {batch}, 2 threads: images of their own for layers in common", own))
    return found


def _faster(results: Mapping[Key, Result], key: Key, than: Key) -> float | None:
    """How many times as fast one is as another: the median over rounds; None where it was not measured."""
    return ratio(results[than], results[key])


def reserved(library: Path, threads: int, sharing: str) -> int:
    """The bytes that a handle has reserved when it has run the largest batch."""
    with open_session(library, backend="native", threads=threads, timeout=None, sharing=sharing) as session:
        assert isinstance(session, NativeSession)
        _, *shape = session.input_shape
        session.run(np.zeros((BATCHES[-1], *shape), np.float32))
        assert session.reserved is not None  # only an older library does not tell
        return session.reserved


def main(output: Path, notify: Notify = print, settings: Settings = SETTINGS) -> None:
    """Run it, which takes about four minutes."""
    check_output(output)
    before, found = environment(), []
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-batches-") as folder:
        for number, (network, architecture) in enumerate(NETWORKS.items()):
            library = Path(folder) / f"{number}.so"
            export(build_random(architecture), "native", library)
            results = dict(zip(KEYS, measure(cells_of(network, library), settings), strict=True))
            cells = []
            for (threads, batch, sharing), result in results.items():
                rate, named = result.images_per_second, replace(result, cell=replace(result.cell, model=library.name))
                cells.append({"threads": threads, "batch": batch, "sharing": sharing, "images_per_second": rate, **asdict(named)})
                notify(f"{result.cell.label}, batch {batch}: {result.error or f'{rate:.0f} images/s'}")
            memory: list[dict[str, Any]] = [
                {"threads": threads, "sharing": sharing, "reserved_bytes": reserved(library, threads, sharing)}
                for threads, sharing in dict.fromkeys((threads, sharing) for threads, _, sharing in KEYS)
            ]
            for one in memory:
                notify(f"{network}, {one['threads']} thread(s), {one['sharing']}: {one['reserved_bytes'] / 2**20:.2f} MiB reserved")
            limits = bars(network, results)
            for one in limits:
                notify(f"  {bar_in_words(one)}")
            found.append({"network": network, "cells": cells, "memory": memory, "bars": limits})
    report = {
        "cnet_deploy_batches": FORMAT_VERSION, "environment": before, "environment_after": environment(), "settings": asdict(settings),
        "results": found,
    }  # fmt: skip
    write_text(output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main, "cnet_deploy.benchmarks.studies.batches RESULTS.json")
