"""``cnet-deploy completion``."""

from __future__ import annotations

import click

from cnet_deploy.cli.console import Command


@click.command(
    cls=Command,
    short_help="What makes a shell complete these commands.",
    examples=['eval "$(cnet-deploy completion bash)"', "cnet-deploy completion fish > cnet-deploy.fish"],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options, files and the names of networks and backends.

    For good: put the first example's line into ~/.bashrc (with zsh into ~/.zshrc), or the file into ~/.config/fish/completions.
    """
    from click.shell_completion import get_completion_class

    from cnet_deploy.cli import main

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "cnet-deploy", "_CNET_DEPLOY_COMPLETE").source())
