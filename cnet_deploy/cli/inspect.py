"""``cnet-deploy inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnet_deploy.cli.console import Command, show, show_json
from cnet_deploy.cli.options import force_option, model_options, pin_option
from cnet_deploy.cli.types import FilePath, OutputPath


@click.command(
    cls=Command,
    short_help="Describe a file without running anything in it.",
    examples=["cnet-deploy inspect examples/reference-cifar10.pth.tar"],
)
@click.argument("file", type=FilePath())
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--plot", type=OutputPath(), help="Draw which inputs each learned group reads into this SVG file.")
@force_option
@pin_option
@model_options
def inspect(file: Path, as_json: bool, plot: Path | None, **options: Any) -> None:
    """Describe FILE: architecture, form, pruning layer by layer, digest. Nothing in it is executed.

    A checkpoint whose pruning is unfinished is described too, with the reason why it can't be converted.
    """
    from cnet_deploy.workflows.inspect import inspect as look

    if plot is not None:
        from cnet_deploy.svg import require_matplotlib

        require_matplotlib()
    inspection = look(file, plot=plot, **options)
    if as_json:
        show_json(inspection.to_dict())
    else:
        show(*inspection.summary().split("\n"))
