"""``cnet-deploy bench``."""

from __future__ import annotations

from pathlib import Path

import click

from cnet_deploy.cli.console import Command, note, quiet
from cnet_deploy.cli.options import calibration_option, force_option, timeout_option, weights_option
from cnet_deploy.cli.types import Choices, Finite, Numbers, OutputPath, Size, Words, complete_backends, complete_models
from cnet_deploy.sessions import names

FAMILIES = ("paper", "v2")  # the keys of benchmarks/sweep/paper.py, which imports torch
_HELP = f"""Measure the paper's inference-time table on this machine, or any MODELS.

A model is a file or the name of a network. A checkpoint or a model is exported for every runtime, and an artifact is measured in every
runtime that opens it. Names, which run with random weights in every runtime:
condensenet-74-g4, condensenet-74-g8, condensenet-50 to condensenet-182, condensenet-v2-a to condensenet-v2-c, vgg-16, resnet-18,
mobilenet-1.0-224.

Backends: {", ".join(names())}. Parts after dots select a variant of a backend: its precision, or how it runs. For an unknown part the
error message lists those of the backend.
"""


@click.command(
    cls=Command,
    help=_HELP,
    short_help="Measure the paper's inference-time table, or any models.",
    examples=["cnet-deploy bench --json results.json --html report.html", "cnet-deploy bench model.onnx model.so model.safetensors"],
)
@click.argument("models", nargs=-1, shell_complete=complete_models)
@click.option(
    "--family",
    "families",
    type=Choices(FAMILIES),
    default=(),
    help="Measure all networks of a table, or of both: the paper's, that of CondenseNet V2. [default: paper, where no MODELS are given]",
)
@click.option(
    "--backend",
    "backends",
    type=Words(),
    shell_complete=complete_backends,
    default=(),
    help="Backends to measure: one, or several separated by commas.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="The device.")
@click.option("--threads", type=Numbers(), default=(), help="Threads: a number, or several as 1,2. [default: all cores]")
@click.option("--batch", "batches", type=Numbers(), default=(1,), help="Images per inference: a number, or several as 1,8,32. [default: 1]")
@click.option("--input-size", type=Size(), help="Input in pixels, as 224 or HEIGHTxWIDTH, of files that don't tell it.")
@weights_option
@calibration_option
@timeout_option
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Turns of each cell.")
@click.option("--seconds", type=Finite(0), default=0.2, show_default=True, help="Least measuring time of a turn, in seconds.")
@click.option("--warmup", type=Finite(0), default=0.5, show_default=True, help="Least warm-up time of a process, in seconds.")
@click.option("--json", type=OutputPath(), help="Write raw samples and the environment to this file during the run.")
@click.option("--resume", is_flag=True, help="Continue the interrupted run in the file of --json.")
@click.option(
    "--save-baseline",
    "baseline",
    type=OutputPath(),
    help="Measure each turn in a new process, and store it in this file for `gate --baseline`.",
)
@click.option("--html", type=OutputPath(), help="Write the report as one HTML page with its plots.")
@click.option("--markdown", type=OutputPath(), help="Write the tables as Markdown.")
@click.option("--csv", type=OutputPath(), help="Write one line per cell as CSV.")
@force_option
@click.option("--svg", type=OutputPath(), help="Write a plot of latency against top-1 error.")
def bench(
    models: tuple[str, ...], families: tuple[str, ...], backends: tuple[str, ...], device: str, threads: tuple[int, ...],
    batches: tuple[int, ...], input_size: tuple[int, int] | None, weights: str | None, calibrate: Path | None, rounds: int,
    seconds: float, warmup: float, resume: bool, baseline: Path | None, **outputs: Path | None,
) -> None:  # fmt: skip
    """Plan the sweep, run it, print its tables."""
    if baseline is not None and rounds < 8:
        raise click.UsageError("--save-baseline needs 8 rounds or more, as the gate does; give --rounds 8")
    from cnet_deploy.benchmarks.measure.rounds import Settings
    from cnet_deploy.benchmarks.report.terminal import Outputs
    from cnet_deploy.benchmarks.report.terminal import run as measure
    from cnet_deploy.benchmarks.sweep import paper

    measure(
        (*models, *(row.model for family in families for row in paper.FAMILIES[family])),
        backends=backends, threads=threads, batches=batches, device=device, resume=resume,
        settings=Settings(rounds=rounds, seconds=seconds, warmup=warmup, fresh=baseline is not None),
        outputs=Outputs(baseline=baseline, **outputs), quiet=quiet(), input_size=input_size, weights=weights,
        calibrate=calibrate, notify=note,
    )  # fmt: skip
