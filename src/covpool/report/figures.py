"""What all figures of the report share: panels, the styles of methods, axes, legends."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from covpool.poolings import POOLINGS
from covpool.report.svg import SERIES, colour, drawing, inline
from covpool.report.tables import PageTable
from covpool.text import printable, shortened

ALONE, WIDE, SMALL = (4.8, 3.1), (4.3, 2.9), (2.3, 1.9)
"""Sizes of panels in inches at 72 units: on a phone text is then about as large as it was drawn."""

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "<", ">", "*", "h", "d", "8")

AXIS = 26
"""How many characters fit beside an axis."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True)
class PageFigure:
    """A figure of the page.

    Attributes:
        name: its id in the page.
        title: what it is of.
        panels: its drawings, side by side where there is room.
        legend: sample and text of each series.
        seen: what it shows, a sentence or more each.
        not_shown: what must not be read from it.
        small: whether the panels are many and small.
        table: its figures in numbers.
    """

    name: str
    title: str
    panels: Sequence[Markup]
    legend: Sequence[tuple[Markup, str]] = ()
    seen: Sequence[str] = ()
    not_shown: Sequence[str] = ()
    small: bool = False
    table: PageTable | None = None


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A figure that there is no data for, and what would give some."""

    title: str
    why: str


@dataclass
class Style:
    """How a method is drawn."""

    color: str
    marker: str
    dashes: Any = "-"

    def line(self, *, hybrid: bool = False) -> dict[str, Any]:
        """Arguments of `Axes.plot`; a hybrid's line is dashed and its markers are hollow."""
        face = colour("surface") if hybrid else self.color
        dashes = (0, (4, 2)) if hybrid else self.dashes
        return {
            "color": self.color,
            "marker": self.marker,
            "markerfacecolor": face,
            "linestyle": dashes,
        }


@dataclass
class Styles:
    """A colour and a marker for each method, the same in all figures of a page.

    Args:
        methods: those of the runs, which get colours of their own as long as there are any.
    """

    methods: Iterable[str] = ()
    places: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        names = dict.fromkeys([*self.methods, *POOLINGS])
        self.places = {name: place for place, name in enumerate(names)}

    def of(self, method: str) -> Style:
        """The style of a method, known or not."""
        place = self.places.setdefault(method, len(self.places))
        return Style(
            color=colour(f"series-{place % SERIES}"),
            marker=MARKERS[place % len(MARKERS)],
            dashes="-" if place < SERIES else (0, (7, 1.5, 1, 1.5)),
        )

    def legend(self, figure: str, methods: Iterable[str]) -> list[tuple[Markup, str]]:
        """A short line as in the figure of that name for each method, and the method's name."""
        return [
            (sample(f"{figure}-key{place}", **self.of(method).line()), method)
            for place, method in enumerate(methods)
        ]


def sample(name: str, **look: Any) -> Markup:
    """A short line with a marker, drawn with these arguments of `Axes.plot`, for a legend."""
    return Markup(_sample(tuple(look.items())).replace(_SAMPLE, name))


_SAMPLE = "legend-sample"


@cache
def _sample(look: tuple[tuple[str, Any], ...]) -> str:
    with drawing():
        figure = Figure(figsize=(0.42, 0.17))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 2), ylim=(-1, 1))
        axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **dict(look))
        return str(inline(figure, _SAMPLE, ""))


def panel(
    name: str,
    label: str,
    draw: Callable[[Axes], object],
    *,
    size: tuple[float, float] = WIDE,
) -> Markup:
    """One drawing, filled by `draw`."""
    with drawing():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        return inline(figure, name, label)


def title(axes: Axes, text: str, *, x: str = "") -> None:
    """Name the vertical axis above it, where its name stands level, and the horizontal one."""
    axes.set_title(printable(text), fontsize=10, x=0)
    axes.set_xlabel(x)


def over_epochs(axes: Axes, text: str, *, x: str = "epoch") -> None:
    """Name both axes, the lower one with ticks at whole numbers."""
    title(axes, text, x=x)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def rows_beside(axes: Axes, labels: Sequence[str]) -> None:
    """Make the vertical axis one of rows, the first at the top."""
    axes.set_yticks(range(len(labels)), [shortened(label, AXIS) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def ring(size: float) -> dict[str, Any]:
    """How a figure that stands beside ours is drawn, the paper's or a bound: arguments of
    `Axes.plot`."""
    thin = {"mfc": "none", "mew": 0.9, "linestyle": "none"}
    return {"color": colour("ink"), "marker": "o", "ms": size, **thin}


def mark_bound(axes: Axes, bound: float, place: float, look: Mapping[str, Any]) -> None:
    """A mark at a bound; a triangle at the edge, whatever the axis shows, where it is infinite."""
    if math.isinf(bound):
        at = axes.get_yaxis_transform()
        axes.plot([0.97], [place], transform=at, clip_on=False, **{**look, "marker": ">"})
    else:
        axes.plot([bound], [place], **look)


def logarithmic(axes: Axes, which: str, values: Iterable[float]) -> None:
    """Log scale of the axis "x" or "y", with ticks that name few round numbers.

    Values that differ little keep a linear one, as a log scale would have no round numbers.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    positive = [value for value in values if 0 < value < math.inf]
    if positive and max(positive) / min(positive) < 3:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
        axis.set_major_locator(MaxNLocator(nbins=5))
        return
    axes.set(**{f"{which}scale": "log"})
    if positive and max(positive) / min(positive) < 50:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_major_locator(LogLocator(numticks=7))
        axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axis.set_minor_locator(NullLocator())


def power_of_ten(value: float) -> str:
    """10⁻³ for 0.001; nothing for what is none."""
    if not 0 < value < math.inf:
        return ""
    exponent = math.log10(value)
    if abs(exponent - round(exponent)) > 1e-6:
        return ""
    return f"10{str(round(exponent)).translate(_SUPERSCRIPTS)}"


def number(value: float) -> str:
    """A figure for people: 4.55·10¹⁷, 86.9, ∞."""
    if math.isinf(value):
        return "∞"
    if math.isnan(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return f"{value:.3g}"


def names(values: Iterable[str], most: int = 7) -> str:
    """a, b and c; of more than so many, the first and how many others there are."""
    found = list(values)
    if len(found) > most:
        found = [*found[: most - 1], f"{len(found) - most + 1} others"]
    *first, last = found
    return f"{', '.join(first)} and {last}" if first else last
