"""Benchmarks as modules: usage and exit codes are the command line's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.errors import Unavailable


def test_paths_and_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[Path] = []

    def main(output: Path, original: Path) -> None:
        given.extend([output, original])
        if original.name == "none":
            raise Unavailable("no original here")

    for words, code, says in ((["r.json"], 2, "usage: python -m a.b RESULTS.json ORIGINAL"), (["r.json", "none"], 5, "Error: no original")):
        monkeypatch.setattr("sys.argv", ["b", *words])
        with pytest.raises(SystemExit) as caught:
            run(main, "a.b RESULTS.json ORIGINAL")
        assert caught.value.code == code and says in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["b", "r.json", "folder"])
    run(main, "a.b RESULTS.json ORIGINAL")
    assert given == [Path("r.json"), Path("none"), Path("r.json"), Path("folder")]
