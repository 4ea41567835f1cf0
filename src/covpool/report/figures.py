"""What all figures of the report share: panels, the styles of methods, axes, legends."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from covpool.poolings import POOLINGS
from covpool.report.groups import MethodRow, Setting
from covpool.report.numbers import power_of_ten
from covpool.report.series import Points, Record
from covpool.report.svg import SERIES, colour, drawing, inline
from covpool.text import printable, shortened

ALONE, WIDE, SMALL = (4.8, 3.1), (4.3, 2.9), (2.3, 1.9)
"""Sizes of panels in inches at 72 units: on a phone text is then about as large as it was drawn."""

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "<", ">", "*", "h", "d", "8")

THIN: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.45, "marker": None}
"""How a line is drawn that is not a mean or a median, over the method's own look."""

AXIS = 26
"""How many characters fit beside an axis."""


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

    def line(self, row: MethodRow | str) -> dict[str, Any]:
        """Arguments of `Axes.plot` for a row of runs, or for a method, known or not.

        A hybrid's line is dashed and its markers are hollow.
        """
        method, hybrid = (row, False) if isinstance(row, str) else (row.method, row.hybrid)
        place = self.places.setdefault(method, len(self.places))
        color = colour(f"series-{place % SERIES}")
        dashes = "-" if place < SERIES else (0, (7, 1.5, 1, 1.5))
        return {
            "color": color,
            "marker": MARKERS[place % len(MARKERS)],
            "markerfacecolor": colour("surface") if hybrid else color,
            "linestyle": (0, (4, 2)) if hybrid else dashes,
        }

    def mark(self, row: MethodRow | str) -> dict[str, Any]:
        """Arguments of `Axes.plot` for a single value of it."""
        return {**self.line(row), "linestyle": "none", "markersize": 7}

    def legend(self, figure: str, rows: Iterable[MethodRow | str]) -> list[tuple[Markup, str]]:
        """A short line as in the figure of that name for each row or method, and its name."""
        return [
            (sample(f"{figure}-key{i}", **self.line(row)), getattr(row, "label", str(row)))
            for i, row in enumerate(rows)
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


WHOLE = ("epoch", "training step")
"""Horizontal axes with ticks at whole numbers."""


@dataclass(kw_only=True)
class PageFigure:
    """A figure of the page, which a function of this package fills.

    Attributes:
        name: its id in the page.
        title: what it is of.
        setting: whose runs are drawn.
        styles: of their methods.
        measured: by row, the records of the figure's probe of each run that has any.
        panels: its drawings, side by side where there is room.
        legend: sample and text of each series.
        about: what its caption tells; see captions.html.jinja.
        small: whether the panels are many and small.
        missing: why there is nothing to draw; empty where there is.
    """

    name: str
    title: str
    setting: Setting
    styles: Styles
    measured: Mapping[MethodRow, Sequence[Sequence[Record]]] = field(default_factory=dict)
    panels: list[Markup] = field(default_factory=list)
    legend: Sequence[tuple[Markup, str]] = ()
    about: dict[str, Any] = field(default_factory=dict)
    small: bool = False
    missing: str = ""

    @contextmanager
    def panel(
        self, text: str, *, x: str = "epoch", size: tuple[float, float] = WIDE, label: str = ""
    ) -> Iterator[Axes]:
        """Axes to draw on; the drawing is the next one of the panels.

        Args:
            text: the name of the vertical axis.
            x: that of the horizontal one.
            size: in inches.
            label: what assistive technology reads in place of the text.
        """
        with drawing():
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots()
            title(axes, text, x=x)
            if x in WHOLE:
                whole = MaxNLocator(nbins=6, integer=True, min_n_ticks=1)
                axes.xaxis.set_major_locator(whole)
            yield axes
            name = f"{self.name}-{len(self.panels)}"
            self.panels.append(inline(figure, name, f"{self.title}: {label or text}"))


def plot(axes: Axes, points: Points, **look: Any) -> None:
    """Points in the order of their places."""
    places = sorted(points)
    axes.plot(places, [points[place] for place in places], **look)


def mark_switches(axes: Axes, switches: Iterable[float]) -> None:
    """A dotted line where the method switches."""
    for place in switches:
        axes.axvline(place, color=colour("ink"), linestyle=":", linewidth=1.2, zorder=1)


def title(axes: Axes, text: str, *, x: str = "") -> None:
    """Name the vertical axis above it, where its name stands level, and the horizontal one."""
    axes.set_title(printable(text), fontsize=10, x=0)
    axes.set_xlabel(x)


def rows_beside(axes: Axes, labels: Sequence[str]) -> None:
    """Make the vertical axis one of rows, the first at the top."""
    axes.set_yticks(range(len(labels)), [shortened(label, AXIS) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


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
