"""``cnet-deploy train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli import options as parameters
from cnet_deploy.cli.console import Command, note, tell
from cnet_deploy.cli.types import FilePath


@click.command(
    cls=Command,
    short_help="Train a network by the reference's recipe.",
    examples=[
        "cnet-deploy train cifar-10-batches-bin --stages 4-4-4 --growth 8-16-32 -b 64 --epochs 40 "
        "--group-lasso-lambda 1e-5 --precision bf16"
    ],
)
@click.argument("data", type=FilePath())
@parameters.training_options
@parameters.force_option
def train(data: Path, gpu: str | None, **options: Any) -> None:
    """Train a network on the images in DATA by the reference's recipe. Either program can read the other's checkpoints.

    DATA is a folder of CIFAR-10 or 100 (binary or Python version), Fashion-MNIST (idx), or train/ and val/ with a folder of images for
    each class. Use torchrun for several processes: torchrun --nproc-per-node 4 -m cnet_deploy train DATA ...
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch is imported
    from dataclasses import fields

    from cnet_deploy.cli.progress import bar
    from cnet_deploy.training import Recipe
    from cnet_deploy.training import train as begin

    recipe = Recipe(**{field.name: options.pop(field.name) for field in fields(Recipe)})
    savedir = options.pop("savedir")
    with bar("train") as progress:
        done = begin(data, savedir, recipe, notify=note, progress=progress, **options)
    for line in done.lines() if done else ():
        tell(line)
