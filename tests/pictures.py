"""What a picture shows: its words with the room that they take, what is drawn with its colour, and whether anything overlaps."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as Xml

import matplotlib
import pytest
from PIL import ImageFont

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
COLOUR = "#[0-9a-f]{6}"


class Words(NamedTuple):
    """Words and the box that they take."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    style: dict[str, str]

    def overlaps(self, other: Words) -> bool:
        """Whether they run into each other; a pixel is no matter."""
        across = min(self.right, other.right) - max(self.left, other.left)
        return across > 1 and min(self.bottom, other.bottom) - max(self.top, other.top) > 1


class Mark(NamedTuple):
    """A marker: where it is, its colour and its shape."""

    x: float
    y: float
    colour: str
    shape: str


class Line(NamedTuple):
    """A path: each of its pieces from corner to corner, and its looks."""

    pieces: list[list[tuple[float, float]]]
    style: dict[str, str]


class Picture:
    """An SVG that was drawn."""

    def __init__(self, svg: str) -> None:
        self.root = Xml.fromstring(svg)
        self.width, self.height = (float(number) for number in self.root.get("viewBox", "").split()[2:])
        assert self.root.get("viewBox") == f"0 0 {self.root.get('width')} {self.root.get('height')}"
        self.shapes = {path.get("id"): path.get("d", "") for path in self.root.iter(f"{SVG}path") if path.get("id")}

    @property
    def words(self) -> list[Words]:
        """All of them, in the order in which they were drawn. Where they stand is measured with a wide font."""
        return [_words(element) for element in self.root.iter(f"{SVG}text")]

    @property
    def texts(self) -> list[str]:
        return [words.text for words in self.words]

    @property
    def marks(self) -> list[Mark]:
        return [self._mark(element) for element in self.root.iter(f"{SVG}use")]

    @property
    def titled(self) -> dict[str, Mark]:
        """Markers by what a browser shows for them."""
        groups = [group for group in self.root.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None]
        return {group.findtext(f"{SVG}title", ""): self._mark(next(group.iter(f"{SVG}use"))) for group in groups}

    @property
    def lines(self) -> list[Line]:
        """What is drawn that is no marker, in order."""
        return [Line(_pieces(path.get("d", "")), _style(path)) for path in self.root.iter(f"{SVG}path") if not path.get("id")]

    def check(self) -> None:
        """Everything is inside, and no words run into others."""
        for words in self.words:
            assert words.left >= 0 and words.top >= 0 and words.right <= self.width and words.bottom <= self.height, words
        for one, other in itertools.combinations(self.words, 2):
            assert not one.overlaps(other), (one, other)
        places = [(mark.x, mark.y) for mark in self.marks]
        for x, y in (*places, *(corner for line in self.lines for piece in line.pieces for corner in piece)):
            assert 0 <= x <= self.width and 0 <= y <= self.height, (x, y)

    def _mark(self, use: Xml.Element) -> Mark:
        return Mark(float(use.get("x", "")), float(use.get("y", "")), _fill(_style(use)), self.shapes[use.get(HREF, "")[1:]])


def assert_same(one: str, other: str) -> None:
    """Two drawings are the same but for a pixel here and there: fonts are measured a little differently from version to version."""
    assert Picture(one).texts == Picture(other).texts and list(Picture(one).titled) == list(Picture(other).titled)
    assert re.findall(COLOUR, one) == re.findall(COLOUR, other)
    first, second = (re.split(r"(-?\d+(?:\.\d+)?)", re.sub(rf"\bm[0-9a-f]{{10}}\b|{COLOUR}", "", text)) for text in (one, other))
    assert first[::2] == second[::2]
    assert [*map(float, first[1::2])] == pytest.approx([*map(float, second[1::2])], abs=1)


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _style(element: Xml.Element) -> dict[str, str]:
    return {name.strip(): value.strip() for name, _, value in (part.partition(":") for part in element.get("style", "").split(";")) if name}


def _fill(style: dict[str, str]) -> str:
    """A mark's colour: of a hollow one, that of its edge."""
    return style.get("fill") or style["stroke"]


def _words(element: Xml.Element) -> Words:
    text, style = element.text or "", _style(element)
    size = float(style["font-size"].removesuffix("px"))
    x, y, length = float(element.get("x", "")), float(element.get("y", "")), _font(size).getlength(text)
    before = {"start": 0.0, "middle": length / 2, "end": length}[style.get("text-anchor", "start")]
    if turned := element.get("transform"):
        assert turned.startswith("rotate(-90 ")
        return Words(text, x - size * 0.75, y - length + before, x + size * 0.2, y + before, style)
    return Words(text, x - before, y - size * 0.75, x - before + length, y + size * 0.2, style)


def _pieces(path: str) -> list[list[tuple[float, float]]]:
    found: list[list[tuple[float, float]]] = []
    for letter, x, y in re.findall(r"([ML])(-?[\d.]+) (-?[\d.]+)", path):
        if letter == "M":
            found.append([])
        found[-1].append((float(x), float(y)))
    return found
