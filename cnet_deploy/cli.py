"""The command line: parse, call one function, print. Heavy modules are imported by the commands that need them."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cnet_deploy import __version__
from cnet_deploy.errors import CheckFailed, CnetDeployError

F = TypeVar("F", bound=Callable[..., Any])
if TYPE_CHECKING:
    _SizeType = click.ParamType[tuple[int, int]]
else:
    _SizeType = click.ParamType  # generic only in newer releases of click


class Size(_SizeType):
    """``224`` or ``HEIGHTxWIDTH``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        sides = value.lower().split("x")
        if len(sides) not in (1, 2) or not all(side.isascii() and side.isdigit() and 0 < int(side) < 1 << 16 for side in sides):
            self.fail(f"{value!r} is no size; expected pixels as 224 or HEIGHTxWIDTH as 224x192", param, ctx)
        return int(sides[0]), int(sides[-1])


class Finite(click.FloatRange):
    """A FloatRange without NaN and infinity, which no bound keeps out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not finite; expected a number", param, ctx)
        return number


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


def model_options(command: F) -> F:
    """What a checkpoint can't tell of itself."""
    for option in (
        click.option(
            "--stem-stride",
            type=click.IntRange(1, 16),
            help="Stride of the first convolution; wins over what is inferred.",
        ),
        click.option("--input-size", type=Size(), help="Input in pixels, as 224 or HEIGHTxWIDTH; wins over what is inferred."),
        click.option("--condense-factor", type=click.IntRange(1), help="C, where the checkpoint's counters don't tell it."),
        click.option("--groups", type=click.IntRange(1), help="G of the 1x1 convolutions, where the masks don't tell it."),
    ):
        command = option(command)
    return command


images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Real images to check on: a CIFAR binary file, an image, or a folder of images.",
)
tolerance_option = click.option(
    "--tolerance",
    type=Finite(0),
    help="Largest error allowed, relative to the largest logit. [default: 1e-4]",
)
keep_option = click.option(
    "--classifier-keep",
    type=Finite(0, 1, min_open=True),
    help="Share of the classifier's inputs to keep. [default: 0.5, as the reference]",
)


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
    _share_the_processor()
    from cnet_deploy.deployment import convert_file

    done = convert_file(checkpoint, output, classifier_keep=classifier_keep, images=images, overrides=overrides)
    click.echo(done.summary())


@main.command(epilog="Example: cnet-deploy export model.safetensors --onnx    or: cnet-deploy export model.safetensors --native")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--onnx", "target", flag_value="onnx", help="Write an ONNX file.")
@click.option("--native", "target", flag_value="native", help="Compile a shared library for the CPU: no runtime, several times faster.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The artifact. [default: beside the model]")
@click.option("--opset", type=click.IntRange(17, 22), help="ONNX: its opset. [default: 17]")
@click.option("--batch", type=click.IntRange(1), help="ONNX: fix the batch size. [default: dynamic]")
@click.option(
    "--target",
    "cpu",
    type=click.Choice(["host", "x86-64-v3", "x86-64-v4", "aarch64"], case_sensitive=False),
    help="Native: the processor to compile for. [default: all of this machine's family, chosen at load]",
)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Native: what convolutions multiply in. [default: fp32]")
@keep_option
@images_option
@tolerance_option
@model_options
def export(model: Path, target: str | None, output: Path | None, classifier_keep: float | None, opset: int | None, batch: int | None,
           cpu: str | None, precision: str | None, images: Path | None, tolerance: float | None, **overrides: Any) -> None:  # fmt: skip
    """Export MODEL (a checkpoint or a converted model) and verify what was written before it takes its name.

    The name of a network, as `bench` knows them, is exported with random weights: for measuring alone.
    """
    if target is None:
        raise click.UsageError("Missing the target; expected --onnx or --native")
    options = {"opset": opset, "batch": batch, "cpu": cpu, "precision": precision}
    options = {name: value for name, value in options.items() if value is not None}
    _share_the_processor()
    from cnet_deploy.deployment import export as run
    from cnet_deploy.exporters import options_of

    if foreign := [name for name in options if name not in options_of(target)]:
        raise click.UsageError(f"--{'target' if foreign[0] == 'cpu' else foreign[0]} is no option of --{target}")
    done = run(
        model, target, output, classifier_keep=classifier_keep, images=images, tolerance=tolerance,
        overrides=overrides, say=lambda text: click.echo(text, err=True), **options,
    )  # fmt: skip
    for comparison in done.comparisons:
        click.echo(comparison.summary())
    click.echo(f"wrote {done.path} ({done.manifest.bytes:,} bytes) and {done.path.name}.json")


@main.command(epilog="Example: cnet-deploy verify model.onnx model.safetensors --images examples/cifar10-test-500.bin")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@images_option
@tolerance_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@model_options
def verify(artifact: Path, model: Path, images: Path | None, tolerance: float | None, as_json: bool, **overrides: Any) -> None:
    """Compare the outputs of ARTIFACT with those of the MODEL that it came from; exit code 1 if they differ."""
    _share_the_processor()
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
@model_options
def inspect(file: Path, as_json: bool, **overrides: Any) -> None:
    """Show what FILE is: architecture, form, pruning layer by layer, digest. Nothing in it is executed.

    A checkpoint whose pruning is unfinished is described too, with the reason why it can't be converted.
    """
    from cnet_deploy.inspection import inspect as run

    found = run(file, **overrides)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.summary())


@main.command(epilog="Example: cnet-deploy bench --threads 2    or: cnet-deploy bench model.onnx")
@click.argument("models", nargs=-1)
@click.option("--backend", "backends", multiple=True, help="Measure on this backend only; may be repeated.")
@click.option("--threads", type=click.IntRange(1), help="Threads of every cell. [default: all cores]")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Turns of every cell.")
@click.option("--seconds", type=Finite(0), default=0.2, show_default=True, help="Least time that a turn measures.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Keep raw samples and the environment in this file (.json).")
def bench(
    models: tuple[str, ...],
    backends: tuple[str, ...],
    threads: int | None,
    rounds: int,
    seconds: float,
    output: Path | None,
) -> None:
    """Measure the paper's inference-time table on this machine, or any MODELS.

    A model is a file (.onnx, .safetensors, a checkpoint) or the name of a network, which runs with random weights on every backend:
    condensenet-74-g4, condensenet-74-g8, condensenet-50 to condensenet-182, vgg-16, resnet-18, mobilenet-1.0-224.
    """
    from cnet_deploy.benchmarks.report import run

    run(models, backends=backends, threads=threads, rounds=rounds, seconds=seconds, output=output)


def _share_the_processor() -> None:
    """Let OpenMP's idle threads sleep: on a busy machine their spinning makes a check take ten times as long.

    Must come before torch is imported. Not for measuring, where spinning is what a deployment would have.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)
