"""The page: its figures are the JSON's, it needs no network, it is readable on a phone, on a wide screen and on paper."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.report import plots
from cnet_deploy.benchmarks.report.page import environment_of, page, picture
from cnet_deploy.benchmarks.report.text import result_of
from cnet_deploy.benchmarks.sweep.results import Report, Row, read_report
from cnet_deploy.sessions import backends
from cnet_deploy.svg import COLOURS
from tests.benchmarks.helpers import on_cuda, report, result
from tests.cases import few, long
from tests.pictures import Picture

RECORDED = Path(__file__).parents[3] / "cnet_deploy" / "benchmarks" / "results" / "amd-epyc-2-cores" / "table-2-threads.json"
DRAWINGS = [plots.latency_and_error, plots.distributions, plots.settling]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars", "--force-device-scale-factor=1",
]  # fmt: skip


class Cells(HTMLParser):
    """The words of every element with ``data-model``, by model, backend, threads and batch; and all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: dict[tuple[str, str, int, int], tuple[str, float | None]] = {}
        self.tags: list[str] = []
        self.words: list[str] = []
        self.key: tuple[str, str, int, int] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = {key: value or "" for key, value in attrs}
        if tag == "td":
            self.key = None
        if "data-model" in found:
            self.key = (found["data-model"], found["data-backend"], int(found["data-threads"]), int(found["data-batch"]))
            self.cells[self.key] = ("", float(found["data-seconds"]) if "data-seconds" in found else None)

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.key is not None:
            words, seconds = self.cells[self.key]
            self.cells[self.key] = (f"{words} {data}", seconds)


def measured(values: dict[str, Any], found: Cells) -> Iterator[tuple[dict[str, Any], str]]:
    """Every cell of the JSON that was measured, and the page's words of it, which begin with its figure; failed ones are told."""
    for row in values["rows"]:
        for cell in row["cells"]:
            key = (row["label"], cell["cell"]["backend"], cell["cell"]["threads"], cell["cell"]["batch"])
            words, seconds = found.cells[key]
            if cell["error"]:
                assert cell["error"] in words and seconds is None
                continue
            assert seconds == cell["summary"]["median"]
            assert words.split()[0] == (milliseconds(seconds) if key[3] == 1 else f"{cell['images_per_second']:,.1f}")
            yield cell, words


def test_every_figure_is_the_jsons() -> None:
    made = report()
    values, found = made.to_dict(), Cells(page(made))
    assert len(found.cells) == len(list(made.results))
    for cell, words in measured(values, found):
        assert f"p90 {milliseconds(cell['summary']['p90'])}" in words and "p99" not in words
        assert f"CV {cell['summary']['variation'] * 100:.1f} %" in words
    text = " ".join(found.words)
    for row in values["rows"]:
        assert all(f"{cell['ratio']:.2f}" in text for cell in row["cells"] if cell["ratio"])
    assert values["environment"]["cpu"] in text and values["environment"]["packages"]["torch"] in text


def test_a_devices_figures_are_the_jsons() -> None:
    made = on_cuda()
    values, text = made.to_dict(), page(made)
    found = Cells(text)
    assert len(found.cells) == len(list(made.results)) == 12
    for cell, _ in measured(values, found):
        for name, label in (("device_seconds", "device ms"), ("end_to_end_seconds", "with transfers ms")):
            assert f'<td data-label="{label}">{milliseconds(cell[name])}</td>' in text
    assert "<h1>Inference time on NVIDIA H200</h1>" in text and "Latency, batch 1, cuda" in text and "Throughput, batch 8, cuda" in text
    assert "TF32 is on for tensorrt.tf32 alone." in text and "<dt>GPU before, clock</dt><dd>1980 MHz</dd>" in text
    assert "<b>GPU</b>" not in text


def test_nothing_is_loaded_and_nothing_is_run() -> None:
    text = page(report())
    found = Cells(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)  # the hostile name among the rows included
    addresses = set(re.findall(r"https?://[^\"'\s<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # namespaces, never fetched
    assert "<b>here</b>" not in text and "no compiler &lt;b&gt;here" in text
    assert "default-src 'none'" in text


def crowded() -> Report:
    """Ten backends; models of equal errors, of nearly equal ones, and of long names."""
    names = ["condensenet-74-g8", "a-model-of-ours_2026.safetensors-" * 8, "a.onnx", "b.onnx", "c.so", "unknown.onnx", "another.onnx"]
    errors = [29.0, 29.0, 5.01, 5.02, 5.03, None, None]
    rows = [Row(name, None, None, "ab" * 32, error, []) for name, error in zip(names, errors, strict=True)]
    ten = [*backends(), "torch.compile", "torch.cudagraph.fp16", "tensorrt.fp16", "tensorrt.tf32", "native.bf16"]
    for number, row in enumerate(rows, 1):
        row.results = [
            result([0.01 * number * 1.5**n] * 40, label=row.label, backend=backend, threads=2, batch=batch)
            for n, backend in enumerate(ten)
            for batch in (1, 32)
        ]
    return report(rows=rows)


def reports() -> list[Report]:
    return [report(), on_cuda(), crowded(), report(rows=report().rows[3:]), report(rows=report().rows[:1])]


@pytest.mark.parametrize("width", few([340, 860]))
@pytest.mark.parametrize("draw", DRAWINGS)
@long
def test_pictures_are_whole_at_every_width(draw: Callable[..., str], width: int) -> None:
    for made in reports():
        picture = Picture(draw(made, width))
        assert picture.width == width
        picture.check()
        backends = picture.texts[-len(made.backends) :]
        assert sorted(backends) == sorted(made.backends)  # the legend


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_report_of_nothing(draw: Callable[..., str]) -> None:
    drawn = Picture(draw(report(rows=[Row("none", None, None, None, None, [result()])]), 340))
    drawn.check()
    assert drawn.texts == ["Nothing was measured."]


def test_the_picture_puts_faster_left_and_more_accurate_up() -> None:
    found = Picture(picture(report())).titled
    assert len(found) == 7  # eight cells of the first group, one of which failed
    mobile, fast = (next(at for title, at in found.items() if title.startswith(f"MobileNet 1.0-224 on {b}")) for b in ("onnx", "nat"))
    dense = next(at for title, at in found.items() if title.startswith("CondenseNet-74 (G=C=8) on onnx"))
    assert "MobileNet 1.0-224 on native: 3.40 ms" in found and "<script>alert(1)</script>|.onnx on native: 10.20 ms" in found
    assert fast.x < mobile.x < dense.x  # 3.4, 10.2 and 20.4 ms
    assert mobile.x - fast.x == pytest.approx((dense.x - mobile.x) * math.log(3) / math.log(2), abs=0.1)  # a logarithmic scale
    assert dense.y < mobile.y == fast.y  # 29.0 and 29.4 %


def test_places_are_where_the_axes_say() -> None:
    drawn = Picture(picture(report()))
    words = {words.text: words for words in drawn.words}
    ten = words["10"]
    mark = drawn.titled["MobileNet 1.0-224 on onnxruntime: 10.20 ms"]
    assert mark.x == pytest.approx((ten.left + ten.right) / 2, abs=10) and mark.x > (ten.left + ten.right) / 2
    low, high = ((words[text].top + words[text].bottom) / 2 for text in ("27 %", "30 %"))
    assert mark.y == pytest.approx(low + (29.4 - 27) / 3 * (high - low), abs=2)
    unknown = drawn.titled["unknown.onnx on native: 13.60 ms"]  # in a lane of its own, below every error
    assert unknown.y > high and "unknown.onnx" in words and words["unknown.onnx"].bottom < unknown.y


@long
def test_models_of_equal_errors_share_a_name() -> None:
    drawn = Picture(plots.latency_and_error(crowded(), 860))
    assert any(text.startswith("CondenseNet-74 (G=C=8), a-model-of-ours") for text in drawn.texts)
    narrow = Picture(plots.latency_and_error(crowded(), 340))
    assert len({mark.y for title, mark in narrow.titled.items() if title.startswith(("a.onnx", "b.onnx", "c.so"))}) == 3


@pytest.mark.parametrize("draw", DRAWINGS[::2])
def test_a_backend_has_a_colour_and_a_shape(draw: Callable[..., str]) -> None:
    drawn = Picture(draw(crowded(), 860))
    looks = {(mark.colour, mark.shape) for mark in drawn.marks[-len(crowded().backends) :]}  # in the legend
    assert len(looks) == len(crowded().backends) == 10
    assert {mark.colour for mark in drawn.marks} == set(COLOURS)
    if draw is plots.latency_and_error:
        assert {(mark.colour, mark.shape) for mark in drawn.titled.values()} == looks


def test_distributions_show_percentiles_quartiles_and_rounds() -> None:
    rounds = [[0.009 + 0.0001 * n for n in range(21)], [0.0095 + 0.0001 * n for n in range(11)]]
    made = report(rows=[Row("a.onnx", None, None, "ab" * 32, None, [result(*rounds, label="a.onnx", backend="native")])])
    drawn = Picture(plots.distributions(made, 860))
    assert "a.onnx, native, 10.00 ms" in drawn.texts
    box, whisker, median = [line for line in drawn.lines if line.style.get("stroke") == COLOURS[0]]
    places = {float(words.text): (words.left + words.right) / 2 for words in drawn.words if words.text[0] in "01"}

    def at(value: float) -> float:
        share = math.log(value) / math.log(1.2)
        return places[1.0] + share * (places[1.2] - places[1.0])

    samples = [sample / 0.010 for part in rounds for sample in part]
    low, first, third, high = (float(np.quantile(samples, q)) for q in (0.05, 0.25, 0.75, 0.95))
    assert [x for x, _ in whisker.pieces[0]] == pytest.approx([at(low), at(high)], abs=0.5)
    assert sorted({x for x, _ in box.pieces[0]}) == pytest.approx([at(first), at(third)], abs=0.5)
    assert [x for x, _ in median.pieces[0]] == pytest.approx([at(1.0)] * 2, abs=0.5)
    dots = [mark for mark in drawn.marks if mark.y == pytest.approx(whisker.pieces[0][0][1], abs=0.1)]
    assert [dot.x for dot in dots] == pytest.approx([at(1.0), at(1.0)], abs=0.5)


def test_settling_shows_the_first_inferences() -> None:
    steady = result([0.010] * 40, label="a.onnx", backend="native")
    steady.warmup[:] = [0.1, 0.05, 0.02, *[0.01] * 100]
    drawn = Picture(plots.settling(report(rows=[Row("a.onnx", None, None, "ab" * 32, None, [steady])]), 860))
    (curve,) = [line.pieces[0] for line in drawn.lines if line.style.get("stroke") == COLOURS[0]]
    assert len(curve) == plots.WARMUP_SHOWN
    heights = {words.text: (words.top + words.bottom) / 2 for words in drawn.words}
    assert [y for _, y in curve[:4]] == pytest.approx([heights[text] for text in ("10x", "5x", "2x", "1x")], abs=2)
    across = {words.text: (words.left + words.right) / 2 for words in drawn.words}
    assert [curve[number - 1][0] for number in (1, 2, 5, 10, 20, 50)] == pytest.approx(
        [across[str(number)] for number in (1, 2, 5, 10, 20, 50)], abs=0.5
    )


@long
def test_a_page_is_the_same_in_every_process() -> None:
    """And what a drawing refers to is in itself: one that is not shown may not be referred to."""
    script = (
        "import sys; from cnet_deploy.benchmarks.report.page import page; from cnet_deploy.benchmarks.sweep.results import read_report\n"
        "before = 'matplotlib' in sys.modules; sys.stdout.write(page(read_report(sys.argv[1]))); assert not before"
    )
    surroundings = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", script, str(RECORDED)], env=surroundings, capture_output=True, check=True)
    text = page(read_report(RECORDED))
    assert done.stdout.decode() == text and done.stderr == b""
    drawings = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(drawings) == 6
    names = [set(re.findall(r' id="([^"]*)"', drawing)) for drawing in drawings]
    assert all(set(re.findall(r'href="#([^"]*)"', drawing)) == own for drawing, own in zip(drawings, names, strict=True))
    assert len(set().union(*names)) == sum(map(len, names))


@pytest.fixture
def browser(system_tool: Callable[[str], str]) -> str:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None) or system_tool(BROWSERS[0])


def shoot(browser: str, html: Path, out: str, *flags: str) -> None:
    """Let the browser write ``out`` beside the page."""
    profile = html.with_name("profile")
    command = [browser, *FLAGS, f"--user-data-dir={profile}", *flags, html.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=html.parent)
    assert html.with_name(out).exists()


def ink(path: Path) -> tuple[int, float, int]:
    """Width of a screenshot, the share of its pixels that are not background, and the last column that is not."""
    pixels = np.asarray(Image.open(path).convert("L"))
    marked = pixels < 160
    columns = np.flatnonzero(marked.any(axis=0))
    return pixels.shape[1], float(marked.mean()), int(columns[-1])


@pytest.mark.parametrize(("width", "height"), few([(390, 3000), (1280, 2000)]))
@long
def test_in_a_browser(width: int, height: int, browser: str, tmp_path: Path) -> None:
    html = tmp_path / "r.html"
    html.write_text(page(report()))
    shoot(browser, html, "shot.png", f"--window-size={width},{height}", f"--screenshot={tmp_path / 'shot.png'}")
    found, share, last = ink(tmp_path / "shot.png")
    assert found == width and 0.005 < share < 0.5
    assert last < width - 2  # nothing runs out of the page
    measured = tmp_path / "m.html"
    shown = "[...document.querySelectorAll('svg')].filter(s=>s.clientWidth).length"
    probe = f"<script>document.title=(document.documentElement.scrollWidth-innerWidth)+' '+{shown}</script>"
    measured.write_text(page(report()).replace("default-src 'none';", "script-src 'unsafe-inline';").replace("</body>", f"{probe}</body>"))
    dumped = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={tmp_path / 'p2'}", f"--window-size={width},{height}", "--dump-dom", measured.as_uri()],
        check=True, capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    title = re.search(r"<title>(-?\d+) (\d+)</title>", dumped)
    assert title is not None and int(title[1]) <= 0 and int(title[2]) == 3  # no sideways scrolling; one drawing of each kind is shown


@long
def test_on_paper(browser: str, tmp_path: Path) -> None:
    html = tmp_path / "r.html"
    html.write_text(page(report()))
    shoot(browser, html, "r.pdf", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'r.pdf'}")
    data = (tmp_path / "r.pdf").read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", data))
    boxes = {tuple(map(float, found.split())) for found in re.findall(rb"/MediaBox\s*\[([^\]]+)\]", data)}
    assert 1 <= pages <= 6 and all(abs(box[2] - 595) < 2 and abs(box[3] - 842) < 2 for box in boxes)  # A4


def test_the_page_begins_with_its_result() -> None:
    made = report()
    text = page(made)
    assert result_of(made) == (
        "native is the fastest in 3 of the 3 models that it runs (batch 1, 1 thread): 3.0 times as fast as onnxruntime, by the median over "
        "the models that both run."
    )
    assert text.index('<p class="result">native is the fastest in 3') < text.index("<table>") < text.index("Before you trust these times")
    assert result_of(report(rows=made.rows[3:])) == (
        "native is the fastest: 13.60 ms an image (batch 1, 1 thread), 3.0 times as fast as onnxruntime."
    )
    assert result_of(report(rows=[Row("none", None, None, None, None, [result()])])) == "Nothing was measured."
    assert text.count("unstable") <= 2  # in the warning, and what it means; not in every cell


def test_the_environment_is_for_people() -> None:
    made = report()
    made.environment.update(clock_mhz=[2596.1, 2400.0], memory_bytes=8 << 30, virtual=True, turbo=None, load_average=[0.5, 0.25, 0.125])
    shown = dict(environment_of(made))
    assert (shown["clocks"], shown["memory"], shown["virtual machine"]) == ("2400 to 2596 MHz", "8.0 GiB", "yes")
    assert shown["turbo"] == "not known on this system" and shown["load average (1, 5, 15 minutes)"] == "0.50, 0.25, 0.12"
    assert not any("[" in value or value in ("True", "False", "None") for value in shown.values())


def test_a_smaller_precision_is_hollow() -> None:
    """Its error is not that of its row, which is fp32's."""
    made = report()
    made.rows[1].results.append(result([0.001] * 40, label=made.rows[1].label, backend="native.int8"))
    text = plots.latency_and_error(made, 860)
    assert "hollow: int8, at the error of fp32" in text and text.count("fill-opacity: 0;") == 1
    assert "hollow" not in plots.latency_and_error(report(), 860)
