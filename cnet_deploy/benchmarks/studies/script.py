"""Benchmarks that are run as ``python -m``, outside the command line: their arguments are all paths, and their errors its errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from cnet_deploy.errors import CnetDeployError


def run(main: Callable[..., None], usage: str) -> None:
    """Call ``main`` with a path for each word of ``usage`` after the module's name; end the process as the command line would."""
    if len(sys.argv) != len(usage.split()):
        print(f"usage: python -m {usage}", file=sys.stderr)
        sys.exit(2)
    try:
        main(*map(Path, sys.argv[1:]))
    except CnetDeployError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
