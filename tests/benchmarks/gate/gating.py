"""The gate on the command line, and the network that its tests are about."""

from __future__ import annotations

import sys
from dataclasses import replace

from click.testing import CliRunner, Result

from cnet_deploy.cli import main
from tests.builders import TINY

QUICK = ("--seconds", "0.02", "--warmup", "0.02", "--threads", "1", "--max-rounds", "16")


NETWORK = replace(TINY, stages=(6, 6, 6))


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(main, ["gate", *map(str, arguments)])
    print(done.stdout, done.stderr)  # each verdict in the log
    return done


def apart(*arguments: object) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "cnet_deploy", "gate", *map(str, arguments)]
