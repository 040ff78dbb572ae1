"""The examples in every command's help: lines of the README and its pages, which test_readme.py runs, or run here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cnet_deploy.cli import COMMANDS, main
from tests.forks import Forks
from tests.release.pages import commands, shell


def examples(command: str) -> list[str]:
    """The lines under "Example" in a command's help."""
    text = CliRunner().invoke(main, [command, "--help"]).output
    found = re.search(r"^Examples?:\n((?:  .*\n?)+)", text, re.MULTILINE)
    return [line.strip() for line in found[1].splitlines()] if found else []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_some_that_work(command: str, forks: Forks, tmp_path: Path) -> None:
    lines = examples(command)
    assert lines and all(f"cnet-deploy {command} " in re.sub(r"\W*$", " ", line) + " " for line in lines)
    shown = commands()
    for line in lines:
        if not any(known.startswith(line) for known in shown):
            done = shell(line, tmp_path, forks.command)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
