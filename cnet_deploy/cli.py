"""The command line: parse, call one function, print. Heavy modules are imported by the commands that need them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cnet_deploy import __version__, parameters
from cnet_deploy.cli_runs import bench, evaluate, gate, train
from cnet_deploy.errors import CheckFailed, CnetDeployError, Unavailable
from cnet_deploy.machine import share_the_processor
from cnet_deploy.parameters import Batches, images_option, keep_option, model_options, tolerance_option


class Commands(click.Group):
    """A click group in which our own errors print one line and end with the code their class carries."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except CnetDeployError as error:
            _fail(str(error), error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted; nothing was written", 130)
        except BrokenPipeError:
            sys.exit(0)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cnet-deploy")
def main() -> None:
    """From a CondenseNet training checkpoint to a verified model in production."""


@main.command(epilog="Example: cnet-deploy convert examples/reference-cifar10.pth.tar -o model.safetensors")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A .safetensors file, or .pth.tar in the reference's converted format. [default: beside the input]",
)
@keep_option
@images_option
@model_options
def convert(checkpoint: Path, output: Path | None, classifier_keep: float | None, images: Path | None, **overrides: Any) -> None:
    """Turn CHECKPOINT, as training left it, into the group-convolution model."""
    share_the_processor()
    from cnet_deploy.file_conversion import convert_file

    done = convert_file(checkpoint, output, classifier_keep=classifier_keep, images=images, overrides=overrides)
    click.echo(done.summary())


@main.command(epilog="Example: cnet-deploy export model.safetensors --onnx    or: cnet-deploy export model.safetensors --native")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--onnx", "target", flag_value="onnx", help="Write an ONNX file.")
@click.option("--native", "target", flag_value="native", help="Compile a shared library for the CPU: no runtime, several times faster.")
@click.option("--tensorrt", "target", flag_value="tensorrt", help="Build a TensorRT engine for NVIDIA GPUs.")
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
@images_option
@tolerance_option
@model_options
def export(model: Path, target: str | None, triton: Path | None, output: Path | None, classifier_keep: float | None, lowering: str | None,
           images: Path | None, tolerance: float | None, **options: Any) -> None:  # fmt: skip
    """Export MODEL (a checkpoint or a converted model) and verify what was written before it takes its name.

    The name of a network, as `bench` knows them, is exported with random weights: for measuring alone.
    """
    overrides = {name: options.pop(name) for name in ("groups", "condense_factor", "input_size", "stem_stride")}
    target = target or ("onnx" if triton is not None else None)
    if target is None:
        raise click.UsageError("Missing the target; expected --onnx, --native or --tensorrt")
    if triton is not None and output is not None:
        raise click.UsageError("--triton and --output name two places; expected one of them")
    options = {name: value for name, value in options.items() if value is not None}
    share_the_processor()
    from cnet_deploy import deployment
    from cnet_deploy.exporters import options_of
    from cnet_deploy.progress import bar

    flags = {"cpu": "target", "flavour": "tensorrt-flavour", "timing_cache": "timing-cache"}
    if foreign := [name for name in options if name not in options_of(target)]:
        raise click.UsageError(f"--{flags.get(foreign[0], foreign[0])} is no option of --{target}")
    if lowering not in (None, "gather") and target == "native":
        raise click.UsageError("--lowering is no option of --native, which has kernels for the network as it is")
    if target == "onnx" and not isinstance(options.get("batch", 1), int):
        raise click.UsageError("--batch of --onnx is one number; leave it out for a free batch")
    common: dict[str, Any] = {
        "classifier_keep": classifier_keep, "images": images, "tolerance": tolerance, "overrides": overrides,
        "say": lambda text: click.echo(text, err=True),
    }  # fmt: skip
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
        click.echo(line)


@main.command(epilog="Example: cnet-deploy verify model.onnx model.safetensors --images examples/cifar10-test-500.bin")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@images_option
@tolerance_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@model_options
def verify(artifact: Path, model: Path, images: Path | None, tolerance: float | None, as_json: bool, **overrides: Any) -> None:
    """Compare the outputs of ARTIFACT with those of the MODEL that it came from; exit code 1 if they differ."""
    share_the_processor()
    from cnet_deploy.verification import verify as run

    comparisons = run(artifact, model, images=images, tolerance=tolerance, **overrides)
    click.echo(json.dumps([c.to_dict() for c in comparisons], indent=2) if as_json else "\n".join(c.summary() for c in comparisons))
    if failed := [c for c in comparisons if not c.passed]:
        raise CheckFailed(f"{artifact}: outputs differ from those of {model} beyond the tolerance on {failed[0].inputs}")
    if not as_json:
        click.echo(f"{artifact} computes what {model} does")


@main.command(epilog="Example: cnet-deploy inspect examples/reference-cifar10.pth.tar")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw which inputs each learned group reads into this SVG file.")
@model_options
def inspect(file: Path, as_json: bool, plot: Path | None, **overrides: Any) -> None:
    """Show what FILE is: architecture, form, pruning layer by layer, digest. Nothing in it is executed.

    A checkpoint whose pruning is unfinished is described too, with the reason why it can't be converted.
    """
    from cnet_deploy.inspection import inspect as run

    found = run(file, **overrides)
    if plot is not None:
        from cnet_deploy.connections import plot as draw

        draw(file, plot, **overrides)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.summary())


@main.command(epilog="Example: cnet-deploy doctor    or, where an image is built: cnet-deploy doctor tensorrt")
@click.argument("backends", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(backends: tuple[str, ...], as_json: bool) -> None:
    """What works on this machine, by trying it; what does not, why, and what to install.

    With the names of BACKENDS only these are tried, and one that works nowhere is exit code 5.
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


for command in (evaluate, train, bench, gate):
    main.add_command(command)


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)
