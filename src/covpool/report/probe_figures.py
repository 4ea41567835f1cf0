"""Figures of what probes measured along training: smoothness, conditioning, sizes of K, and how far
gradients were from the exact one."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from markupsafe import Markup

from covpool.analysis import gradient_bounds
from covpool.experiments.inference import mean_by_place
from covpool.report.figures import (
    ALONE,
    THIN,
    WIDE,
    Missing,
    PageFigure,
    Styles,
    logarithmic,
    mark_switches,
    over_epochs,
    panel,
    plot,
    rows_beside,
    sample,
    title,
)
from covpool.report.groups import MethodRow, Setting
from covpool.report.series import (
    Points,
    Record,
    as_float,
    failures,
    median,
    median_by_epoch,
    probed,
    quantile,
    switch_epochs,
    switches,
)
from covpool.report.svg import colour
from covpool.text import shortened

BANDS = 3
"""As many methods get bands, which more would make one grey."""


def smoothness(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """Effective β-smoothness along training, as the paper's first figure."""
    heading = "Effective β-smoothness along training"
    measured = probed(setting, "smoothness")
    if not measured:
        return Missing.of_probe(heading, "smoothness")
    values = {
        row: [{r["step"]: as_float(r.get("smoothness")) for r in records} for records in runs]
        for row, runs in measured.items()
    }
    panels: list[Markup] = []
    with panel(panels, f"{name}-beta", heading, size=ALONE) as axes:
        for row, runs in measured.items():
            for points in values[row]:
                plot(axes, points, **styles.line(row) | THIN)
            medians = mean_by_place(map(_epoch_medians, runs))
            plot(axes, medians, **styles.line(row), linewidth=1.9)
        logarithmic(axes, "y", [v for runs in values.values() for p in runs for v in p.values()])
        mark_switches(axes, switches(chain(*measured.values()), "step"))
        over_epochs(axes, "β (low is smooth)", x="training step")
    return PageFigure(
        name=name,
        title=heading,
        panels=panels,
        legend=styles.legend(name, measured),
        about={
            "switched": any(row.hybrid for row in measured),
            "medians": {
                row.label: median(v for points in runs for v in points.values() if math.isfinite(v))
                for row, runs in values.items()
            },
            "failures": failures(setting, "smoothness"),
        },
    )


def _epoch_medians(records: Sequence[Record]) -> Points:
    """The median of each epoch, at the step of its middle measurement."""
    known = [r for r in records if math.isfinite(as_float(r.get("smoothness")))]
    medians = median_by_epoch(known, lambda record: as_float(record["smoothness"]))
    steps = {epoch: [r["step"] for r in known if r["epoch"] == epoch] for epoch in medians}
    return {steps[epoch][len(steps[epoch]) // 2]: value for epoch, value in medians.items()}


FIGURES = (
    (
        "of_features",
        "condition_number_of_range",
        "condition number of the features’ range",
    ),
    ("of_covariance", "condition_number_floored", "condition number as formed, floored at EPS"),
    ("of_features", "effective_rank", "effective rank"),
    ("of_features", "smallest_relative_gap", "smallest relative gap"),
)
"""Where a figure stands in a record, and the panel's title."""


def conditioning(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """Condition number, effective rank and smallest gap by epoch, as the paper's second table."""
    heading = "Conditioning by epoch"
    measured = {row: [*chain(*runs)] for row, runs in probed(setting, "conditioning").items()}
    if not measured:
        return Missing.of_probe(heading, "conditioning")
    banded = len(measured) <= BANDS
    panels: list[Markup] = []
    for way, figure, text in FIGURES:
        low, middle, high = (
            {row: median_by_epoch(own, _quantile(way, figure, q)) for row, own in measured.items()}
            for q in (0.05, 0.5, 0.95)
        )
        if not any(math.isfinite(v) for points in middle.values() for v in points.values()):
            continue
        with panel(panels, f"{name}-{figure}", f"{heading}: {text}") as axes:
            for row in measured:
                look = styles.line(row)
                upper = {e: v for e, v in high[row].items() if e in middle[row] and v < math.inf}
                plot(axes, middle[row], **look)
                if banded:
                    lower = [low[row][epoch] for epoch in upper]
                    band = {"color": look["color"], "alpha": 0.12, "linewidth": 0}
                    axes.fill_between([*upper], lower, [*upper.values()], **band)
                else:
                    plot(axes, upper, **look | THIN)
            if figure != "effective_rank":
                drawn = (low if banded else middle, high)
                logarithmic(
                    axes, "y", [v for d in drawn for points in d.values() for v in points.values()]
                )
            mark_switches(axes, switch_epochs(measured))
            over_epochs(axes, text)
    if not panels:
        return Missing(title=heading, why="The records of the conditioning probe hold no figures.")
    first = next(iter(measured.values()))[0]
    return PageFigure(
        name=name,
        title=heading,
        panels=panels,
        legend=styles.legend(name, measured),
        about={
            "channels": first.get("channels", "?"),
            "positions": first.get("positions", "?"),
            "banded": banded,
            "failures": failures(setting, "conditioning"),
        },
    )


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


def kernel_sizes(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """The sizes of each kernel on the covariances met in training, against their bounds."""
    heading = "The largest |K| met in training, and its bound"
    rows = [row for runs in probed(setting, "conditioning").values() for run in runs for row in run]
    if not rows:
        return Missing.of_probe(heading, "conditioning")
    records: dict[str, list[tuple[int, Record]]] = {}
    for row in rows:
        for method, sizes in (row.get("kernels") or {}).items():
            if sizes.get("largest"):
                records.setdefault(method, []).append((int(row["epoch"]), sizes))
    if not records:
        return Missing(title=heading, why="None of the methods measured has a kernel K.")
    bounds = {row.method: row.bound for row in gradient_bounds()}
    measured = {method: Sizes.of(own, bounds.get(method)) for method, own in records.items()}
    panels: list[Markup] = []

    with panel(panels, f"{name}-largest", heading) as axes:
        for method, sizes in measured.items():
            plot(axes, sizes.largest, **styles.line(method))
        logarithmic(axes, "y", [value for s in measured.values() for value in s.largest.values()])
        over_epochs(axes, "largest |K| of the epoch")

    if all(sizes.shares for sizes in measured.values()):
        with panel(panels, f"{name}-histogram", "Histogram of |K|") as axes:
            for method, sizes in measured.items():
                edges = range(min(sizes.shares), max(sizes.shares) + 2)
                heights = [sizes.shares.get(edge, 0.0) for edge in edges]
                look = styles.line(method) | {"marker": None}
                axes.step([10.0**edge for edge in edges], heights, where="post", **look)
            least = min(share for sizes in measured.values() for share in sizes.shares.values())
            logarithmic(axes, "y", [least, 1.0])
            axes.set_ylim(least / 2, 2)
            logarithmic(axes, "x", [10.0**p for s in measured.values() for p in s.shares] + [1.0])
            title(axes, "share of pairs by |K|", x="|K|")

    ring: dict[str, Any] = {"color": colour("ink"), "marker": "o", "linestyle": "none"}
    ring |= {"markerfacecolor": "none", "markeredgewidth": 0.9}
    size = (WIDE[0], 0.9 + 0.36 * len(measured))
    with panel(panels, f"{name}-bound", "|K| met against its bound", size=size) as axes:
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
        title(axes, "largest |K| met, and its bound")

    key = "bound (the paper’s Table 6), a triangle where there is none"
    return PageFigure(
        name=name,
        title=heading,
        panels=panels,
        legend=[*styles.legend(name, measured), (sample(f"{name}-bound-key", **ring, ms=8), key)],
        about={
            "measured": measured,
            "ties": sum(sizes.ties for sizes in measured.values()),
            "nonfinite": sum(sizes.nonfinite for sizes in measured.values()),
        },
    )


ROUNDING = 1e-9
"""A relative distance of gradients below which a method counts as exact."""

LEAST_DISTANCE = 1e-16
"""Where a distance of zero is drawn."""

APART = 4
"""Up to so many trained methods have a panel each; more are taken together."""

Trained = tuple[str, Sequence[MethodRow], Sequence[Record]]
"""What was trained, the setting's rows that are in it, and the records of all its runs."""


def real_fidelity(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """How far each method's gradient is from the exact one, on the covariances of the runs."""
    heading = "Gradient fidelity on the covariances of these runs"
    trained = _trained(setting)
    if not trained:
        return Missing.of_probe(heading, "fidelity")
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
    panels: list[Markup] = []
    for place, (label, rows, _) in enumerate(trained if drawn else ()):
        size = ALONE if len(trained) == 1 else WIDE
        about = f"{heading}: trained with {label}"
        with panel(panels, f"{name}-{place}", about, size=size) as axes:
            for method, found in drawn.items():
                plot(axes, found[place], **styles.line(method))
            logarithmic(axes, "y", limits)
            axes.set_ylim(*limits)
            mark_switches(axes, switch_epochs(rows))
            over_epochs(axes, shortened(f"relative distance, trained with {label}", 52))
    samples = sorted({int(record.get("samples", 0)) for record in records})
    figures = [each.get("relative_distance", {}) for r in records for each in r["methods"].values()]
    return PageFigure(
        name=name,
        title=heading,
        panels=panels,
        legend=styles.legend(name, drawn),
        about={
            "medians": {
                method: median(_figure(r, method, "relative_distance") for r in records)
                for method in drawn
            },
            "samples": " to ".join(map(str, dict.fromkeys((samples[0], samples[-1])))),
            "exact": exact,
            "rounding": ROUNDING,
            "lost": sum(int(figure.get("not_a_number") or 0) for figure in figures),
            "failures": failures(setting, "fidelity"),
        },
    )


def _trained(setting: Setting) -> list[Trained]:
    measured = probed(setting, "fidelity")
    known = {
        row: [record for record in chain(*runs) if isinstance(record.get("methods"), Mapping)]
        for row, runs in measured.items()
    }
    found: list[Trained] = [(row.label, [row], own) for row, own in known.items() if own]
    if len(found) <= APART:
        return found
    rows = [row for _, own, _ in found for row in own]
    return [(f"any of {len(found)} methods", rows, [*chain(*(own for _, _, own in found))])]


def _figure(record: Record, method: str, figure: str) -> float:
    return quantile(record["methods"].get(method, {}).get(figure), 0.5)
