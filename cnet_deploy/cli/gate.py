"""``cnet-deploy gate``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli.console import Command, note, quiet
from cnet_deploy.cli.options import calibration_option, force_option, timeout_option, weights_option
from cnet_deploy.cli.types import FilePath, Finite, OutputPath, Share, complete_backends, complete_models
from cnet_deploy.text import write_block


class Gate(Command):
    """The command, whose wrong usage is an annotation too where it runs as a step of a GitHub job."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _annotated():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _annotated():
            return super().invoke(ctx)


@contextlib.contextmanager
def _annotated() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        if os.environ.get("GITHUB_ACTIONS") == "true":
            from cnet_deploy.benchmarks.gate.verdict import annotation

            write_block(command=annotation("error", error.format_message()))
        raise


@click.command(
    cls=Gate,
    short_help="Fail if a model has become slower than another.",
    examples=["cnet-deploy gate model.onnx candidate.onnx --tolerance 5%", "cnet-deploy gate --baseline baseline.json model.onnx"],
)
@click.argument("models", nargs=-1, required=True, metavar="[BASE] HEAD", shell_complete=complete_models)
@click.option("--tolerance", type=Share(), default=0.05, help="How much more time head may take: 5% or 0.05. [default: 5%]")
@click.option("--backend", shell_complete=complete_backends, help="The backend for both. [default: by each file's content]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="The device for both. [default: cpu; with --baseline: as recorded]")
@click.option("--threads", type=click.IntRange(1), help="Threads of both. [default: all cores]")
@weights_option
@calibration_option
@timeout_option
@click.option("--max-rounds", type=click.IntRange(8), default=64, show_default=True, help="Most rounds before the verdict is inconclusive.")
@click.option("--seconds", type=Finite(0), help="Least measuring time of a turn, in seconds. [default: 0.5; with --baseline: as recorded]")
@click.option("--warmup", type=Finite(0), help="Least warm-up time of a process, in seconds. [default: 0.5; with --baseline: as recorded]")
@click.option("--base-python", help="The Python that runs base: an installation of another revision. [default: this one]")
@click.option("--head-python", help="The Python that runs head. [default: this one]")
@click.option("--baseline", type=FilePath(), help="Compare HEAD with a result of `bench --save-baseline` from this machine.")
@click.option("--new-artifact", is_flag=True, help="With --baseline: HEAD is a new artifact that replaces the stored one.")
@click.option(
    "--allow-changes", is_flag=True, help="Report changes of operators, FLOPs, parameters, size and precision, but don't fail on them."
)
@click.option(
    "--inconclusive",
    type=click.Choice(["fail", "pass"]),
    default="fail",
    show_default=True,
    help="How the command ends if the machine is too noisy to say: with exit code 3, or with 0.",
)
@click.option("--json", type=OutputPath(), help="Write the verdict with all rounds and raw samples to this file.")
@force_option
@click.option("--summary", type=OutputPath(), help="Append the verdict to this Markdown file: a CI job's summary page.")
def gate(
    models: tuple[str, ...], baseline: Path | None, new_artifact: bool, json: Path | None, summary: Path | None,
    seconds: float | None, warmup: float | None, **options: Any,
) -> None:  # fmt: skip
    """Is HEAD slower than BASE? Exit code 0: no, with confidence; 1: yes; 3: too noisy to say; 5: it could not be measured.

    Both are files or names of networks (see `bench`). A single MODEL is run by two installations: --base-python and --head-python.
    Each round runs a fresh process of each, in alternating order. Base is compared with itself first, and rounds are added until the
    verdict is certain. On GitHub the verdict is an annotation.
    """
    only_two = {"base_python": "--base-python", "head_python": "--head-python"}
    if baseline is not None:
        if len(models) != 1:
            raise click.UsageError(f"--baseline takes one model, HEAD; got {len(models)}")
        for name in only_two:
            if options.pop(name):
                raise click.UsageError(f"--{name.replace('_', '-')} can't be used with --baseline")
        if seconds is not None or warmup is not None:
            raise click.UsageError("--seconds and --warmup can't be used with --baseline, which measures as it was recorded")
        if options.pop("device"):
            raise click.UsageError("--device can't be used with --baseline, which measures on the recorded device")
        options["new_artifact"] = new_artifact
    else:
        if len(models) > 2 or (len(models) == 1 and not any(options[name] for name in only_two)):
            raise click.UsageError("expected BASE and HEAD, or one model with --base-python or --head-python, or --baseline FILE and HEAD")
        if new_artifact:
            raise click.UsageError("--new-artifact can only be used with --baseline")
        options["device"] = options["device"] or "cpu"
        from dataclasses import replace

        from cnet_deploy.benchmarks.gate.run import SETTINGS

        turns = SETTINGS if seconds is None else replace(SETTINGS, seconds=seconds)
        options["settings"] = turns if warmup is None else replace(turns, warmup=warmup)
    from cnet_deploy.benchmarks.gate.verdict import Places
    from cnet_deploy.benchmarks.gate.verdict import run as judge

    judge(models, baseline, Places(json, summary), quiet=quiet(), notify=note, **options)
