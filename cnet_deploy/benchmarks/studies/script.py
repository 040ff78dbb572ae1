"""Run a study as ``python -m``. Its arguments are paths; errors and exit codes are those of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from cnet_deploy.errors import CnetDeployError
from cnet_deploy.text import write_lines


def run(main: Callable[..., None], usage: str) -> None:
    """Call ``main`` with one path for each word of ``usage`` after the module's name; exit as the command line would.

    A word in brackets, as [FOLDER], may be left out.
    """
    words = usage.split()
    least = sum(not word.startswith("[") for word in words)
    if not least <= len(sys.argv) <= len(words):
        write_lines(f"usage: python -m {usage}", error=True)
        sys.exit(2)
    try:
        main(*map(Path, sys.argv[1:]))
    except CnetDeployError as error:
        write_lines(f"Error: {error}", error=True)
        sys.exit(error.exit_code)
