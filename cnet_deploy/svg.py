"""Drawing SVG: a canvas that is read in print and on a phone, lines, words, and axes of equal steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind too (Okabe and Ito)
STYLE = (
    "svg{font:13px system-ui,sans-serif;fill:currentColor;color:#1b1f24;background:#fff}.grid{stroke:#8888;stroke-width:.5}"
    ".lane{stroke:#8886;stroke-dasharray:2 3}.quiet{opacity:.7;font-size:12px}text{stroke:none}"
)


@dataclass(frozen=True)
class LinearAxis:
    """Values from ``low`` to ``high`` over pixels ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return round(self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[float]:
        """Some ``about`` round values in equal steps.

        >>> LinearAxis(0, 23, 0, 100).ticks()
        [0.0, 5.0, 10.0, 15.0, 20.0]
        """
        size = (self.high - self.low) / about
        if size <= 0:
            return [self.low]
        step = next(s for s in (m * 10.0 ** math.floor(math.log10(size)) for m in (1, 2, 5, 10)) if s >= size * 0.7)
        return [round(n * step, 9) for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def canvas(width: float, height: float) -> Xml.Element:
    """An empty drawing of ``width`` by ``height`` pixels."""
    svg = Xml.Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}", "width": str(width), "role": "img"}
    )
    Xml.SubElement(svg, "style").text = STYLE
    return svg


def to_string(svg: Xml.Element) -> str:
    """The drawing as text."""
    return Xml.tostring(svg, encoding="unicode")


def add(svg: Xml.Element, tag: str, **attributes: object) -> Xml.Element:
    """An element with its attributes; underscores stand for hyphens."""
    return Xml.SubElement(svg, tag, {name.replace("_", "-"): str(value) for name, value in attributes.items()})


def line(svg: Xml.Element, x1: float, y1: float, x2: float, y2: float, kind: str = "") -> Xml.Element:
    """A straight line; ``kind`` is one of STYLE's classes."""
    return add(svg, "line", x1=x1, y1=y1, x2=x2, y2=y2, **({"class": kind} if kind else {}))


def text(svg: Xml.Element, x: float, y: float, words: str, anchor: str, kind: str = "") -> Xml.Element:
    """Words at a place; ``anchor`` is start, middle or end."""
    element = add(svg, "text", x=x, y=y, text_anchor=anchor, **({"class": kind} if kind else {}))
    element.text = words
    return element
