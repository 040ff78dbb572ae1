"""``cnet-deploy doctor``."""

from __future__ import annotations

import click

from cnet_deploy.cli.console import Command, show, show_json
from cnet_deploy.cli.types import complete_backends
from cnet_deploy.errors import Unavailable
from cnet_deploy.hardware.cpu import share_the_processor


@click.command(
    cls=Command,
    short_help="What works on this machine, and what to install.",
    examples=["cnet-deploy doctor", "cnet-deploy doctor native"],
)
@click.argument("backends", nargs=-1, shell_complete=complete_backends)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(backends: tuple[str, ...], as_json: bool) -> None:
    """Try what works on this machine. For what does not, print why and what to install.

    With names of BACKENDS only these are tried, and the exit code is 5 if one of them works on no device: for use in image builds.
    """
    share_the_processor()
    from cnet_deploy.cli.progress import bar
    from cnet_deploy.workflows.doctor import diagnose, known_names, missing

    if unknown := [name for name in backends if name not in known_names()]:
        raise click.UsageError(f"no backend is called {', '.join(unknown)}; expected some of {', '.join(known_names())}")
    with bar("trying") as progress:
        findings = diagnose(backends, report=lambda finding, share: progress(finding.name, share))
    if as_json:
        show_json([finding.to_dict() for finding in findings])
    else:
        for finding in sorted(findings, key=lambda finding: (not finding.works, not finding.builds)):
            show(*finding.lines())
    if names := missing(findings, backends):
        raise Unavailable(f"{', '.join(names)} does not work here; the lines above say why and what to install")
