"""``cnet-deploy verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli.console import Command, show_json, tell
from cnet_deploy.cli.options import images_option, model_options, pin_option, timeout_option, tolerance_option
from cnet_deploy.cli.types import FilePath
from cnet_deploy.errors import CheckFailed
from cnet_deploy.hardware.cpu import share_the_processor


@click.command(
    cls=Command,
    short_help="Compare an artifact's outputs with its model's.",
    examples=["cnet-deploy verify model.onnx model.safetensors --images examples/cifar10-test-500.bin"],
)
@click.argument("artifact", type=FilePath())
@click.argument("model", type=FilePath())
@images_option
@tolerance_option
@pin_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print the comparisons as JSON.")
@model_options
def verify(artifact: Path, model: Path, as_json: bool, **options: Any) -> None:
    """Compare the outputs of ARTIFACT with those of the MODEL that it came from; exit code 1 if they differ."""
    share_the_processor()
    from cnet_deploy.workflows.verify import verify as compare

    comparisons = compare(artifact, model, **options)
    if as_json:
        show_json([c.to_dict() for c in comparisons])
    else:
        tell(*(c.summary() for c in comparisons))
    if failed := [c for c in comparisons if not c.passed]:
        noise = failed[0].least_cosine is not None and len(comparisons) == 1  # which it may not have been calibrated for
        then = "give --images as the network is used with, which then decide, or" if noise else ""
        raise CheckFailed(
            f"{artifact}: outputs differ from those of {model} beyond the tolerance on {failed[0].inputs}; "
            f"{then + ' ' if then else ''}export it again from {model}"
        )
    if not as_json:
        done = comparisons[0].converted
        does = "computes what" if comparisons[0].least_cosine is None else "answers in int8 as"
        tell(f"{artifact} {does} {model} does" + (f" once it is {done}" if done else ""))
