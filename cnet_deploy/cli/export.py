"""``cnet-deploy export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli import options as parameters
from cnet_deploy.cli.console import Command, note, tell
from cnet_deploy.cli.options import images_option, keep_option, labels_option, model_options, pin_option, tolerance_option
from cnet_deploy.cli.types import Batches, ModelOrName
from cnet_deploy.hardware.cpu import share_the_processor


@click.command(
    cls=Command,
    short_help="A model -> a verified ONNX file, native library or TensorRT engine.",
    examples=["cnet-deploy export model.safetensors --onnx -o model.onnx", "cnet-deploy export model.safetensors --native -o model.so"],
)
@click.argument("model", type=ModelOrName())
@parameters.target_options
@click.option(
    "--triton",
    type=click.Path(path_type=Path),
    help="Put the artifact into this model repository of NVIDIA Triton Inference Server: --tensorrt, or ONNX.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The artifact. [default: beside the model]")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "fp16", "bf16"]),
    help="Of weights and layers; images and logits stay float32. ONNX: no tf32; native: fp32, bf16. [default: fp32]",
)
@click.option("--batch", type=Batches(), help="ONNX: fix the batch size. TensorRT: N, or LEAST:BEST:MOST. [default: free; 1:1:32]")
@click.option("--opset", type=click.IntRange(17, 22), help="ONNX: its opset. [default: 17; for bf16 22]")
@click.option(
    "--target",
    "cpu",
    type=click.Choice(["host", "x86-64-v3", "x86-64-v4", "aarch64"], case_sensitive=False),
    help="Native: the processor to compile for. [default: all of this machine's family, chosen at load]",
)
@parameters.lowering_options
@keep_option
@labels_option("What is written carries them from then on. [default: those that the model has]")
@images_option
@tolerance_option
@pin_option
@model_options
def export(model: Path, target: str | None, triton: Path | None, output: Path | None, lowering: str | None, **options: Any) -> None:
    """Export MODEL (a checkpoint or a converted model) and verify what was written before it takes its name.

    The name of a network, as `bench` knows them, is exported with random weights: for measuring alone.
    """
    common: dict[str, Any] = {"overrides": parameters.take_overrides(options), "say": note}
    common |= parameters.take(options, "classifier_keep", "labels", "images", "tolerance", "sha256")
    target = parameters.require_target(target, triton, output)
    options = {name: value for name, value in options.items() if value is not None}
    share_the_processor()
    from cnet_deploy.cli.progress import bar
    from cnet_deploy.exporters import options_of
    from cnet_deploy.workflows import export as deployment

    parameters.require_own_options(target, options, options_of(target), lowering)
    with bar(f"export {model.name}") as told:
        if lowering == "auto":
            from cnet_deploy.benchmarks.tuning.tune import choose_for_file

            common["lowering"] = choose_for_file(model, target, output, options=options, progress=told, **common)
        else:
            common["lowering"] = lowering or "gather"
        if "progress" in options_of(target):
            options["progress"] = told
        if triton is not None:
            done, repository = deployment.export_repository(model, target, triton, **common, **options)
        else:
            done = deployment.export(model, target, output, **common, **options)
    for line in done.lines() if triton is None else [*done.lines()[:-1], *repository.lines()]:
        tell(line)
