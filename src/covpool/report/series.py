"""What the figures of runs share: points by epoch, their means, and marks where methods switch."""

import math
import statistics
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes

from covpool.report.figures import Styles
from covpool.report.groups import MethodRow
from covpool.report.svg import colour

Points = dict[int, float]
"""Values by epoch or by step."""


def legend(rows: Iterable[MethodRow], styles: Styles, name: str) -> list[tuple[Any, str]]:
    """A sample for each row."""
    return [
        (styles.sample(f"{name}-key{i}", row.method, hybrid=row.hybrid), row.label)
        for i, row in enumerate(rows)
    ]


def mean_by_place(series: Iterable[Points]) -> Points:
    """The mean at each place over those series that have it."""
    values: dict[int, list[float]] = {}
    for points in series:
        for place, value in points.items():
            if math.isfinite(value):
                values.setdefault(place, []).append(value)
    return {place: statistics.fmean(own) for place, own in sorted(values.items())}


def plot(axes: Axes, points: Points, **style: Any) -> None:
    """Points in the order of their places."""
    places = sorted(points)
    axes.plot(places, [points[place] for place in places], **style)


def mark_switches(axes: Axes, switches: Iterable[float]) -> None:
    """A dotted line where the method switches."""
    for place in sorted(set(switches)):
        axes.axvline(place, color=colour("ink"), linestyle=":", linewidth=1.2, zorder=1)


def switch_epochs(rows: Iterable[MethodRow]) -> list[float]:
    found = set()
    for run in (run for row in rows for run in row.runs):
        for before, after in pairwise(run.history):
            if before["method"] != after["method"]:
                found.add(after["epoch"] - 0.5)
    return sorted(found)
