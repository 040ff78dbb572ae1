"""The commands that run for long: they evaluate, train, and measure. Parse, call one function, print, as in cli.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from cnet_deploy import parameters
from cnet_deploy.console import Command, note, tell
from cnet_deploy.errors import InputRefused
from cnet_deploy.machine import share_the_processor
from cnet_deploy.parameter_types import Finite, Numbers, Share, Words, complete_backends, complete_models
from cnet_deploy.parameters import labels_option, model_options, pin_option, steps_options


@click.command(
    cls=Command,
    short_help="Classify images with any model or artifact.",
    examples=["cnet-deploy run model.onnx examples/images/cat.png", "cnet-deploy run model.so examples/images --top 1"],
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes to print for each image.")
@labels_option("[default: those that FILE carries]")
@click.option("--backend", shell_complete=complete_backends, help="What runs it. [default: the one that opens FILE]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where. [default: cpu; engines: cuda]")
@click.option("--threads", type=click.IntRange(1), help="Threads of inference. [default: the backend's own]")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Images an inference.")
@steps_options
@pin_option
@click.option("--json", "as_json", is_flag=True, help="Print the answers as JSON.")
@model_options
def run(file: Path, images: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Classify IMAGEs with FILE (a checkpoint, a model or an artifact): the likeliest classes of each, by name.

    An IMAGE is a PNG, JPEG, BMP, WebP or PPM file, a folder of them, or a CIFAR binary file. It is prepared as FILE's metadata says.
    """
    share_the_processor()
    from cnet_deploy.classification import classify
    from cnet_deploy.evaluation import Steps

    steps = Steps(**parameters.take(options, "statistics", "mean", "std", "resize"))
    answers, problems = [], []
    for answer in classify(file, images, steps=steps, **options):
        answers.append(answer)
        if answer.problem:
            problems.append(answer.problem)
        elif not as_json:
            click.echo("\n".join(answer.lines()))
    if as_json:
        click.echo(json.dumps([answer.to_dict() for answer in answers], indent=2))
    if problems:
        raise InputRefused(f"{len(problems)} of {len(answers)} images were not classified: {'; '.join(problems[:3])}")


@click.command(
    cls=Command,
    short_help="Top-1 and top-5 error of files, side by side.",
    examples=[
        "cnet-deploy evaluate examples/reference-cifar10.pth.tar model.safetensors model.onnx model.so --data examples/cifar10-test-500.bin"
    ],
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A dataset's folder (see `train`), or a CIFAR binary file.")
@click.option(
    "--split", type=click.Choice(["val", "train"]), default="val", show_default=True, help="The test images, or the training images."
)
@click.option("--backend", shell_complete=complete_backends, help="What runs all files. [default: the one that opens each]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where. [default: cpu; engines: cuda]")
@click.option("--threads", type=click.IntRange(1), help="Threads of inference. [default: the backend's own]")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images an inference.")
@click.option("-j", "--workers", type=click.IntRange(1), help="Threads that read images. [default: one a core, at most 8]")
@steps_options
@click.option("--skip-corrupt", type=click.IntRange(0), default=0, show_default=True, help="Images that may be unreadable; they are named.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@model_options
def evaluate(files: tuple[Path, ...], data: Path, as_json: bool, **options: Any) -> None:
    """Top-1 and top-5 error of FILEs (checkpoints, models, artifacts) on labelled images, side by side.

    Behind each figure stands its 95 % interval. Images are prepared as each file's metadata says.
    """
    share_the_processor()
    from cnet_deploy.evaluation import Steps
    from cnet_deploy.evaluation import evaluate as compare
    from cnet_deploy.progress import bar

    steps = Steps(**parameters.take(options, "statistics", "mean", "std", "resize"))
    with bar("evaluate") as told:
        found = compare(files, data, steps=steps, told=told, **options)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(found.lines()))


@click.command(
    cls=Command,
    short_help="Train a network by the original's recipe.",
    examples=[
        "cnet-deploy train cifar-10-batches-bin --stages 4-4-4 --growth 8-16-32 -b 64 --epochs 40 "
        "--group-lasso-lambda 1e-5 --precision bf16"
    ],
)
@click.argument("data", type=click.Path(path_type=Path))
@parameters.training_options
def train(data: Path, gpu: str | None, **options: Any) -> None:
    """Train a network on the images in DATA by the reference's recipe; its checkpoints can be read by the reference, and the other way.

    DATA is a folder of CIFAR-10 or 100 (binary or Python version), Fashion-MNIST (idx), or train/ and val/ with a folder of images for
    each class. Several processes train together under torchrun: torchrun --nproc-per-node 4 -m cnet_deploy train DATA ...
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch is imported
    from dataclasses import fields

    from cnet_deploy.progress import bar
    from cnet_deploy.training import Recipe
    from cnet_deploy.training import train as begin

    recipe = Recipe(**{field.name: options.pop(field.name) for field in fields(Recipe)})
    savedir = options.pop("savedir")
    with bar("train") as told:
        done = begin(data, savedir, recipe, say=note, told=told, **options)
    for line in done.lines() if done else ():
        tell(line)


@click.command(
    cls=Command,
    short_help="Measure the paper's inference-time table, or any models.",
    examples=["cnet-deploy bench --json results.json --html report.html", "cnet-deploy bench model.onnx model.so model.safetensors"],
)
@click.argument("models", nargs=-1, shell_complete=complete_models)
@click.option(
    "--backend",
    "backends",
    type=Words(),
    shell_complete=complete_backends,
    default=(),
    help="Measure on these only: one, or several as torch,onnxruntime.",
)
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
    from cnet_deploy.benchmarks.report import Outputs
    from cnet_deploy.benchmarks.report import run as measure

    measure(
        models, backends=backends, threads=threads, batches=batches, device=device, resume=resume,
        settings=Settings(rounds=rounds, seconds=seconds, warmup=warmup, fresh=baseline is not None),
        outputs=Outputs(baseline=baseline, **outputs),
    )  # fmt: skip


@click.command(
    cls=Command,
    short_help="Fail if a model has become slower than another.",
    examples=["cnet-deploy gate model.onnx candidate.onnx --tolerance 5%", "cnet-deploy gate --baseline baseline.json model.onnx"],
)
@click.argument("models", nargs=-1, required=True, metavar="[BASE] HEAD", shell_complete=complete_models)
@click.option("--tolerance", type=Share(), default=0.05, help="How much more time head may take: 5% or 0.05. [default: 5%]")
@click.option("--backend", shell_complete=complete_backends, help="What runs both. [default: the one that opens each]")
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
    from cnet_deploy.benchmarks.verdicts import Places
    from cnet_deploy.benchmarks.verdicts import run as judge

    judge(models, baseline, Places(json, summary), say=note, **options)
