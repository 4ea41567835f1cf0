"""The figure of how large the gradient kernels K were along training, and could have been."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from covpool.analysis import gradient_bounds
from covpool.report.figures import (
    WIDE,
    Missing,
    PageFigure,
    Styles,
    logarithmic,
    mark_bound,
    number,
    over_epochs,
    panel,
    ring,
    rows_beside,
    sample,
    title,
)
from covpool.report.groups import Setting
from covpool.report.series import NO_PROBE, Points, Record, as_float, plot, probe_rows


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What was measured of one method's K, over all epochs, runs and seeds.

    Attributes:
        largest: by epoch, the largest finite |K|.
        limit: the largest bound on the covariances measured.
        bound: in general, the paper's Table 6.
        histogram: share of the pairs by the lower edge of log10 |K|.
        pairs: how many entered the gradient.
        ties: how many of them were tied.
        nonfinite: entries of K that are not finite.
    """

    largest: Points
    limit: float
    bound: float
    histogram: Points
    pairs: int
    ties: int
    nonfinite: int

    @classmethod
    def of(cls, method: str, records: Sequence[tuple[int, Record]]) -> "Sizes":
        """From the records of the method, each with its epoch."""
        bounds = {row.method: row.bound for row in gradient_bounds()}
        counts: dict[int, int] = {}
        largest: Points = {}
        for epoch, each in records:
            finite = [
                value
                for value in map(as_float, each["largest"].get("quantiles") or ())
                if math.isfinite(value)
            ]
            if finite:
                largest[epoch] = max(max(finite), largest.get(epoch, -math.inf))
            edges = each.get("log10_edges") or ()
            for edge, count in zip(edges, each.get("histogram") or (), strict=False):
                counts[edge] = counts.get(edge, 0) + int(count)
        pairs = sum(counts.values())
        limits = [value for _, r in records if not math.isnan(value := as_float(r.get("bound")))]
        bound = bounds.get(method)
        return cls(
            largest=largest,
            limit=max(limits, default=math.nan),
            bound=math.nan if bound is None else bound,
            histogram={edge: count / pairs for edge, count in counts.items() if count},
            pairs=pairs,
            ties=sum(int(each.get("ties") or 0) for _, each in records),
            nonfinite=sum(int(each.get("nonfinite") or 0) for _, each in records),
        )

    @property
    def most(self) -> float:
        """The largest finite |K| of all epochs."""
        return max(self.largest.values(), default=math.nan)


def kernel_sizes(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """The sizes of each kernel on the covariances met in training, against their bounds."""
    heading = "The largest |K| met in training, and its bound"
    records: dict[str, list[tuple[int, Record]]] = {}
    for run in setting.runs:
        for row in probe_rows(run, "conditioning"):
            for method, sizes in (row.get("kernels") or {}).items():
                if sizes.get("largest"):
                    records.setdefault(method, []).append((int(row["epoch"]), sizes))
    if not records:
        probed = any(probe_rows(run, "conditioning") for run in setting.runs)
        why = "None of the methods measured has a kernel K." if probed else NO_PROBE
        return Missing(title=heading, why=why.format(probe="conditioning"))
    measured = {method: Sizes.of(method, own) for method, own in records.items()}

    def along(axes: Axes) -> None:
        for method, sizes in measured.items():
            plot(axes, sizes.largest, **styles.of(method).line())
        logarithmic(axes, "y", [value for s in measured.values() for value in s.largest.values()])
        over_epochs(axes, "largest |K| of the epoch")

    def shares(axes: Axes) -> None:
        for method, sizes in measured.items():
            look = {**styles.of(method).line(), "marker": None}
            bins = sorted(sizes.histogram)
            places = range(bins[0], bins[-1] + 2)
            heights = [sizes.histogram.get(place, 0.0) for place in places]
            axes.step([10.0**place for place in places], heights, where="post", **look)
        least = min(share for s in measured.values() for share in s.histogram.values())
        logarithmic(axes, "y", [least, 1.0])
        axes.set_ylim(least / 2, 2)
        logarithmic(axes, "x", [10.0**p for s in measured.values() for p in s.histogram] + [1.0])
        title(axes, "share of pairs by |K|", x="|K|")

    panels = [panel(f"{name}-largest", heading, along, size=WIDE)]
    if all(sizes.histogram for sizes in measured.values()):
        panels.append(panel(f"{name}-histogram", "Histogram of |K|", shares, size=WIDE))
    size = (WIDE[0], 0.9 + 0.36 * len(measured))
    bounds = panel(
        f"{name}-bound",
        "|K| met against its bound",
        lambda axes: _draw_bounds(axes, measured, styles),
        size=size,
    )
    ties = sum(sizes.ties for sizes in measured.values())
    nonfinite = sum(sizes.nonfinite for sizes in measured.values())
    return PageFigure(
        name=name,
        title=heading,
        panels=[*panels, bounds],
        legend=[
            *styles.legend(name, measured),
            (
                sample(f"{name}-key-bound", **ring(8)),
                "bound (the paper’s Table 6), a triangle where there is none",
            ),
        ],
        seen=[
            "The entries of K ≈ 1/(λᵢ − λⱼ) on the covariances measured, of all seeds and of all "
            "runs that measured them: the largest finite one of each epoch; how the pairs of "
            "eigenvalues are distributed over its size; and the largest of all, beside the bound "
            "that the method has where eigenvalues below EPS count as EPS. Where lines coincide, "
            "the last hides the others.",
            "; ".join(_size_text(method, sizes) for method, sizes in measured.items()) + ".",
            f"{ties or 'No'} pairs of tied eigenvalues were met, {nonfinite or 'no'} entries that "
            "are not finite.",
        ],
        not_shown=[
            "K reaches the gradient multiplied by the difference of the eigenvalues' roots, which "
            "is small where K is large: a large K alone is no large gradient.",
            "Steps between measurements are not seen.",
        ],
    )


def _draw_bounds(axes: Axes, measured: Mapping[str, Sizes], styles: Styles) -> None:
    seen = []
    for place, (method, sizes) in enumerate(measured.items()):
        style = styles.of(method)
        axes.plot([sizes.most], [place], style.marker, color=style.color, ms=7)
        seen.append(sizes.most)
        if not math.isnan(sizes.bound):
            mark_bound(axes, sizes.bound, place, ring(9))
            seen.append(sizes.bound)
    positive = [value for value in seen if 0 < value < math.inf] or [1.0]
    low, high = min(positive) / 30, max(positive) * 1e3
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    logarithmic(axes, "x", [low, high])
    rows_beside(axes, [*measured])
    title(axes, "largest |K| met, and its bound")


def _size_text(method: str, sizes: Sizes) -> str:
    text = f"{method}: largest {number(sizes.most)}"
    if not math.isnan(sizes.bound):
        text += f", bound {number(sizes.bound)}"
        if math.isfinite(sizes.limit) and sizes.limit < sizes.bound:
            text += f" ({number(sizes.limit)} on these covariances)"
    return text
