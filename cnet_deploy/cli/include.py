"""``cnet-deploy include``."""

from __future__ import annotations

import click

from cnet_deploy.cli.console import Command, show


@click.command(cls=Command, short_help="Print the folder of cnet.h, for programs in C.", examples=["cnet-deploy include"])
def include() -> None:
    """Print the folder that has cnet.h, for a compiler's -I: cc -I "$(cnet-deploy include)" program.c model.so"""
    from cnet_deploy.exporters.native import INCLUDE

    show(INCLUDE)
