"""The command line: parse, call one function, print. Heavy modules are imported by the commands that need them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cnet_deploy import __version__, parameters
from cnet_deploy.cli_runs import bench, evaluate, gate, run, train
from cnet_deploy.console import Commands, note, tell
from cnet_deploy.errors import CheckFailed, Unavailable
from cnet_deploy.machine import share_the_processor
from cnet_deploy.parameter_types import Batches, ModelOrName, complete_backends
from cnet_deploy.parameters import images_option, keep_option, labels_option, model_options, pin_option, tolerance_option


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="cnet-deploy", message="%(prog)s %(version)s")
def main() -> None:
    """From a CondenseNet training checkpoint to a verified model in production."""


@main.command(
    short_help="A checkpoint as training left it -> the group-convolution model.",
    examples=["cnet-deploy convert examples/reference-cifar10.pth.tar -o model.safetensors --labels examples/cifar10-labels.txt"],
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A .safetensors file, or .pth.tar in the reference's converted format. [default: beside the input]",
)
@keep_option
@labels_option("What is written carries them from then on. [default: those that the model has]")
@images_option
@pin_option
@model_options
def convert(checkpoint: Path, output: Path | None, **options: Any) -> None:
    """Turn CHECKPOINT, as training left it, into the group-convolution model."""
    overrides = parameters.take_overrides(options)
    share_the_processor()
    from cnet_deploy.file_conversion import convert_file

    tell(convert_file(checkpoint, output, overrides=overrides, **options).summary())


@main.command(
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
    from cnet_deploy import deployment
    from cnet_deploy.exporters import options_of
    from cnet_deploy.progress import bar

    parameters.require_own_options(target, options, options_of(target), lowering)
    with bar(f"export {model.name}") as told:
        if lowering == "auto":
            from cnet_deploy.benchmarks.lowerings import choose_for_file

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


@main.command(
    short_help="Compare an artifact's outputs with its model's.",
    examples=["cnet-deploy verify model.onnx model.safetensors --images examples/cifar10-test-500.bin"],
)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@images_option
@tolerance_option
@pin_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@model_options
def verify(artifact: Path, model: Path, as_json: bool, **options: Any) -> None:
    """Compare the outputs of ARTIFACT with those of the MODEL that it came from; exit code 1 if they differ."""
    share_the_processor()
    from cnet_deploy.verification import verify as compare

    comparisons = compare(artifact, model, **options)
    if as_json:
        click.echo(json.dumps([c.to_dict() for c in comparisons], indent=2))
    else:
        tell("\n".join(c.summary() for c in comparisons))
    if failed := [c for c in comparisons if not c.passed]:
        raise CheckFailed(
            f"{artifact}: outputs differ from those of {model} beyond the tolerance on {failed[0].inputs}; export it again from {model}"
        )
    if not as_json:
        tell(f"{artifact} computes what {model} does")


@main.command(
    short_help="What a file is, without running anything in it.", examples=["cnet-deploy inspect examples/reference-cifar10.pth.tar"]
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw which inputs each learned group reads into this SVG file.")
@pin_option
@model_options
def inspect(file: Path, as_json: bool, plot: Path | None, **options: Any) -> None:
    """Show what FILE is: architecture, form, pruning layer by layer, digest. Nothing in it is executed.

    A checkpoint whose pruning is unfinished is described too, with the reason why it can't be converted.
    """
    from cnet_deploy.inspection import inspect as look

    found = look(file, **options)
    if plot is not None:
        from cnet_deploy.connections import plot as draw

        draw(file, plot, **options)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.summary())


@main.command(
    short_help="What works on this machine, and what to install.",
    examples=["cnet-deploy doctor", "cnet-deploy doctor native"],
)
@click.argument("backends", nargs=-1, shell_complete=complete_backends)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(backends: tuple[str, ...], as_json: bool) -> None:
    """What works on this machine, by trying it; what does not, why, and what to install.

    With the names of BACKENDS only these are tried, and one that works nowhere is exit code 5: for where an image is built.
    """
    share_the_processor()
    from cnet_deploy.diagnosis import diagnose, known_names, missing

    if unknown := [name for name in backends if name not in known_names()]:
        raise click.UsageError(f"no backend is called {', '.join(unknown)}; expected some of {', '.join(known_names())}")
    found = diagnose(backends, told=lambda finding: None if as_json else click.echo(finding.words()))
    if as_json:
        click.echo(json.dumps([finding.to_dict() for finding in found], indent=2))
    if names := missing(found, backends):
        raise Unavailable(f"{', '.join(names)} does not work here; the lines above say why and what to install")


@main.command(
    short_help="What makes a shell complete these commands.",
    examples=['eval "$(cnet-deploy completion bash)"', "cnet-deploy completion fish > cnet-deploy.fish"],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options, files and the names of networks and backends.

    For good: put the first example's line into ~/.bashrc (with zsh into ~/.zshrc), or the file into ~/.config/fish/completions.
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "cnet-deploy", "_CNET_DEPLOY_COMPLETE").source())


for command in (run, evaluate, train, bench, gate):
    main.add_command(command)
