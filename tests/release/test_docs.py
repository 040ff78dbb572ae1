"""The pages: what they say of files, layers and figures is so, and the API reference has every public name."""

from __future__ import annotations

import html
import inspect
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import cnet_deploy as cd
from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.sweep.paper import paper_ratio
from cnet_deploy.benchmarks.sweep.results import read_report
from tests.cases import exhaustive
from tests.release.pages import RECORDED

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cnet_deploy"
FOLDERS = ("cnet_deploy", "docs", "examples", "tests", ".ci", ".github")
PAGES = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
SOURCES = {".py", ".md", ".c", ".h", ".cpp", ".hpp", ".toml", ".yml"}  # a name that ends so is a file of the repository
THE_REFERENCES = {"main.py"}


def words(text: str) -> str:
    """Without tags, entities and marks."""
    return " ".join(re.findall(r"\w+", html.unescape(re.sub(r"<[^>]+>", " ", text))))


def test_every_public_name_has_a_docstring() -> None:
    assert not [name for name in set(cd.__all__) - {"__version__"} if not inspect.getdoc(getattr(cd, name))]


@exhaustive("test_every_public_name_has_a_docstring")
def test_the_reference_has_every_public_name_with_its_docstring(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "docs/reference.py", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    page = (tmp_path / "cnet_deploy.html").read_text(encoding="utf-8")
    parts = dict(zip(re.findall(r'<section id="(\w+)">', page), re.split(r'<section id="\w+">', page)[1:], strict=True))
    assert list(parts)[: len(cd.__all__)] == cd.__all__  # in the order of the road, and the modules are not among them
    for guide in (ROOT / "docs").glob("*.md"):
        assert f'href="{guide.stem}.html"' in page and (tmp_path / f"{guide.stem}.html").is_file()
    assert "cnet_prepare" in (tmp_path / "c-api.html").read_text(encoding="utf-8")
    for name in set(cd.__all__) - {"__version__"}:
        docstring = inspect.getdoc(getattr(cd, name))
        assert docstring, name
        assert words(docstring.split("\n\n")[0]) in words(parts[name]), name
    for module in PACKAGE.rglob("[!_]*.py"):
        assert (tmp_path / module.relative_to(ROOT)).with_suffix(".html").is_file(), module


def diagrams() -> list[str]:
    return re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL)


def test_files_in_the_pictures_exist() -> None:
    road, _, export = diagrams()
    assert road.startswith("flowchart") and export.startswith("sequenceDiagram")
    for picture, least in ((road, 20), (export, 10)):
        named = set(re.findall(r"[a-z_]+/[a-z0-9_/]*(?:\.py)?|[a-z0-9_]+\.py", picture.replace("<br/>", " ")))
        assert len(named) >= least
        assert {name for name in named if not (PACKAGE / name).exists()} == set()


def test_layers_in_the_picture_are_the_contract() -> None:
    """Each layer is a box, and the boxes are chained in the order in which they may import."""
    picture = diagrams()[1]
    boxes = re.findall(r'(\w+)\["([^"]+)"\]', picture)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (contract["layers"] for contract in settings["tool"]["importlinter"]["contracts"] if contract["type"] == "layers")
    assert [set(text.split(" · ")) for _, text in boxes] == [set(layer.split(" | ")) for layer in layers]
    chains = [line.strip().split(" --> ") for line in re.sub(r'\["[^"]*"\]', "", picture).splitlines() if "-->" in line]
    arrows = [pair for chain in chains for pair in itertools.pairwise(chain)]
    assert arrows == list(itertools.pairwise(name for name, _ in boxes))


def entries() -> set[str]:
    """Every file and folder of the repository, by its path."""
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in (*ROOT.iterdir(), *below)}


def names_in(page: str) -> Iterator[str]:
    """The words in code spans that look like files or folders of the repository."""
    inside = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL)):
        for name in (word.strip(",;:") for word in span.split()):
            begins_here = "/" in name and name.split("/")[0] in {*FOLDERS, *inside}
            if (begins_here or Path(name).suffix in SOURCES) and re.fullmatch(r"[\w./-]+", name):
                yield name.rstrip("/")


def test_names_of_files_in_the_pages_are_files() -> None:
    known = entries()
    endings = {path[start:] for path in known for start in (0, *(at.end() for at in re.finditer("/", path)))}
    for page in PAGES:
        names = set(names_in(page.read_text(encoding="utf-8"))) - THE_REFERENCES
        assert {name for name in names if name not in endings} == set(), page


def test_links_lead_to_files_and_headings() -> None:
    for page in PAGES:
        for place, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
            target = page.parent / place if place else page
            assert target.exists(), f"{page}: {place}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}, f"{page}: #{anchor}"


def test_tests_that_are_named_are_there() -> None:
    named = {pair for page in PAGES for pair in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", page.read_text(encoding="utf-8"))}
    assert len(named) >= 40
    assert [pair for pair in named if f"def {pair[1]}(" not in (ROOT / pair[0]).read_text(encoding="utf-8")] == []


def test_names_of_modules_in_the_pages_are_modules() -> None:
    for page in PAGES:
        for dotted in re.findall(r"\bcnet_deploy(?:\.\w+)+", page.read_text(encoding="utf-8")):
            module, name = ROOT.joinpath(*dotted.split(".")[:-1]), dotted.rpartition(".")[2]
            if (module / name).is_dir() or (module / f"{name}.py").is_file():
                continue
            file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
            assert file.is_file() and re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")), f"{page}: {dotted}"


def test_format_numbers_are_where_contributing_says() -> None:
    rows = re.findall(r"`([\w./]+): (\w+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(rows) >= 10
    for file, name in rows:
        assert re.search(rf"^(#define )?{name} ?=? ?\d", (PACKAGE / file).read_text(encoding="utf-8"), re.MULTILINE), file
    numbered = re.compile(r"^[A-Z]+_VERSION = \d", re.MULTILINE)
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if numbered.search(path.read_text(encoding="utf-8"))}
    assert files <= {file for file, _ in rows}


def test_figures_in_the_readme_are_the_recorded_ones() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    runs = json.loads((RECORDED / "native-and-peers.json").read_text(encoding="utf-8"))["results"]
    report = read_report(RECORDED / "table-2-threads.json")
    for groups in (4, 8):
        network = f"condensenet-74-g{groups}"
        wanted = {"network": network, "precision": "fp32", "batch": 1, "threads": 2}
        (run,) = (run for run in runs if wanted.items() <= run.items() and "best_peer" in run)
        times = {cell["cell"]["label"]: 1e3 * cell["p10_seconds_an_image"] for cell in run["cells"]}
        (row,) = (row for row in report.rows if row.label == network)
        (native,) = (result for result in row.results if result.cell.backend == "native")
        assert row.paper is not None
        figures = [
            f"{times['native']:.2f} ms", f"{times[run['best_peer']]:.2f} ms", f"{run['times_as_fast']:.1f} times as fast",
            f"{report.ratio(native):.2f}", f"{paper_ratio(row.paper):.2f}",
        ]  # fmt: skip
        assert f"| G=C={groups} | {' | '.join(figures)} |" in readme
        shown = [milliseconds(result.median) for result in row.results]
        assert [result.cell.backend for result in row.results] == ["torch", "onnxruntime", "native", "native.int8"]
        first = f"| G=C={groups} ({row.top1_error:.1f} %"
        (line,) = (text for text in readme.splitlines() if text.startswith(first))
        assert line.endswith(f"| {' | '.join(f'{figure} ms' for figure in shown)} |")
