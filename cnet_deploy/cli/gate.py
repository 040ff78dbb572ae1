"""``cnet-deploy gate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli.console import Command, note, quiet
from cnet_deploy.cli.types import Finite, Share, complete_backends, complete_models


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

        from cnet_deploy.benchmarks.gate.run import SETTINGS

        turns = SETTINGS if seconds is None else replace(SETTINGS, seconds=seconds)
        options["settings"] = turns if warmup is None else replace(turns, warmup=warmup)
    from cnet_deploy.benchmarks.gate.verdict import Places
    from cnet_deploy.benchmarks.gate.verdict import run as judge

    judge(models, baseline, Places(json, summary), quiet=quiet(), say=note, **options)
