"""``cnet-deploy run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli import options as parameters
from cnet_deploy.cli.console import Command, show, show_json
from cnet_deploy.cli.options import labels_option, model_options, pin_option, steps_options, timeout_option
from cnet_deploy.cli.types import FilePath, complete_backends
from cnet_deploy.errors import InputRefused
from cnet_deploy.hardware.cpu import keep_freed_memory, share_the_processor


@click.command(
    cls=Command,
    short_help="Classify images with any model or artifact.",
    examples=["cnet-deploy run model.onnx examples/images/cat.png", "cnet-deploy run model.so examples/images --top 1"],
)
@click.argument("file", type=FilePath())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=FilePath())
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes to print for each image.")
@labels_option("[default: those in FILE]")
@click.option("--backend", shell_complete=complete_backends, help="The backend. [default: by FILE's content]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="The device. [default: cpu; engines: cuda]")
@click.option("--threads", type=click.IntRange(1), help="Threads of inference. [default: the backend's own]")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Images per inference.")
@steps_options
@pin_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print the answers as JSON.")
@model_options
def run(file: Path, images: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Classify IMAGEs with FILE (a checkpoint, a model or an artifact): print the most likely classes of each.

    An IMAGE is a PNG, JPEG, TIFF, BMP, WebP, PPM or PGM file, a folder of them, or a CIFAR binary file. It is turned as its EXIF data say
    and preprocessed as FILE's metadata says.
    """
    share_the_processor()
    keep_freed_memory()
    from cnet_deploy.workflows.classify import classify

    steps = parameters.take_steps(options)
    answers, problems = [], []
    for answer in classify(file, images, preprocessing=steps, **options):
        answers.append(answer)
        if answer.problem:
            problems.append(answer.problem)
        elif not as_json:
            show(*answer.lines())
    if as_json:
        show_json([answer.to_dict() for answer in answers])
    if problems:
        raise InputRefused(f"{len(problems)} of {len(answers)} images were not classified: {'; '.join(problems[:3])}")
