"""Canvases: one look for everybody, whatever the user's matplotlib is like; and what happens where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnet_deploy.errors import Unavailable
from cnet_deploy.svg import COLOURS, MARKERS, canvas, logarithmic, note, require_matplotlib
from tests.cases import long
from tests.pictures import Picture, assert_same

DRAW = """
import sys
from cnet_deploy.svg import canvas, logarithmic, note
with canvas("a drawing", 340, 200) as drawn:
    drawn.legend({"one": {"marker": "o", "color": "#0072b2"}, "two": {"marker": "s", "color": "#d55e00"}})
    axes = drawn.axes(40, 40, 330, 160)
    logarithmic(axes.xaxis, 1, 100)
    drawn.title(axes.plot(10, 0.5, "o")[0], "a marker")
    note(axes, "\\u5377\\u7a4d $x^2$", (2, 0.5), (0, 0))  # letters that matplotlib's font lacks
    sys.stdout.write(drawn.to_string())
assert "matplotlib.pyplot" not in sys.modules
"""


def drawn_by_a_process(**surroundings: str) -> str:
    """What a process of its own draws, which says nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "XDG_"))}
    everything = {**kept, "PYTHONIOENCODING": "utf-8", **surroundings}
    done = subprocess.run([sys.executable, "-c", DRAW], env=everything, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@long
def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    settings = "font.size: 30\nsvg.fonttype: path\ntext.usetex: True\naxes.facecolor: red\nlines.linewidth: 9\ntimezone: Asia/Tokyo\n"
    (tmp_path / "matplotlibrc").write_text(settings)
    first = drawn_by_a_process(PYTHONHASHSEED="1", SOURCE_DATE_EPOCH="1")
    assert first == drawn_by_a_process(PYTHONHASHSEED="2", MPLCONFIGDIR=str(tmp_path), MPLBACKEND="agg", TZ="Asia/Tokyo")
    assert {"\u5377\u7a4d $x^2$", "one", "two"} <= set(Picture(first).texts) and "a marker" in Picture(first).titled
    assert first.startswith("<svg ") and "DejaVu" not in first and "matplotlib" not in first.lower()


@long
def test_a_home_that_can_not_be_written_is_no_matter(tmp_path: Path) -> None:
    first = drawn_by_a_process()
    assert drawn_by_a_process(HOME="/dev/null/home", TMPDIR=str(tmp_path)) == first
    assert list(tmp_path.iterdir()) == []


def test_settings_are_as_they_were() -> None:
    import matplotlib

    matplotlib.rcParams["font.size"] = 17
    try:
        before = {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
        with canvas("a drawing", 100, 50) as drawn:
            drawn.text(5, 20, "words")
            assert "font-size: 13px" in drawn.to_string()
        assert {name: matplotlib.rcParams[name] for name in before} == before
    finally:
        matplotlib.rcdefaults()


def test_nothing_that_a_name_holds_gets_out() -> None:
    hostile = "a\x1b[31m\n</text><script>\udc80&amp;\" $\\frac{1}{2}$'DejaVu Sans'"
    with canvas("a drawing", 900, 60) as drawn:
        axes = drawn.axes(10, 10, 890, 50)
        drawn.title(axes.plot(0, 0, "o")[0], hostile)
        note(axes, hostile, (0, 0), (0, 0))
        text = drawn.to_string()
    escaped = "a\\x1b[31m\\n</text><script>\\x80&amp;\" $\\frac{1}{2}$'DejaVu Sans'"
    assert escaped in Picture(text).texts and [*Picture(text).titled] == [escaped] and "<script" not in text


@pytest.mark.parametrize("width", [340, 860])
@pytest.mark.parametrize("span", [(0.98, 1.02), (0.9, 1.5), (1, 10), (0.004, 3000), (3, 3.0001), (0.5, 2.1), (7, 31), (1e-9, 1e9)])
def test_figures_of_a_logarithmic_axis(width: int, span: tuple[float, float]) -> None:
    with canvas("an axis", width, width / 2) as drawn:
        axes = drawn.axes(60, 20, width - 30, width / 2 - 30)
        logarithmic(axes.xaxis, *span)
        logarithmic(axes.yaxis, *span)
        picture = Picture(drawn.to_string())
    picture.check()
    for anchor in ("middle", "end"):
        figures = [float(words.text) for words in picture.words if words.style["text-anchor"] == anchor]
        assert 2 <= len(figures) <= 20 and all(span[0] <= figure <= span[1] for figure in figures), figures
    assert all(words.text == f"{float(words.text):g}" for words in picture.words)


def test_a_legend_takes_the_columns_that_fit() -> None:
    names = [f"a backend with a name, {number}" for number in range(7)]
    entries = {name: {"color": COLOURS[number % 6], "marker": MARKERS[number % 6]} for number, name in enumerate(names)}
    for width, columns in ((340, 1), (860, 4), (2000, 7)):
        with canvas("a legend", width, 200) as drawn:
            height = drawn.legend(entries)
            picture = Picture(drawn.to_string())
        picture.check()
        assert len({round(words.left) for words in picture.words}) == columns
        assert max(words.bottom for words in picture.words) <= height < 200
        assert [mark.colour for mark in picture.marks] == [COLOURS[number % 6] for number in range(7)]


def test_a_drawing_that_differs_is_seen() -> None:
    first = drawn_by_a_process()
    assert_same(first, first.replace('y="0', 'y="0.4'))
    for old, new in (("a marker", "another"), ("#0072b2", "#0072b3"), (">50<", ">51<"), ('x="40', 'x="43')):
        assert old in first
        with pytest.raises(AssertionError):
            assert_same(first, first.replace(old, new))


def test_where_matplotlib_is_missing_broken_or_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import matplotlib

    with monkeypatch.context() as patch:
        patch.setattr(matplotlib, "__version_info__", (3, 7, 5))
        with pytest.raises(Unavailable, match=r"need matplotlib 3.8 or newer; .* is installed: pip install 'cnet-deploy\[plots\]'"):
            require_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Unavailable, match=r"matplotlib, which is not installed: pip install 'cnet-deploy\[plots\]'$"):
        require_matplotlib()
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('built for another numpy')")
    script = "from cnet_deploy.svg import require_matplotlib; require_matplotlib()"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert "Unavailable: pictures are drawn with matplotlib, which can't be used here (built for another numpy)" in done.stderr
