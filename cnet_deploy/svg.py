"""Drawing SVG with matplotlib: canvases of so many pixels in one look, whose text stays text. Nothing else in the package imports it.

It is an extra of the package (``plots``), imported when something is drawn. Its settings, the user's own among them, are set aside for as
long as a canvas is open: the same drawing gives the same bytes everywhere.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as Xml

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import Unavailable, deferred_interrupts, raise_if_interrupted
from cnet_deploy.text import Where, shown

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # the colour-blind can distinguish them (Okabe and Ito)
MARKERS = ("o", "s", "^", "D", "v", "X")  # in print and for some eyes there is no colour
INK, QUIET = "#1b1f24", "#5f6266"
DOTTED: dict[str, Any] = {"color": "#888888", "alpha": 0.55, "linewidth": 1, "linestyle": (0, (2, 3))}
TICK = 36  # pixels that a figure beside an axis needs
_LEGEND_LINE = 20
_LEAST = (3, 8)  # the oldest matplotlib that the extra takes
_INCH = 72  # matplotlib's SVG has 72 units in an inch: a point is a pixel here
_LOOKS: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "path.simplify": False, "legend.frameon": False,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 13, "text.color": INK,
    "axes.labelsize": 12, "xtick.labelsize": 12, "ytick.labelsize": 12, "axes.titlesize": 12, "axes.titlelocation": "left",
    "axes.labelcolor": QUIET, "xtick.labelcolor": QUIET, "ytick.labelcolor": QUIET, "axes.titlecolor": QUIET,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 6, "ytick.major.pad": 6, "axes.labelpad": 6,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#888888", "grid.alpha": 0.5, "grid.linewidth": 0.5,
    "axes.formatter.limits": (-9, 9), "axes.unicode_minus": False, "axes.formatter.useoffset": False, "lines.markeredgewidth": 0,
}  # fmt: skip


def require_matplotlib() -> None:
    """Import what draws. Raises Unavailable, with what to install, where matplotlib is missing, too old or can't start."""
    remedy = "pip install 'cnet-deploy[plots]'"
    try:
        with _quiet():
            import matplotlib.backends.backend_svg
            import matplotlib.figure
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise_if_interrupted(error)
        missing = isinstance(error, ModuleNotFoundError) and error.name == "matplotlib"
        why = "is not installed" if missing else f"can't be used here ({error})"
        raise Unavailable(f"pictures are drawn with matplotlib, which {why}: {remedy}") from None
    if matplotlib.__version_info__ < _LEAST:
        least = ".".join(map(str, _LEAST))
        raise Unavailable(f"pictures need matplotlib {least} or newer; {matplotlib.__version__} is installed: {remedy}")


@contextlib.contextmanager
def canvas(name: str, width: float, height: float) -> Iterator[Canvas]:
    """A white drawing of ``width`` by ``height`` pixels, to be drawn on inside the ``with``.

    Drawings that stand in one page need names or widths of their own: what they refer to inside themselves is called after them. Raises
    Unavailable as ``require_matplotlib`` does.
    """
    require_matplotlib()
    import matplotlib

    # An interrupt in the callbacks of its C code becomes another error, or is lost.
    with deferred_interrupts(), matplotlib.rc_context(), _quiet():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_LOOKS, "svg.hashsalt": f"{name} {width}"})
        yield Canvas(width, height)


class Canvas:
    """A drawing; made by ``canvas``. Places are in pixels from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self._figure = Figure(figsize=(width / _INCH, height / _INCH), dpi=_INCH)
        self._output: Any = FigureCanvasSVG(self._figure)
        self._titles: dict[str, str] = {}

    def resize(self, height: float) -> None:
        """Make it as high as it turned out to be, before anything but the legend is on it."""
        self.height = height
        self._figure.set_size_inches(self.width / _INCH, height / _INCH)

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes whose frame has these edges; figures and titles stand outside of it."""
        edges = (left / self.width, 1 - bottom / self.height, (right - left) / self.width, (bottom - top) / self.height)
        return self._figure.add_axes(edges, frameon=False)

    def text(self, x: float, y: float, words: str, **looks: Any) -> None:
        """Words whose baseline begins at a place."""
        self._figure.text(x / self.width, 1 - y / self.height, words, **looks)

    def dashes(self, spans: npt.ArrayLike, heights: npt.ArrayLike, width: float, colour: str) -> None:
        """Horizontal dashes, so many pixels wide: ``spans`` [dashes, 2] from where to where, ``heights`` [dashes].

        All are one part of the drawing: a part for each would be a file ten times as large, and take minutes.
        """
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path
        from matplotlib.transforms import IdentityTransform

        ends = np.stack([np.ravel(spans), np.repeat(self.height - np.asarray(heights), 2)], 1).round(2)
        if len(ends):
            codes = np.tile(np.array([Path.MOVETO, Path.LINETO], Path.code_type), len(ends) // 2)
            looks: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": width, "capstyle": "butt"}
            self._figure.add_artist(PathPatch(Path(ends, codes), transform=IdentityTransform(), **looks))

    def legend(self, entries: Mapping[str, Mapping[str, Any]]) -> float:
        """The legend at the top: what each marker means, in as many columns as there is room for. Returns the pixels that it takes.

        ``entries``: the looks of a marker, as matplotlib's ``Line2D`` takes them, by its meaning.
        """
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], linestyle="none", label=shown(name, Where.SVG), **looks) for name, looks in entries.items()]
        for columns in range(len(handles), 0, -1):
            legend = self._figure.legend(
                handles=handles, loc="upper left", ncols=columns, borderpad=0.6, borderaxespad=0, handletextpad=0.2, handlelength=1.5,
                columnspacing=1.6, labelspacing=_LEGEND_LINE / 13 - 1.25,
            )  # fmt: skip
            if columns == 1 or legend.get_window_extent().width <= self.width:
                break
            legend.remove()
        return 14 + _LEGEND_LINE * math.ceil(len(handles) / columns)

    def title(self, artist: Artist, words: str) -> None:
        """What a browser shows for a part of the drawing that is pointed at."""
        artist.set_gid(f"titled-{len(self._titles)}")
        self._titles[f"titled-{len(self._titles)}"] = shown(words, Where.SVG)

    def to_string(self) -> str:
        """The drawing as an ``<svg>`` element, for a file or to stand in a page. Control characters in its texts are escaped."""
        from matplotlib.text import Text

        for artist in self._figure.findobj(Text):
            assert isinstance(artist, Text)
            artist.set_text(shown(artist.get_text(), Where.SVG))
        written = io.StringIO()
        self._output.print_svg(written, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        return self._tidied(written.getvalue())

    def _tidied(self, written: str) -> str:
        """matplotlib's SVG with titles and sizes in pixels, and without what reaches beyond the drawing: prologue, style, names.

        Clips go too: they halve the lines on a frame, and nothing is drawn beyond one. The hundredth of a pixel is enough.
        """
        root = Xml.fromstring(written)
        used = set(re.findall(r'href="#([\w-]+)', written))
        root.remove(root[0])  # a style for everything
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
            element.text, element.tail = (element.text if element.tag in ("text", "title") else None), None
            attributes, element.attrib = element.attrib, {}
            for key, value in attributes.items():
                if key == "style":
                    value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", re.sub(r"font-family: [^;]*;? ?", "", value))
                elif key in ("d", "x", "y"):
                    value = re.sub(r"(\.\d\d)\d+", r"\1", value).replace("  ", "").replace("M ", "M").replace("L ", "L").strip()
                if value in used or not (key in ("id", "clip-path") or value.startswith(("rotate(0 ", "rotate(-0 "))):
                    element.set(key.replace("{http://www.w3.org/1999/xlink}", "xlink:"), value)
            if (name := attributes.get("id", "")) in self._titles:
                element.insert(0, Xml.Element("title"))
                element[0].text = self._titles[name]
        root.attrib = {
            "xmlns": "http://www.w3.org/2000/svg", "xmlns:xlink": "http://www.w3.org/1999/xlink", "role": "img",
            "viewBox": f"0 0 {self.width:g} {self.height:g}", "width": f"{self.width:g}", "height": f"{self.height:g}",
            "font-family": "system-ui, sans-serif", "stroke-linejoin": "round",
        }  # fmt: skip
        return Xml.tostring(root, encoding="unicode")


def logarithmic(axis: Any, low: float, high: float, label: str = "{x:g}", *, whole: bool = False) -> None:
    """Make an x or y axis logarithmic from ``low`` to ``high``: figures at 1, 2 and 5 times powers of ten, at the powers alone where there
    is no room for more, or in equal steps where it is too short for them; ``whole``: then not between whole numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    pixels = axis.axes.bbox.width if axis.axis_name == "x" else 1.3 * axis.axes.bbox.height  # figures are wider than high
    if high / low < 4:
        axis.set_major_locator(MaxNLocator(max(2, min(8, int(pixels / TICK))), steps=[1, 2, 5, 10], integer=whole))
    else:
        closest = math.log10(2) / math.log10(high / low) * pixels
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if closest > TICK else (1,), numticks=max(2, int(pixels / TICK))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(label)


def note(axes: Axes, words: str, place: tuple[float, float], offset: tuple[float, float], **looks: Any) -> None:
    """Words that begin at a place, so many pixels to the right and further down."""
    options: dict[str, Any] = {"textcoords": "offset pixels", "annotation_clip": False, "color": QUIET, "size": 12, **looks}
    axes.annotate(words, place, (offset[0], -offset[1]), **options)


def apart(places: Sequence[float], least: float) -> list[float]:
    """Where to put what belongs at ``places``, so that no two are closer than ``least``: some are moved up, and their order stays.

    >>> apart([3.0, 0.0, 0.5], 1.0)
    [3.0, 0.0, 1.0]
    """
    moved, last = list(places), -math.inf
    for number in sorted(range(len(places)), key=places.__getitem__):
        moved[number] = last = max(last + least, places[number])
    return moved


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress matplotlib's warnings about its caches, about fonts, and about letters that its own font lacks and the reader's has."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
