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


def test_a_path_that_may_be_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[tuple[Path, Path | None]] = []

    def main(output: Path, folder: Path | None = None) -> None:
        given.append((output, folder))

    for words in (["r.json"], ["r.json", "f"]):
        monkeypatch.setattr("sys.argv", ["b", *words])
        run(main, "a.b RESULTS.json [FOLDER]")
    assert given == [(Path("r.json"), None), (Path("r.json"), Path("f"))]
    for words in ([], ["r.json", "f", "g"]):
        monkeypatch.setattr("sys.argv", ["b", *words])
        with pytest.raises(SystemExit) as caught:
            run(main, "a.b RESULTS.json [FOLDER]")
        assert caught.value.code == 2 and "usage: python -m a.b RESULTS.json [FOLDER]" in capsys.readouterr().err
