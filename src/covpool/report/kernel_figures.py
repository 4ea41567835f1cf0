"""The figure of how large the gradient kernels K were along training, and could have been."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from covpool.analysis import gradient_bounds
from covpool.report.figures import (
    WIDE,
    Missing,
    PageFigure,
    Styles,
    logarithmic,
    over_epochs,
    panel,
    plot,
    rows_beside,
    sample,
    title,
)
from covpool.report.groups import Setting
from covpool.report.series import Points, Record, as_float, probed
from covpool.report.svg import colour


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What was measured of one method's K, over all epochs, runs and seeds.

    Attributes:
        largest: by epoch, the largest finite |K|.
        most: that of all epochs.
        limit: the largest bound on the covariances measured.
        bound: in general, the paper's Table 6; NaN where K has none.
        shares: of the pairs, by the lower edge of log10 |K|.
        ties: how many pairs were tied.
        nonfinite: entries of K that are not finite.
    """

    largest: Points
    most: float
    limit: float
    bound: float
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
        return cls(
            largest=largest,
            most=max(largest.values(), default=math.nan),
            limit=max((value for value in limits if not math.isnan(value)), default=math.nan),
            bound=math.nan if bound is None else bound,
            shares={edge: count / counts.total() for edge, count in counts.items() if count},
            ties=sum(int(each.get("ties") or 0) for _, each in records),
            nonfinite=sum(int(each.get("nonfinite") or 0) for _, each in records),
        )

    @property
    def bounded(self) -> bool:
        """Whether the method has a kernel with a bound, which may be infinite."""
        return not math.isnan(self.bound)

    @property
    def limited(self) -> bool:
        """Whether the covariances measured have a smaller bound than that."""
        return math.isfinite(self.limit) and self.limit < self.bound


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
        seen = [value for s in measured.values() for value in (s.most, s.bound)]
        positive = [value for value in seen if 0 < value < math.inf] or [1.0]
        limits = (min(positive) / 30, max(positive) * 1e3)
        axes.set(xscale="log", xlim=limits)
        for place, (method, sizes) in enumerate(measured.items()):
            axes.plot([sizes.most], [place], **styles.mark(method))
            if math.isinf(sizes.bound):  # at the edge, whatever the axis shows
                at = axes.get_yaxis_transform()
                axes.plot([0.97], [place], transform=at, clip_on=False, **{**ring, "marker": ">"})
            else:
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
