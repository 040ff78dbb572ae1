"""``cnet-deploy evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli import options as parameters
from cnet_deploy.cli.console import Command, show, show_json
from cnet_deploy.cli.options import model_options, steps_options, timeout_option
from cnet_deploy.cli.types import FilePath, complete_backends
from cnet_deploy.errors import Interrupted
from cnet_deploy.hardware.cpu import keep_freed_memory, share_the_processor


@click.command(
    cls=Command,
    short_help="Top-1 and top-5 error of files, side by side.",
    examples=[
        "cnet-deploy evaluate examples/reference-cifar10.pth.tar model.safetensors model.onnx model.so --data examples/cifar10-test-500.bin"
    ],
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=FilePath())
@click.option("--data", required=True, type=FilePath(), help="A dataset's folder (see `train`), or a CIFAR binary file.")
@click.option(
    "--split", type=click.Choice(["val", "train"]), default="val", show_default=True, help="The test images, or the training images."
)
@click.option("--backend", shell_complete=complete_backends, help="The backend for all files. [default: by each file's content]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="The device. [default: cpu; engines: cuda]")
@click.option("--threads", type=click.IntRange(1), help="Threads of inference. [default: the backend's own]")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images per inference.")
@click.option("-j", "--workers", type=click.IntRange(1), help="Threads that read images. [default: one per core, at most 8]")
@steps_options
@timeout_option
@click.option(
    "--skip-corrupt", type=click.IntRange(0), default=0, show_default=True, help="How many unreadable images to accept; they are named."
)
@click.option("--exif", is_flag=True, help="Turn images as their EXIF data say. [default: as stored, as torchvision]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@model_options
def evaluate(files: tuple[Path, ...], data: Path, as_json: bool, **options: Any) -> None:
    """Top-1 and top-5 error of FILEs (checkpoints, models, artifacts) on labelled images, side by side.

    Each error is followed by its 95 % interval. Images are preprocessed as each file's metadata says. Classes are matched by name where
    FILE has the names of DATA's.
    """
    share_the_processor()
    keep_freed_memory()
    from cnet_deploy.cli.progress import bar
    from cnet_deploy.workflows.evaluate import evaluate as compare

    steps = parameters.take_steps(options)
    done = "before the first image"

    def counted(text: str, share: float) -> None:
        nonlocal done
        done = f"after {text}"
        progress(text, share)

    with bar("evaluate") as progress:
        try:
            result = compare(files, data, preprocessing=steps, progress=counted, **options)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted {done}; there is no result: errors are of all images") from None
    if as_json:
        show_json(result.to_dict())
    else:
        show(*result.lines())
