"""``cnet-deploy completion``."""

from __future__ import annotations

import click

from cnet_deploy.cli.console import Command
from cnet_deploy.text import write_block


@click.command(
    cls=Command,
    short_help="Print a completion script for your shell.",
    examples=['eval "$(cnet-deploy completion bash)"', "cnet-deploy completion fish > cnet-deploy.fish"],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete commands, options, files and the names of networks and backends.

    To keep it: put the first example's line into ~/.bashrc (zsh: ~/.zshrc), or the file into ~/.config/fish/completions.
    """
    from click.shell_completion import get_completion_class

    from cnet_deploy.cli import main

    completion_class = get_completion_class(shell)
    assert completion_class is not None
    write_block(completion_class(main, {}, "cnet-deploy", "_CNET_DEPLOY_COMPLETE").source().rstrip("\n"))
