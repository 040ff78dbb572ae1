"""``cnet-deploy compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli import options as parameters
from cnet_deploy.cli.console import Command, note, tell
from cnet_deploy.cli.options import force_option, keep_option, model_options, steps_options, timeout_option
from cnet_deploy.cli.types import FilePath, Finite, ModelOrName, OutputPath, Words, complete_backends
from cnet_deploy.sessions import PRECISIONS


@click.command(
    cls=Command,
    short_help="One model in every runtime and precision: latency, accuracy, size.",
    examples=[
        "cnet-deploy compare model.safetensors --data examples/cifar10-test-500.bin --html compare.html",
        "cnet-deploy compare model.onnx --backend onnxruntime,openvino",
    ],
)
@click.argument("model", type=ModelOrName())
@click.option(
    "--data", type=FilePath(), help="A dataset's folder (see `train`), or a CIFAR binary file. Without it: latency and size only."
)
@click.option(
    "--calibrate",
    type=FilePath(),
    metavar="DATA",
    help="Images to calibrate int8 with, as of `export`. [default: those of --data, or random ones]",
)
@click.option(
    "--split", type=click.Choice(["val", "train"]), default="val", show_default=True, help="The test images, or the training images."
)
@click.option("--images", "limit", type=click.IntRange(1), help="At most so many images of --data, evenly spread. [default: all]")
@click.option(
    "--backend",
    "backends",
    type=Words(),
    shell_complete=complete_backends,
    default=(),
    help="Backends: one, or several separated by commas. [default: all that run on the device]",
)
@click.option("--precision", "precisions", type=Words(), default=(), help=f"Some of {', '.join(PRECISIONS)}. [default: all]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="The device.")
@click.option("--threads", type=click.IntRange(1), help="Threads of inference. [default: all cores]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images per inference when times are measured.")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Turns of each variant.")
@click.option("--seconds", type=Finite(0), default=0.2, show_default=True, help="Least measuring time of a turn, in seconds.")
@click.option("--warmup", type=Finite(0), default=0.5, show_default=True, help="Least warm-up time of a process, in seconds.")
@click.option("--json", type=OutputPath(), help="Write everything, raw samples included, to this file.")
@click.option("--html", type=OutputPath(), help="Write the result as one HTML page.")
@force_option
@keep_option
@steps_options
@click.option("-j", "--workers", type=click.IntRange(1), help="Threads that read images. [default: one per core, at most 8]")
@click.option(
    "--skip-corrupt", type=click.IntRange(0), default=0, show_default=True, help="How many unreadable images to accept; they are counted."
)
@click.option("--exif", is_flag=True, help="Turn images as their EXIF data say. [default: as stored, as torchvision]")
@timeout_option
@model_options
def compare(
    model: Path, rounds: int, seconds: float, warmup: float, json: Path | None, html: Path | None, **options: Any
) -> None:  # fmt: skip
    """Compare MODEL in every runtime and every precision: latency, top-1 error with its interval, agreement with fp32, file size.

    MODEL (a checkpoint or a converted model) is exported for each into a temporary folder and verified. An ONNX file or another artifact
    is run by every runtime that opens it. A network's name (see `bench`) gives latency and size, with random weights. All variants answer
    the same images, and their times are measured in turns. What can't be made or run here is named with its reason.
    """
    from cnet_deploy.benchmarks.compare.run import compare as compare_all
    from cnet_deploy.benchmarks.compare.show import check_outputs, render, write_outputs
    from cnet_deploy.benchmarks.measure.rounds import Settings
    from cnet_deploy.benchmarks.report.terminal import show
    from cnet_deploy.cli.progress import bar

    check_outputs(model, json=json, html=html)
    options["preprocessing"] = parameters.take_steps(options)
    settings = Settings(rounds=rounds, seconds=seconds, warmup=warmup)
    # The bar is drawn between turns only: a thread that redraws it would steal time from what is measured.
    with bar("compare", redraw=False) as progress:
        done = compare_all(model, settings=settings, notify=note, progress=progress, **options)
    show(render(done))
    for path in write_outputs(done, json=json, html=html):
        tell(f"wrote {path}")
