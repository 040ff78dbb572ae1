"""``cnet-deploy export``. The targets' flags and options come from their declarations in ``exporters``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli import options as parameters
from cnet_deploy.cli.console import Command, note, tell
from cnet_deploy.cli.options import (
    Artifact,
    force_option,
    images_option,
    keep_option,
    labels_option,
    model_options,
    pin_option,
    steps_options,
    tolerance_option,
)
from cnet_deploy.cli.types import ModelOrName, OutputPath
from cnet_deploy.hardware.cpu import share_the_processor


@click.command(
    cls=Command,
    short_help="A model -> a verified artifact for the runtime of your choice.",
    examples=[
        "cnet-deploy export model.safetensors --onnx -o model.onnx",
        "cnet-deploy export model.safetensors --native -o model.so",
        "cnet-deploy export model.safetensors --onnx --native --precision fp32,bf16",
        "cnet-deploy export model.safetensors --native --precision int8 --calibrate examples/cifar10-test-500.bin",
    ],
)
@click.argument("model", type=ModelOrName())
@parameters.target_options
@parameters.triton_options
@click.option("-o", "--output", type=OutputPath(), help="The artifact; of several, the folder for them. [default: beside the model]")
@parameters.form_option
@parameters.int8_options
@keep_option
@labels_option("They are stored in the artifact. [default: the model's own]")
@images_option
@tolerance_option
@steps_options
@force_option
@pin_option
@model_options
def export(model: Path, triton: Path | None, output: Path | None, form: str | None, **options: Any) -> None:
    """Export MODEL (a checkpoint or a converted model) and verify the artifact. The file is renamed only after it was verified.

    MODEL may be the name of a network (see `bench`): it is exported with random weights, for measuring. Several targets and several
    precisions (--precision fp32,fp16) give an artifact for each combination. Each is written when it was verified; if one fails, those
    before it remain. By default an artifact lies beside the model, with a smaller precision than fp32 in its name: model.fp16.onnx.
    """
    common: dict[str, Any] = {"overrides": parameters.take_overrides(options), "notify": parameters.once(note)}
    common["preprocessing"] = parameters.take_steps(options)
    common |= parameters.take(options, "classifier_keep", "labels", "images", "tolerance", "sha256")
    form = options.pop("lowering") or form
    served = parameters.take_triton(options, triton)
    chosen = parameters.take_targets(options, triton, output)
    int8 = parameters.take(options, *parameters.INT8)
    given = {name: value for name, value in options.items() if value is not None}
    artifacts = parameters.artifacts_of(chosen, given, form)
    int8 = parameters.take_int8(int8, artifacts)
    parameters.require_served(served, artifacts)
    if triton is not None and len(artifacts) > 1:
        raise click.UsageError(f"--triton takes one artifact, and {len(artifacts)} were asked for; expected one target and one precision")
    share_the_processor()
    from cnet_deploy.workflows.export import check_artifact
    from cnet_deploy.workflows.prepare import default_artifact, output_of

    paths = [output] * len(artifacts)
    if len(artifacts) > 1 and output is not None:
        if not output.is_dir():
            raise click.UsageError(
                f"-o {output} names one file, and {len(artifacts)} artifacts were asked for; expected a folder that exists"
            )
        paths = [output / default_artifact(model, artifact.target, artifact.options.get("precision")).name for artifact in artifacts]
    for path, artifact in zip(paths, artifacts, strict=True):
        if triton is None:
            place = output_of(model, artifact.target, path, artifact.options.get("precision"))
            check_artifact(place, artifact.target, model)  # before the first is written
    calibrations: dict[str | None, Any] = {}  # of the network in each form: calibrated once, whatever is written of it
    for path, artifact in zip(paths, artifacts, strict=True):
        own = dict(common)
        if parameters.is_int8(artifact):
            own |= int8
            if artifact.form in calibrations:
                own["calibration"] = calibrations[artifact.form]
        lines, calibration = _written(model, (triton, served) if triton else None, path, artifact, own)
        if calibration is not None:
            calibrations[artifact.form] = calibration
        tell(*lines)


def _written(
    model: Path, triton: tuple[Path, dict[str, Any]] | None, output: Path | None, artifact: Artifact, common: dict[str, Any]
) -> tuple[list[str], Any]:  # fmt: skip
    """Write one artifact, or a repository of Triton with the options given; lines about it, and its calibration."""
    from cnet_deploy.cli.progress import bar
    from cnet_deploy.workflows import export as workflow

    target, form, options = artifact.target, artifact.form, dict(artifact.options)
    with bar(f"export {model.name}") as progress:
        if form == "auto":
            from cnet_deploy.benchmarks.tuning.tune import chooser
            from cnet_deploy.workflows.prepare import output_of

            path = output_of(model, target, output, options.get("precision"))
            chosen: Any = chooser(path, source=model, target=target, options=options, notify=note, progress=progress)
        else:
            chosen = form or "gather"
        options = {**options, "progress": progress}  # the chooser keeps its own
        if triton is not None:
            folder, served = triton
            done, repository = workflow.export_repository(model, target, folder, **served, form=chosen, **common, **options)
            return [*done.lines()[:-1], *repository.lines()], done.calibration
        done = workflow.export(model, target, output, form=chosen, **common, **options)
        return done.lines(), done.calibration
