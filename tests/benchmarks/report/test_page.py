"""The page: its figures are the JSON's, it needs no network, it is readable on a phone, on a wide screen and on paper."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.report import plots
from cnet_deploy.benchmarks.report.page import page, picture
from cnet_deploy.benchmarks.sweep.results import Row
from tests.benchmarks.helpers import on_cuda, report, result

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
    assert "TF32 is on for tensorrt.tf32 alone." in text and "GPU before, sm mhz" in text
    assert "<b>GPU</b>" not in text


def test_nothing_is_loaded_and_nothing_is_run() -> None:
    text = page(report())
    found = Cells(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)  # the hostile name among the rows included
    addresses = set(re.findall(r"https?://[^\"'\s<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a namespace, never fetched
    assert "<b>here</b>" not in text and "no compiler &lt;b&gt;here" in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize("width", [340, 860])
@pytest.mark.parametrize("draw", [plots.latency_and_error, plots.distributions, plots.settling])
def test_pictures_are_whole_at_every_width(draw: Callable[..., str], width: int) -> None:
    for made in (report(), on_cuda(), report(rows=report().rows[3:]), report(rows=[Row("none", None, None, None, None, [result()])])):
        svg = Xml.fromstring(draw(made, width))
        assert svg.get("viewBox", "").startswith(f"0 0 {width} ")
        height = float(svg.get("viewBox", "").split()[3])
        for element in svg.iter():
            x, y = element.get("x") or element.get("cx"), element.get("y") or element.get("cy")
            if x is not None and y is not None and element.get("transform") is None:
                assert 0 <= float(x) <= width and 0 <= float(y) <= height, Xml.tostring(element)


def test_the_picture_puts_faster_left_and_more_accurate_up() -> None:
    svg = Xml.fromstring(picture(report()))
    found = {}
    for path in svg.iter("{http://www.w3.org/2000/svg}path"):
        title = path.find("{http://www.w3.org/2000/svg}title")
        if title is not None:
            start = re.match(r"M([\d.]+) ([\d.]+)", path.get("d", ""))
            assert start is not None
            found[title.text] = (float(start[1]), float(start[2]))
    assert len(found) == 7  # eight cells of the first group, one of which failed
    mobile, fast = (
        next(at for title, at in found.items() if title and title.startswith(f"MobileNet 1.0-224 on {b}")) for b in ("onnx", "nat")
    )
    dense = next(at for title, at in found.items() if title and title.startswith("CondenseNet-74 (G=C=8) on onnx"))
    assert fast[0] < mobile[0] < dense[0]  # 3.4, 10.2 and 20.4 ms
    assert dense[1] < mobile[1]  # 29.0 and 29.4 %


def test_ticks_are_enough_and_inside() -> None:
    for low, high in ((0.98, 1.02), (0.9, 1.5), (1, 10), (0.004, 3000), (3, 3.0001)):
        ticks = plots.Axis(low, high, 0, 100).ticks()
        assert 2 <= len(ticks) <= 14 and all(low <= tick <= high for tick in ticks), (low, high, ticks)


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


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(390, 3000), (1280, 2000)])
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


@pytest.mark.slow
def test_on_paper(browser: str, tmp_path: Path) -> None:
    html = tmp_path / "r.html"
    html.write_text(page(report()))
    shoot(browser, html, "r.pdf", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'r.pdf'}")
    data = (tmp_path / "r.pdf").read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", data))
    boxes = {tuple(map(float, found.split())) for found in re.findall(rb"/MediaBox\s*\[([^\]]+)\]", data)}
    assert 1 <= pages <= 6 and all(abs(box[2] - 595) < 2 and abs(box[3] - 842) < 2 for box in boxes)  # A4
