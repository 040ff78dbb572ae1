"""The command line: parse, call one function, print. Heavy modules are imported by the commands that need them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from cnet_deploy import __version__, parameters
from cnet_deploy.errors import CheckFailed, CnetDeployError, Unavailable
from cnet_deploy.parameters import Batches, Finite, Numbers, Share, Words, images_option, keep_option, model_options, tolerance_option


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
    _share_the_processor()
    from cnet_deploy.deployment import convert_file

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
    _share_the_processor()
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


@main.command(epilog="Example: cnet-deploy bench --threads 2 --html report.html    or: cnet-deploy bench model.onnx")
@click.argument("models", nargs=-1)
@click.option("--backend", "backends", type=Words(), default=(), help="Measure on these only: one, or several as torch,onnxruntime.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What runs the models.")
@click.option("--threads", type=Numbers(), default=(), help="Threads: a number, or several as 1,2. [default: all cores]")
@click.option("--batch", "batches", type=Numbers(), default=(1,), help="Images an inference: a number, or several as 1,8,32. [default: 1]")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Turns of every cell.")
@click.option("--seconds", type=Finite(0), default=0.2, show_default=True, help="Least time that a turn measures.")
@click.option("--warmup", type=Finite(0), default=0.5, show_default=True, help="Least time that a process runs before anything counts.")
@click.option("--json", type=click.Path(path_type=Path), help="Keep raw samples and the environment in this file, while the run goes on.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run whose results are in the file of --json.")
@click.option(
    "--save-baseline",
    "baseline",
    type=click.Path(path_type=Path),
    help="Measure each turn in a process of its own, and keep it in this file for `gate --baseline`.",
)
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as one page with its pictures.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables as Markdown.")
@click.option("--csv", type=click.Path(path_type=Path), help="Write a line for each cell.")
@click.option("--svg", type=click.Path(path_type=Path), help="Write the picture: latency against top-1 error.")
def bench(
    models: tuple[str, ...], backends: tuple[str, ...], device: str, threads: tuple[int, ...], batches: tuple[int, ...],
    rounds: int, seconds: float, warmup: float, resume: bool, baseline: Path | None, **outputs: Path | None,
) -> None:  # fmt: skip
    """Measure the paper's inference-time table on this machine, or any MODELS.

    A model is a file (.onnx, .so, .safetensors, a checkpoint) or the name of a network, which runs with random weights on every backend:
    condensenet-74-g4, condensenet-74-g8, condensenet-50 to condensenet-182, vgg-16, resnet-18, mobilenet-1.0-224.
    Backends: native, onnxruntime, torch, and on a GPU tensorrt; by name also openvino. Parts after dots make another of it:
    torch.compile, torch.cudagraph.fp16, tensorrt.fp16.cudagraph, onnxruntime.tensorrt, native.bf16 …
    """
    if baseline is not None and rounds < 8:
        raise click.UsageError("--save-baseline needs 8 rounds or more, as the gate does; give --rounds 8")
    from cnet_deploy.benchmarks.measure import Settings
    from cnet_deploy.benchmarks.report import Outputs, run

    run(
        models, backends=backends, threads=threads, batches=batches, device=device, resume=resume,
        settings=Settings(rounds=rounds, seconds=seconds, warmup=warmup, fresh=baseline is not None),
        outputs=Outputs(baseline=baseline, **outputs),
    )  # fmt: skip


@main.command(
    epilog="Example: cnet-deploy gate released.onnx candidate.onnx --tolerance 5%    or: cnet-deploy gate --baseline b.json model.so"
)
@click.argument("models", nargs=-1, required=True, metavar="[BASE] HEAD")
@click.option("--tolerance", type=Share(), default=0.05, help="How much more time head may take: 5% or 0.05. [default: 5%]")
@click.option("--backend", help="What runs both. [default: the one that opens each]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="What both run on. [default: cpu; with --baseline: as recorded]")
@click.option("--threads", type=click.IntRange(1), help="Threads of both. [default: all cores]")
@click.option("--max-rounds", type=click.IntRange(8), default=64, show_default=True, help="Rounds after which it gives up for noise.")
@click.option("--seconds", type=Finite(0), help="Least time that a turn measures. [default: 0.5; with --baseline: as recorded]")
@click.option("--warmup", type=Finite(0), help="Least time that a process runs before that. [default: 0.5; with --baseline: as recorded]")
@click.option("--base-python", help="The Python that runs base: an installation of another revision. [default: this one]")
@click.option("--head-python", help="The Python that runs head. [default: this one]")
@click.option("--baseline", type=click.Path(path_type=Path), help="Compare HEAD with what `bench --save-baseline` stored on this machine.")
@click.option("--new-artifact", is_flag=True, help="With --baseline: HEAD is meant to take the place of the stored artifact.")
@click.option("--allow-changes", is_flag=True, help="Let operators, FLOPs, parameters, size and precision change; show them only.")
@click.option("--json", type=click.Path(path_type=Path), help="Write the verdict with all rounds and raw samples to this file.")
@click.option("--summary", type=click.Path(path_type=Path), help="Append the verdict to this Markdown file: a CI job's summary page.")
def gate(
    models: tuple[str, ...], baseline: Path | None, new_artifact: bool, json: Path | None, summary: Path | None,
    seconds: float | None, warmup: float | None, **options: Any,
) -> None:  # fmt: skip
    """Is HEAD slower than BASE? Exit code 0: surely not; 1: it is; 3: too noisy to say; 5: it could not be measured.

    Both are files, or names of networks as `bench` knows them. One MODEL alone is run by two installations: --base-python, --head-python.
    Every round is a fresh process of each, in turns; base is compared with itself first, and rounds are added until the verdict is sure.
    """
    only_two = {"base_python": "--base-python", "head_python": "--head-python"}
    if baseline is not None:
        if len(models) != 1:
            raise click.UsageError(f"--baseline takes one model, HEAD; got {len(models)}")
        for name in only_two:
            if options.pop(name):
                raise click.UsageError(f"--{name.replace('_', '-')} is no option of --baseline")
        if seconds is not None or warmup is not None:
            raise click.UsageError("--seconds and --warmup are no options of --baseline, which measures as it was recorded")
        if options.pop("device"):
            raise click.UsageError("--device is no option of --baseline, which measures where it was recorded")
        options["new_artifact"] = new_artifact
    else:
        if len(models) > 2 or (len(models) == 1 and not any(options[name] for name in only_two)):
            raise click.UsageError("expected BASE and HEAD, or one model with --base-python or --head-python, or --baseline FILE and HEAD")
        if new_artifact:
            raise click.UsageError("--new-artifact is an option of --baseline")
        options["device"] = options["device"] or "cpu"
        from dataclasses import replace

        from cnet_deploy.benchmarks.gate import SETTINGS

        turns = SETTINGS if seconds is None else replace(SETTINGS, seconds=seconds)
        options["settings"] = turns if warmup is None else replace(turns, warmup=warmup)
    from cnet_deploy.benchmarks.verdicts import Places, run

    run(models, baseline, Places(json, summary), say=lambda text: click.echo(text, err=True), **options)


@main.command(epilog="Example: cnet-deploy doctor    or, where an image is built: cnet-deploy doctor tensorrt")
@click.argument("backends", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(backends: tuple[str, ...], as_json: bool) -> None:
    """What works on this machine, by trying it; what does not, why, and what to install.

    With the names of BACKENDS only these are tried, and one that works nowhere is exit code 5.
    """
    _share_the_processor()
    from cnet_deploy.diagnosis import diagnose, known_names, missing

    if unknown := [name for name in backends if name not in known_names()]:
        raise click.UsageError(f"no backend is called {', '.join(unknown)}; expected some of {', '.join(known_names())}")
    found = diagnose(backends, told=lambda finding: None if as_json else click.echo(finding.words()))
    if as_json:
        click.echo(json.dumps([finding.to_dict() for finding in found], indent=2))
    if names := missing(found, backends):
        raise Unavailable(f"{', '.join(names)} does not work here; the lines above say why and what to install")


def _share_the_processor() -> None:
    """Let OpenMP's idle threads sleep: on a busy machine their spinning makes a check take ten times as long.

    Must come before torch is imported. Not for measuring, where spinning is what a deployment would have.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)
