"""``cnet-deploy export``. The targets' flags and options come from their declarations in ``exporters``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli import options as parameters
from cnet_deploy.cli.console import Command, note, tell
from cnet_deploy.cli.options import (
    force_option,
    images_option,
    keep_option,
    labels_option,
    model_options,
    pin_option,
    steps_options,
    tolerance_option,
)
from cnet_deploy.cli.types import FilePath, ModelOrName
from cnet_deploy.hardware.cpu import share_the_processor


@click.command(
    cls=Command,
    short_help="A model -> a verified artifact for the runtime of your choice.",
    examples=["cnet-deploy export model.safetensors --onnx -o model.onnx", "cnet-deploy export model.safetensors --native -o model.so"],
)
@click.argument("model", type=ModelOrName())
@parameters.target_options
@click.option(
    "--triton",
    type=FilePath(),
    help="Write the artifact into this model repository of NVIDIA Triton Inference Server.",
)
@click.option("-o", "--output", type=FilePath(), help="The artifact. [default: beside the model]")
@parameters.form_option
@keep_option
@labels_option("They are stored in the artifact. [default: the model's own]")
@images_option
@tolerance_option
@steps_options
@force_option
@pin_option
@model_options
def export(model: Path, target: str | None, triton: Path | None, output: Path | None, form: str | None, **options: Any) -> None:
    """Export MODEL (a checkpoint or a converted model) and verify the artifact. The file is renamed only after it was verified.

    MODEL may be the name of a network (see `bench`): it is exported with random weights, for measuring.
    """
    common: dict[str, Any] = {"overrides": parameters.take_overrides(options), "notify": note}
    common["preprocessing"] = parameters.take_steps(options)
    common |= parameters.take(options, "classifier_keep", "labels", "images", "tolerance", "sha256")
    form = options.pop("lowering") or form
    target = parameters.require_target(target, triton, output)
    options = {name: value for name, value in options.items() if value is not None}
    parameters.require_own_options(target, options, form)
    share_the_processor()
    from cnet_deploy.cli.progress import bar
    from cnet_deploy.exporters import options_of
    from cnet_deploy.workflows import export as workflow

    with bar(f"export {model.name}") as progress:
        if form == "auto":
            from cnet_deploy.benchmarks.tuning.tune import chooser
            from cnet_deploy.workflows.prepare import output_of

            artifact = output_of(model, target, output)
            common["form"] = chooser(artifact, source=model, target=target, options=options, notify=note, progress=progress)
        else:
            common["form"] = form or "gather"
        if "progress" in options_of(target):
            options["progress"] = progress
        if triton is not None:
            done, repository = workflow.export_repository(model, target, triton, **common, **options)
        else:
            done = workflow.export(model, target, output, **common, **options)
    for line in done.lines() if triton is None else [*done.lines()[:-1], *repository.lines()]:
        tell(line)
