"""What the figures of runs share: records of probes, points by epoch, marks of switches."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes

from covpool.report.figures import Styles, sample
from covpool.report.groups import MethodRow, Setting
from covpool.report.sources import Run
from covpool.report.svg import colour

Points = dict[int, float]
"""Values by epoch or by step."""


def legend(rows: Iterable[MethodRow], styles: Styles, name: str) -> list[tuple[Any, str]]:
    """A sample for each row."""
    return [
        (sample(f"{name}-key{i}", **styles.of(row.method).line(hybrid=row.hybrid)), row.label)
        for i, row in enumerate(rows)
    ]


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


Record = Mapping[str, Any]


def probe_rows(run: Run, probe: str) -> list[Record]:
    """The run's records of a probe that hold figures."""
    return [
        row
        for row in run.analysis
        if row.get("probe") == probe and "error" not in row and isinstance(row.get("step"), int)
    ]


def failures(setting: Setting, probe: str) -> list[str]:
    """Says of measurements that failed, where any did."""
    texts = [
        str(row["error"])
        for run in setting.runs
        for row in run.analysis
        if row.get("probe") == probe and "error" in row
    ]
    if not texts:
        return []
    return [f"{len(texts)} measurements failed and are left out; the first: {texts[0]}"]


def as_float(value: Any) -> float:
    """A number of a record, where infinities and NaN are text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def median_by_epoch(rows: Iterable[Record], figure: Callable[[Record], float]) -> Points:
    """By epoch the median of a figure over the records that have it."""
    by_epoch: dict[int, list[float]] = {}
    for row in rows:
        value = figure(row)
        if not math.isnan(value):
            by_epoch.setdefault(int(row["epoch"]), []).append(value)
    return {epoch: statistics.median(own) for epoch, own in sorted(by_epoch.items())}


NO_PROBE = (
    "The runs were trained without the {probe} probe; --train.probes [{probe}] switches it on."
)


def quantile(distribution: object, place: int) -> float:
    """A quantile of a record's distribution; NaN where there is none."""
    quantiles = (distribution.get("quantiles") or ()) if isinstance(distribution, Mapping) else ()
    return as_float(quantiles[place]) if -len(quantiles) <= place < len(quantiles) else math.nan
