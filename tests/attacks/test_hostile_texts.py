"""Names, labels, errors and fields that steer a terminal, a log of GitHub, a page or a spreadsheet: every command, every report.

What single texts become is in tests/test_text.py; here they go in where a stranger puts them, and all that comes out is looked at.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import hypothesis.strategies as some
import msgspec
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given

import cnet_deploy as cd
from cnet_deploy.benchmarks.gate import verdict
from cnet_deploy.benchmarks.gate.run import Outcome
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.report.page import page, picture
from cnet_deploy.benchmarks.report.terminal import render, show
from cnet_deploy.benchmarks.report.text import comma_separated, markdown
from cnet_deploy.benchmarks.sweep.figures import Change
from cnet_deploy.benchmarks.sweep.results import Report, Row
from cnet_deploy.checkpoints.save import save
from cnet_deploy.cli import main
from cnet_deploy.errors import Unavailable
from tests.benchmarks.helpers import on_cuda, report, result
from tests.builders import TINY, save_checkpoint, state_dict, training_model
from tests.cases import examples, few, long
from tests.test_text import HOSTILE, TEXTS, Stream, commands, invisible

ENCODINGS = ["ascii", "latin-1", "utf-8"]
NAMES = [
    "::stop-commands::x\n::error::b ##[error]c\x1b]0;title\x07\x1b[31m",
    "=cmd|' C calc'!A0 <img src=x onerror=y> `a` v[!x] :x: [bold red] $(touch x)",
    "m\udcff\udc80\u202egnp\u200f %0A::error::d 日本語 Öl",
]
PAIRS = [*zip(NAMES, ENCODINGS, strict=True), *((name, encoding) for name in NAMES for encoding in ENCODINGS)]


def seen(done: Result) -> list[str]:
    """The lines of what a command printed, which must be harmless."""
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert not commands(lines), commands(lines)
    assert not [line for line in lines if invisible(line)], lines
    assert "Traceback" not in done.stderr
    return lines


def run(encoding: str, *arguments: object) -> Result:
    """A command whose standard streams have an encoding, and fail where a letter has no place in it."""
    return CliRunner(charset=encoding).invoke(main, [os.fspath(word) if isinstance(word, Path) else str(word) for word in arguments])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its model, an ONNX artifact, and a few images."""
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder / "c.pth.tar", state_dict(training_model(TINY)))
    model = cd.convert(cd.load(folder / "c.pth.tar"))
    save(model, folder / "m.safetensors")
    cd.export(model, "onnx", folder / "m.onnx")
    (folder / "i.bin").write_bytes(bytes(range(256)) * 48 + bytes(4))
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(function: Callable[..., None]) -> Callable[..., None]:
    """Each name once in every run, with one of the encodings."""
    listed = few(dict.fromkeys(PAIRS), len(NAMES))
    return pytest.mark.parametrize(("name", "encoding"), listed, ids=[str(number) for number in range(len(listed))])(function)


class TestNamesOfFiles:
    @names
    def test_every_command(self, name: str, encoding: str, tiny: Path, place: Path) -> None:
        """Exit codes are those of plain names, and the files lie under the very names that were asked for."""
        checkpoint, model, artifact, images = (Path(f"{name}{end}") for end in (".pth.tar", ".safetensors", ".onnx", ".bin"))
        shutil.copy(tiny / "c.pth.tar", checkpoint)
        shutil.copy(tiny / "i.bin", images)
        for line in (
            ["convert", checkpoint, "-o", model, "--statistics", "cifar10"],
            ["export", model, "--onnx", "-o", artifact, "--images", images],
            ["inspect", checkpoint],
            ["inspect", model],
            ["inspect", artifact],
            ["verify", artifact, model, "--images", images],
            ["run", artifact, images, "--top", "1"],
            ["evaluate", artifact, model, "--data", images],
        ):
            done = run(encoding, *line)
            assert done.exit_code == 0, (line, done.output)
            assert seen(done)
        written = (checkpoint, model, artifact, Path(f"{artifact}.json"), images)
        assert {os.fsencode(path.name) for path in place.iterdir()} == set(map(os.fsencode, written))
        for line in (["inspect", artifact], ["run", artifact, images], ["evaluate", artifact, "--data", images]):
            done = run(encoding, *line, "--json")
            assert done.exit_code == 0 and seen(done)
            assert json.loads(done.stdout) == msgspec.json.decode(done.stdout)

    @pytest.mark.parametrize("encoding", few(ENCODINGS))
    def test_measuring(self, encoding: str, tiny: Path, place: Path, warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """The folder and the file make a closing tag of rich's."""
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        Path("v[").mkdir()
        model = Path("v[/x]\n::error::b :x: \udcff.onnx")
        shutil.copy(tiny / "m.onnx", model)
        outputs = [f"--{kind}={model.stem}.{suffix}" for kind, suffix in (("csv", "csv"), ("html", "html"), ("markdown", "md"))]
        line = ("bench", model, "--rounds", "2", "--seconds", "0", "--warmup", "0", "--threads", "1", *outputs)
        for more in (("--json", "r\udcff.json"), ("--json", "r\udcff.json", "--resume")):
            done = run(encoding, *line, *more)
            assert done.exit_code == 0 and any("v[/x]\\n::error" in text for text in seen(done)), done.output
        assert msgspec.json.decode(Path("r\udcff.json").read_bytes())["rows"][0]["label"] == "v[/x]\n::error::b :x: \\xff.onnx"
        line = ("gate", model, "no\n::error::model.onnx", "--summary", "s\udcff.md", "--json", "g\udcff.json")
        done = run(encoding, *line)
        assert done.exit_code == 5 and "Traceback" not in done.stderr
        assert [text[:30] for text in commands(done.output.splitlines())] == ["::error title=Latency gate::no"]

    @pytest.mark.parametrize("name", few(NAMES), ids=range(len(NAMES)))
    def test_files_that_are_refused(self, name: str, place: Path) -> None:
        damaged = Path(f"{name}.onnx")
        damaged.write_bytes(b"\0")
        for encoding in ENCODINGS:
            for line in (
                ["inspect", damaged],
                ["convert", damaged],
                ["export", damaged, "--onnx"],
                ["verify", damaged, damaged],
                ["run", damaged, damaged],
                ["evaluate", damaged, "--data", damaged],
                ["train", damaged, "--stages", "2", "--growth", "4"],
                ["inspect", f"no {name}"],
            ):
                done = run(encoding, *line)
                assert done.exit_code == 4 and len(seen(done)) == 1, (line, done.output)

    @pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
    def test_what_is_typed(self, name: str, tiny: Path, place: Path) -> None:
        artifact = tiny / "m.onnx"
        for code, line in (
            (2, [name]),
            (2, ["-v", f"--{name}=x"]),
            (2, ["export", f"--{name}"]),
            (2, ["export", artifact, "--onnx", "--precision", name]),
            (2, ["export", tiny / "m.safetensors", "--native", "--target", name]),
            (2, ["doctor", name]),
            (2, ["inspect", artifact, "--sha256", name]),
            (2, ["gate", name, "b", "--threads", name]),
            (2, ["bench", "--threads", name]),
            (4, ["bench", f"no {name}"]),
            (4, ["run", artifact, tiny / "i.bin", "--backend", f"no {name}"]),
            (4, ["inspect", tiny / "c.pth.tar", "--weights", name]),
        ):
            done = run("ascii", *line)
            assert done.exit_code == code, (line, done.output)
            assert seen(done) and done.stdout == ""


class TestFieldsOfFiles:
    @pytest.mark.parametrize("encoding", few(ENCODINGS))
    def test_labels(self, encoding: str, tiny: Path, place: Path) -> None:
        labels = Path("labels.json")
        labels.write_text(json.dumps([text.replace("\0", "") or "x" for text in HOSTILE if len(text) < 200][:10]))
        done = run(encoding, "run", tiny / "m.onnx", tiny / "i.bin", "--top", "10", "--labels", labels)
        lines = seen(done)
        assert done.exit_code == 0, lines
        assert any("\\n::error::b" in line for line in lines)

    @long
    @pytest.mark.parametrize("first", few(list(range(0, len(HOSTILE), 6))))
    def test_an_artifacts_graph_and_manifest(self, first: int, tiny: Path, place: Path) -> None:
        for text in HOSTILE[first : first + 6]:
            model = onnx.load(tiny / "m.onnx")
            text = text.encode("utf-8", "replace").decode()
            model.producer_name = model.doc_string = model.graph.name = text
            model.graph.node[0].name = model.graph.node[0].op_type = f"{text[:60]} "
            model.metadata_props.add(key=text, value=text)
            onnx.save(model, "m.onnx")
            for line in (["inspect", "m.onnx"], ["run", "m.onnx", tiny / "i.bin"], ["evaluate", "m.onnx", "--data", tiny / "i.bin"]):
                done = run("latin-1", *line)
                assert done.exit_code in (0, 4) and seen(done), (line, done.output)

    def test_a_checkpoints_keys_and_recipe(self, place: Path) -> None:
        state = state_dict(training_model(TINY))
        for text in ("".join(HOSTILE[first : first + 6]) for first in range(0, 36, 6)):
            torch.save({text: state, f"{text} 2": {"state_dict": state, text: text}, "epoch": text, "model": text}, "c.pth")
            for line in (["c.pth"], ["c.pth", "--weights", f"no {text}"], ["c.pth", "--json"]):
                done = run("ascii", "inspect", *line)
                assert done.exit_code in (0, 4) and seen(done), (line, done.output)

    def test_the_recipe_of_a_run_that_goes_on(self, small_dataset: Path, place: Path) -> None:
        """A checkpoint that says of its run what steers a terminal is refused or named in one line each."""
        shape = ["--stages", "2-2", "--growth", "4-4", "--epochs", "1", "--batch-size", "96", "--savedir", "run"]
        assert run("utf-8", "train", small_dataset, *shape).exit_code == 0
        path = Path("run/save_models/checkpoint_000.pth.tar")
        held = torch.load(path, weights_only=False)
        own = json.loads(held["cnet_deploy"])

        def spoil(value: Any) -> Any:
            return {key: spoil(inner) for key, inner in value.items()} if isinstance(value, dict) else "".join(HOSTILE[:12])

        for keys in ({"recipe"}, {*own["training"]}):
            training = {key: spoil(value) if key in keys else value for key, value in own["training"].items()}
            changed = {**own, "training": training}
            torch.save({**held, "cnet_deploy": json.dumps(changed)}, path, _use_new_zipfile_serialization=False)
            done = run("ascii", "train", small_dataset, *shape[:5], "2", *shape[6:], "--resume")
            assert done.exit_code in (0, 4) and seen(done), (keys, done.output)


class Tags(HTMLParser):
    """All tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def spoiled(text: str, *, device: str = "cpu") -> Report:
    """A report with the text in each of its fields."""
    machine = environment()
    given = {key: text for key, value in machine.items() if isinstance(value, str)}
    given |= {"packages": {text: text}, "cpu": text, "governor": text}
    made = report() if device == "cpu" else on_cuda()
    cells = [result([0.1, 0.2], label=text, backend=backend, device=device) for backend in ("onnxruntime", "native")]
    failed = result(label=f"{text} 2", backend="native", device=device)
    failed.error = text
    rows = [Row(text, 1, 2, None, 3.0, cells), Row(f"{text} 2", None, None, None, None, [failed])]
    if device != "cpu":
        given |= {"gpu": text, "driver": text}
    return Report([*rows, *made.rows[:1]], Settings(rounds=2), {**made.environment, **given}, made.after)


class TestReports:
    @examples(25)
    @given(TEXTS, some.sampled_from(ENCODINGS), some.sampled_from(["cpu", "cuda"]))
    def test_terminal_markdown_csv_and_html(self, text: str, encoding: str, device: str) -> None:
        made = spoiled(text, device=device)
        stream = Stream(encoding)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            show(render(made))
            show(render(made, 70))
        assert not commands(stream.lines()) and not any(map(invisible, stream.lines()))

        lines = markdown(made).splitlines()
        assert not any(map(invisible, lines)) and not re.search(r"<(?!!-- -->)|(?<!\\)!\[|(?<!\\)\]\(", "\n".join(lines))
        for is_table, table in itertools.groupby(lines, lambda line: line.startswith("|")):
            assert not is_table or len({re.sub(r"\\.", "", line).count("|") for line in table}) == 1

        for line in csv.reader(io.StringIO(comma_separated(made))):
            assert not [cell for cell in line if cell.lstrip()[:1] in ("=", "+", "@", "\t") or any(map(invisible, [cell]))]
            assert not [cell for cell in line if cell[:1] == "-" and not re.fullmatch(r"-[\d.e-]+", cell)]

    @pytest.mark.parametrize("text", few(["".join(HOSTILE[:20]), *HOSTILE[:20]]), ids=range(21))
    def test_page_and_picture(self, text: str) -> None:
        made = spoiled(text)
        there = page(made)
        assert not {"script", "img", "a", "link", "iframe", "object"} & Tags(there).tags
        assert not [name for name in Tags(there).attributes if name.startswith("on")]
        assert not any(map(invisible, there.splitlines()))
        Xml.fromstring(picture(made))

    @examples(25)
    @given(TEXTS, some.sampled_from(ENCODINGS))
    def test_a_gates_verdict(self, text: str, encoding: str) -> None:
        changes = [Change(text, text, text, True)]
        made = Outcome(text, text, ("native", "native"), 1, 0.05, Settings(), changes=changes, compared="no change", unlike=text)
        made.installations = {"base": text, "head": text}
        stream = Stream(encoding)
        for gate in (lambda *_, **__: made, self._missing(text)):
            with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                patch.setenv("GITHUB_ACTIONS", "true")
                patch.setattr(sys, "stdout", stream)
                patch.setattr(verdict, "gate", gate)
                with pytest.raises(cd.errors.CnetDeployError):
                    verdict.run(["a", "b"], None, verdict.Places(folder / "v.json", folder / "s.md"))
                msgspec.json.decode((folder / "v.json").read_bytes())
                lines = (folder / "s.md").read_text().splitlines()
            outside = re.sub(r"`[^`]*`", "", "\n".join(lines))
            assert not any(map(invisible, lines)) and not re.search(r"<(?!!-- -->|/?details>|/?summary>)|(?<!\\)\]\(", outside)
        ours = commands(stream.lines())
        assert len(ours) == 2 and all(line.startswith("::error title=Latency gate::") for line in ours)
        assert not any(map(invisible, stream.lines()))

    def _missing(self, text: str) -> Any:
        def gate(*_: object, **__: object) -> Outcome:
            raise Unavailable(f"{text}: no such file")

        return gate
