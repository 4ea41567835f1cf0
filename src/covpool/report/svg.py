"""From a Matplotlib figure to SVG that stands in the page itself and takes its colours and fonts.

Figures are drawn with the sentinel colours of `COLOURS`, which become the page's CSS variables, so
that one drawing serves light, dark and print. Text stays text.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from covpool.text import printable

SERIES = 8
"""Colours for series; the style sheet defines --series-0 and so on, for light and dark."""

COLOURS = {
    "ink": ("#010203", "currentColor"),
    "muted": ("#010204", "var(--muted)"),
    "grid": ("#010205", "var(--grid)"),
    "surface": ("#010206", "var(--surface)"),
    **{f"series-{i}": (f"#0102{0x10 + i:02x}", f"var(--series-{i})") for i in range(SERIES)},
}
"""By name: what a figure is drawn with, and what the page shows instead."""

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "covpool",
    "text.parse_math": False,  # dollar signs in names are no mathematics
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "text.color": COLOURS["ink"][0],
    "axes.edgecolor": COLOURS["muted"][0],
    "axes.labelcolor": COLOURS["ink"][0],
    "xtick.color": COLOURS["muted"][0],
    "ytick.color": COLOURS["muted"][0],
    "xtick.labelcolor": COLOURS["ink"][0],
    "ytick.labelcolor": COLOURS["ink"][0],
    "grid.color": COLOURS["grid"][0],
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_SHOWN = dict(COLOURS.values())


def colour(name: str) -> str:
    """The sentinel to draw with for a name of `COLOURS`."""
    return COLOURS[name][0]


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, Matplotlib draws as the report needs it, whatever the user's own settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        # Its font is only measured with; the browser draws in one that has the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def inline(figure: Figure, prefix: str, label: str) -> Markup:
    """The figure as an `<svg>` element for a page of HTML.

    Args:
        figure: drawn within `drawing()`.
        prefix: of its ids, unique in the page.
        label: what assistive technology reads.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in [*root.iter()]:
        # Matplotlib's own style sheet would hold for the whole page.
        for child in [child for child in parent if child.tag.endswith(("metadata", "style"))]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        for name in set(element.attrib) & {"style", "d", "x", "y", "transform"}:
            element.set(name, _shown(element.attrib[name]))
        if "id" in element.attrib:
            element.set("id", f"{prefix}-{element.attrib['id']}")
        if (target := element.attrib.pop(_XLINK, None)) is not None:
            element.set("href", f"#{prefix}-{target.removeprefix('#')}")
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{prefix}-"))
        if element.tag != "text":
            element.text = None
        element.tail = None
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": printable(label)})
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _shown(value: str) -> str:
    """An attribute with the page's colours and fonts, and numbers with two decimals, a fiftieth of
    a pixel: half the size of a page is numbers."""
    value = re.sub("font-family: [^;]*;? ?", "", " ".join(value.split()))
    value = re.sub("#[0-9a-f]{6}", lambda found: _SHOWN.get(found[0], found[0]), value)
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
