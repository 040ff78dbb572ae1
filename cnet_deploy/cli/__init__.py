"""The command line. Each command is a module of this package: it parses its options, calls one workflow, and prints the result.

A command's module is imported only when the command is used, and imports heavy modules inside the command's function.
"""

from __future__ import annotations

import click

from cnet_deploy.cli.console import Commands
from cnet_deploy.version import __version__

# In the order in which `--help` lists them. Each is the name of a module and of the command in it.
COMMANDS = (
    "inspect", "convert", "export", "verify", "run", "evaluate", "compare", "bench", "gate", "train", "doctor", "include", "completion",
)  # fmt: skip


@click.group(
    cls=Commands, package=__name__, names=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(__version__, prog_name="cnet-deploy", message="%(prog)s %(version)s")
def main() -> None:
    """From a CondenseNet training checkpoint to a verified model in production."""
