"""Figures of what probes measured along training: smoothness, conditioning, sizes of K, and how far
gradients were from the exact one."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from covpool.analysis import gradient_bounds
from covpool.experiments.inference import mean_by_place
from covpool.report.figures import (
    ALONE,
    THIN,
    WIDE,
    PageFigure,
    logarithmic,
    mark_switches,
    plot,
    rows_beside,
    sample,
)
from covpool.report.groups import MethodRow
from covpool.report.series import (
    Points,
    Record,
    as_float,
    median,
    median_by_epoch,
    quantile,
    switch_epochs,
    switches,
)
from covpool.report.svg import colour
from covpool.text import shortened

BANDS = 3
"""As many methods get bands, which more would make one grey."""


def smoothness(figure: PageFigure) -> None:
    """Effective β-smoothness along training, as the paper's first figure."""
    measured, styles = figure.measured, figure.styles
    values = {
        row: [{r["step"]: as_float(r.get("smoothness")) for r in records} for records in runs]
        for row, runs in measured.items()
    }
    with figure.panel("β (low is smooth)", x="training step", size=ALONE) as axes:
        for row, runs in measured.items():
            for points in values[row]:
                plot(axes, points, **styles.line(row) | THIN)
            medians = mean_by_place(map(_epoch_medians, runs))
            plot(axes, medians, **styles.line(row), linewidth=1.9)
        logarithmic(axes, "y", [v for runs in values.values() for p in runs for v in p.values()])
        mark_switches(axes, switches(chain(*measured.values()), "step"))
    figure.legend = styles.legend(figure.name, measured)
    figure.about |= {
        "switched": any(row.hybrid for row in measured),
        "medians": {
            row.label: median(v for points in runs for v in points.values() if math.isfinite(v))
            for row, runs in values.items()
        },
    }


def _epoch_medians(records: Sequence[Record]) -> Points:
    """The median of each epoch, at the step of its middle measurement."""
    known = [r for r in records if math.isfinite(as_float(r.get("smoothness")))]
    medians = median_by_epoch(known, lambda record: as_float(record["smoothness"]))
    steps = {epoch: [r["step"] for r in known if r["epoch"] == epoch] for epoch in medians}
    return {steps[epoch][len(steps[epoch]) // 2]: value for epoch, value in medians.items()}


FIGURES = (
    ("of_features", "condition_number_of_range", "condition number of the features’ range"),
    ("of_covariance", "condition_number_floored", "condition number as formed, floored at EPS"),
    ("of_features", "effective_rank", "effective rank"),
    ("of_features", "smallest_relative_gap", "smallest relative gap"),
)
"""Where a figure stands in a record, and the panel's title."""


def conditioning(figure: PageFigure) -> None:
    """Condition number, effective rank and smallest gap by epoch, as the paper's second table."""
    measured = {row: [*chain(*runs)] for row, runs in figure.measured.items()}
    banded = len(measured) <= BANDS
    for way, name, text in FIGURES:
        low, middle, high = (
            {row: median_by_epoch(own, _quantile(way, name, q)) for row, own in measured.items()}
            for q in (0.05, 0.5, 0.95)
        )
        if not any(math.isfinite(v) for points in middle.values() for v in points.values()):
            continue
        with figure.panel(text) as axes:
            for row in measured:
                look = figure.styles.line(row)
                upper = {e: v for e, v in high[row].items() if e in middle[row] and v < math.inf}
                plot(axes, middle[row], **look)
                if banded:
                    lower = [low[row][epoch] for epoch in upper]
                    band = {"color": look["color"], "alpha": 0.12, "linewidth": 0}
                    axes.fill_between([*upper], lower, [*upper.values()], **band)
                else:
                    plot(axes, upper, **look | THIN)
            if name != "effective_rank":
                drawn = (low if banded else middle, high)
                logarithmic(
                    axes, "y", [v for d in drawn for points in d.values() for v in points.values()]
                )
            mark_switches(axes, switch_epochs(measured))
    if not figure.panels:
        figure.missing = "The records of the conditioning probe hold no figures."
    first = next(iter(measured.values()))[0]
    figure.legend = figure.styles.legend(figure.name, measured)
    figure.about |= {
        "channels": first.get("channels", "?"),
        "positions": first.get("positions", "?"),
        "banded": banded,
    }


def _quantile(way: str, figure: str, share: float) -> Callable[[Record], float]:
    return lambda record: quantile(record.get(way, {}).get(figure), share)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What was measured of one method's K, over all epochs, runs and seeds.

    Attributes:
        largest: by epoch, the largest finite |K|.
        most: that of all epochs.
        bound: the largest possible, the paper's Table 6; None where K has none.
        limit: that on the covariances measured; None where it is no smaller.
        shares: of the pairs, by the lower edge of log10 |K|.
        ties: how many pairs were tied.
        nonfinite: entries of K that are not finite.
    """

    largest: Points
    most: float
    bound: float | None
    limit: float | None
    shares: Points
    ties: int
    nonfinite: int

    @classmethod
    def of(cls, records: Sequence[tuple[int, Record]], bound: float | None) -> "Sizes":
        """From the records of a method, each with its epoch."""
        largest: Points = {}
        counts: Counter[int] = Counter()
        for epoch, each in records:
            for value in map(as_float, each["largest"].get("quantiles") or ()):
                if math.isfinite(value):
                    largest[epoch] = max(value, largest.get(epoch, value))
            edges = each.get("log10_edges") or ()
            counts.update(dict(zip(edges, map(int, each.get("histogram") or ()), strict=False)))
        limits = [as_float(each.get("bound")) for _, each in records]
        limit = max((value for value in limits if not math.isnan(value)), default=math.inf)
        return cls(
            largest=largest,
            most=max(largest.values(), default=math.nan),
            bound=bound,
            limit=limit if bound is not None and limit < bound else None,
            shares={edge: count / counts.total() for edge, count in counts.items() if count},
            ties=sum(int(each.get("ties") or 0) for _, each in records),
            nonfinite=sum(int(each.get("nonfinite") or 0) for _, each in records),
        )


def kernel_sizes(figure: PageFigure) -> None:
    """The sizes of each kernel on the covariances met in training, against their bounds."""
    styles = figure.styles
    records: dict[str, list[tuple[int, Record]]] = {}
    for row in chain(*chain(*figure.measured.values())):
        for method, sizes in (row.get("kernels") or {}).items():
            if sizes.get("largest"):
                records.setdefault(method, []).append((int(row["epoch"]), sizes))
    if not records:
        figure.missing = "None of the methods measured has a kernel K."
        return
    bounds = {row.method: row.bound for row in gradient_bounds()}
    measured = {method: Sizes.of(own, bounds.get(method)) for method, own in records.items()}

    with figure.panel("largest |K| of the epoch") as axes:
        for method, sizes in measured.items():
            plot(axes, sizes.largest, **styles.line(method))
        logarithmic(axes, "y", [value for s in measured.values() for value in s.largest.values()])

    if all(sizes.shares for sizes in measured.values()):
        with figure.panel("share of pairs by |K|", x="|K|") as axes:
            for method, sizes in measured.items():
                edges = range(min(sizes.shares), max(sizes.shares) + 2)
                heights = [sizes.shares.get(edge, 0.0) for edge in edges]
                look = styles.line(method) | {"marker": None}
                axes.step([10.0**edge for edge in edges], heights, where="post", **look)
            least = min(share for sizes in measured.values() for share in sizes.shares.values())
            logarithmic(axes, "y", [least, 1.0])
            axes.set_ylim(least / 2, 2)
            logarithmic(axes, "x", [10.0**p for s in measured.values() for p in s.shares] + [1.0])

    ring: dict[str, Any] = {"color": colour("ink"), "marker": "o", "linestyle": "none"}
    ring |= {"markerfacecolor": "none", "markeredgewidth": 0.9}
    size = (WIDE[0], 0.9 + 0.36 * len(measured))
    with figure.panel("largest |K| met, and its bound", x="", size=size) as axes:
        seen = [value for s in measured.values() for value in (s.most, s.bound or 0.0)]
        positive = [value for value in seen if 0 < value < math.inf] or [1.0]
        limits = (min(positive) / 30, max(positive) * 1e3)
        axes.set(xscale="log", xlim=limits)
        for place, (method, sizes) in enumerate(measured.items()):
            axes.plot([sizes.most], [place], **styles.mark(method))
            if sizes.bound == math.inf:  # at the edge, whatever the axis shows
                at = axes.get_yaxis_transform()
                axes.plot([0.97], [place], transform=at, clip_on=False, **{**ring, "marker": ">"})
            elif sizes.bound is not None:
                axes.plot([sizes.bound], [place], **ring, ms=9)
        logarithmic(axes, "x", limits)
        rows_beside(axes, [*measured])

    key = "bound (the paper’s Table 6), a triangle where there is none"
    bound = sample(f"{figure.name}-bound-key", **ring, ms=8)
    figure.legend = [*styles.legend(figure.name, measured), (bound, key)]
    figure.about |= {
        "measured": measured,
        "ties": sum(sizes.ties for sizes in measured.values()),
        "nonfinite": sum(sizes.nonfinite for sizes in measured.values()),
    }


ROUNDING = 1e-9
"""A relative distance of gradients below which a method counts as exact."""

LEAST_DISTANCE = 1e-16
"""Where a distance of zero is drawn."""

APART = 4
"""Up to so many trained methods have a panel each; more are taken together."""

Trained = tuple[str, Sequence[MethodRow], Sequence[Record]]
"""What was trained, the setting's rows that are in it, and the records of all its runs."""


def real_fidelity(figure: PageFigure) -> None:
    """How far each method's gradient is from the exact one, on the covariances of the runs."""
    trained = _trained(figure)
    if not trained:
        figure.missing = "The records of the fidelity probe hold no figures."
        return
    records = [record for _, _, own in trained for record in own]
    distances = {
        method: [
            median_by_epoch(own, lambda r, m=method: _figure(r, m, "relative_distance"))
            for _, _, own in trained
        ]
        for method in dict.fromkeys(method for record in records for method in record["methods"])
    }
    exact = [
        method
        for method, found in distances.items()
        if all(points and max(points.values()) < ROUNDING for points in found)
    ]
    drawn = {
        method: [{e: max(value, LEAST_DISTANCE) for e, value in p.items()} for p in found]
        for method, found in distances.items()
        if method not in exact
    }
    values = [v for found in drawn.values() for p in found for v in p.values() if math.isfinite(v)]
    limits = (min(values) / 2, max(values) * 2) if values else (LEAST_DISTANCE, 1.0)
    for place, (label, rows, _) in enumerate(trained if drawn else ()):
        size = ALONE if len(trained) == 1 else WIDE
        beside = shortened(f"relative distance, trained with {label}", 52)
        with figure.panel(beside, size=size, label=f"trained with {label}") as axes:
            for method, found in drawn.items():
                plot(axes, found[place], **figure.styles.line(method))
            logarithmic(axes, "y", limits)
            axes.set_ylim(*limits)
            mark_switches(axes, switch_epochs(rows))
    samples = sorted({int(record.get("samples", 0)) for record in records})
    figures = [each.get("relative_distance", {}) for r in records for each in r["methods"].values()]
    figure.legend = figure.styles.legend(figure.name, drawn)
    figure.about |= {
        "medians": {
            method: median(_figure(r, method, "relative_distance") for r in records)
            for method in drawn
        },
        "samples": " to ".join(map(str, dict.fromkeys((samples[0], samples[-1])))),
        "exact": exact,
        "rounding": ROUNDING,
        "lost": sum(int(each.get("not_a_number") or 0) for each in figures),
    }


def _trained(figure: PageFigure) -> list[Trained]:
    known = {
        row: [record for record in chain(*runs) if isinstance(record.get("methods"), Mapping)]
        for row, runs in figure.measured.items()
    }
    found: list[Trained] = [(row.label, [row], own) for row, own in known.items() if own]
    if len(found) <= APART:
        return found
    rows = [row for _, own, _ in found for row in own]
    return [(f"any of {len(found)} methods", rows, [*chain(*(own for _, _, own in found))])]


def _figure(record: Record, method: str, figure: str) -> float:
    return quantile(record["methods"].get(method, {}).get(figure), 0.5)
