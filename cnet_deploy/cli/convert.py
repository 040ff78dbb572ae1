"""``cnet-deploy convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli import options as parameters
from cnet_deploy.cli.console import Command, tell
from cnet_deploy.cli.options import force_option, images_option, keep_option, labels_option, model_options, pin_option, steps_options
from cnet_deploy.cli.types import FilePath, OutputPath
from cnet_deploy.hardware.cpu import share_the_processor


@click.command(
    cls=Command,
    short_help="Convert a training checkpoint to group-conv form.",
    examples=[
        "cnet-deploy convert examples/reference-cifar10.pth.tar -o model.safetensors "
        "--statistics cifar10 --labels examples/cifar10-labels.txt"
    ],
)
@click.argument("checkpoint", type=FilePath())
@click.option(
    "-o",
    "--output",
    type=OutputPath(),
    help="A .safetensors file, or .pth.tar in the reference's converted format. [default: beside the input]",
)
@keep_option
@labels_option("They are stored in the output. [default: the model's own]")
@images_option
@steps_options
@force_option
@pin_option
@model_options
def convert(checkpoint: Path, output: Path | None, **options: Any) -> None:
    """Convert the training checkpoint CHECKPOINT to group-conv form: the model with standard group convolutions."""
    overrides, steps = parameters.take_overrides(options), parameters.take_steps(options)
    share_the_processor()
    from cnet_deploy.workflows.convert import convert_file

    tell(*convert_file(checkpoint, output, overrides=overrides, preprocessing=steps, **options).summary().split("\n"))
