"""Drawings inside the page: matplotlib's SVG, in the page's own colours.

Colours are those of the page's style sheet, which knows a light, a dark and a printed form: a
drawing is made in stand-ins, and each becomes ``var(--...)``. No script is needed: a point that
stands for somebody shows its name by CSS while the pointer is over it. Ids are made unique, for a
page holds many drawings.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

INK, GRID, MUTED = "#010203", "#010204", "#010205"
SERIES = tuple(f"#0102{n:02x}" for n in range(0x10, 0x18))
GOOD, BAD = "#010220", "#010221"
VARIABLES = {
    INK: "ink", GRID: "line", MUTED: "muted", GOOD: "good", BAD: "bad",
    **{stand_in: f"series-{n}" for n, stand_in in enumerate(SERIES)},
}  # fmt: skip
MARKERS = "osD^vPX*"
"""of series, so that no drawing depends on colours alone"""
WIDTH, HEIGHT = 4.4, 3.2
"""inches: so narrow that letters stay readable on a phone"""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "pal", "font.size": 10, "font.family": "sans-serif",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": INK,
    "ytick.color": INK, "grid.color": GRID, "axes.spines.top": False, "axes.spines.right": False,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "legend.frameon": False, "legend.fontsize": 9, "axes.grid": True, "axes.axisbelow": True,
    "text.parse_math": False,
}  # fmt: skip
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_numbers = count()


class Drawing:
    """A plane to draw on, and the names of its points."""

    def __init__(self, figure: Figure, plane: Axes) -> None:
        self.figure, self.plane = figure, plane
        self._names: dict[str, Sequence[str]] = {}

    def points(
        self,
        x: ArrayLike,
        y: ArrayLike,
        names: Sequence[str],
        colour: str,
        marker: str = "o",
        label: str | None = None,
    ) -> None:
        """Draw points that tell their names."""
        group = f"named{len(self._names)}"
        self._names[group] = names
        self.plane.scatter(
            x, y, s=26, color=colour, marker=marker, alpha=0.75, linewidths=0.5, gid=group,
            label=label, zorder=3, clip_on=False,
        )  # fmt: skip

    def svg(self) -> str:
        """Return the drawing as SVG to stand inside HTML."""
        stream = io.StringIO()
        self.figure.savefig(stream, format="svg")
        return _inline(stream.getvalue(), self._names)


@contextmanager
def drawing(height: float = HEIGHT, width: float = WIDTH) -> Iterator[Drawing]:
    """Yield a plane of so many inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):  # type: ignore[arg-type]
        figure, plane = pyplot.subplots(figsize=(width, height), layout="constrained")
        try:
            yield Drawing(figure, plane)
        finally:
            pyplot.close(figure)


def series(number: int) -> tuple[str, str]:
    """Return colour and marker of a series."""
    return SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]


def _inline(text: str, names: Mapping[str, Sequence[str]]) -> str:
    root = ElementTree.fromstring(text)
    for group, told in names.items():
        _name_points(root, group, told)
    for parent in (root, *root.iter(f"{SVG}defs")):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style"):  # a style would be the whole page's
                parent.remove(child)
    prefix = f"d{next(_numbers)}-"
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        found = dict(element.attrib)
        element.attrib.clear()
        for key, value in found.items():
            plain = key.removeprefix(XLINK)
            if plain == "id" or (plain == "href" and value.startswith("#")):
                value = value.replace("#", "#" + prefix) if plain == "href" else prefix + value
            element.set(plain, value.replace("url(#", f"url(#{prefix}"))
    width = root.get("width", "0").removesuffix("pt")
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("style", f"max-width:{float(width):.0f}pt")
    root.set("aria-hidden", "true")  # the picture around it says what it shows
    root.set("focusable", "false")
    markup = ElementTree.tostring(root, encoding="unicode")
    return re.sub("|".join(VARIABLES), lambda found: f"var(--{VARIABLES[found.group()]})", markup)


def _name_points(root: ElementTree.Element, group: str, names: Sequence[str]) -> None:
    """Give each point of a group its name, which CSS shows while the pointer is over it."""
    middle = float((root.get("viewBox") or "0 0 0 0").split()[2]) / 2.0
    (found,) = [one for one in root.iter(f"{SVG}g") if one.get("id") == group]
    parents = {child: parent for parent in found.iter() for child in parent}
    for point, name in zip(list(found.iter(f"{SVG}use")), names, strict=True):
        parent, place = parents[point], list(parents[point]).index(point)
        parent.remove(point)
        named = ElementTree.Element(f"{SVG}g", {"class": "point"})
        x, y = float(point.get("x", 0)), float(point.get("y", 0))
        side, shift = ("start", 8.0) if x < middle else ("end", -8.0)
        text = ElementTree.Element(
            f"{SVG}text", {"x": f"{x + shift:.1f}", "y": f"{y - 6.0:.1f}", "text-anchor": side}
        )
        text.text = name
        named.extend([point, text])
        parent.insert(place, named)
