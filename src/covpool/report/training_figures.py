"""Figures of runs: learning curves, accuracy by method, smoothness and conditioning."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from covpool.report.figures import (
    ALONE,
    SMALL,
    WIDE,
    Missing,
    PageFigure,
    Styles,
    logarithmic,
    names,
    number,
    panel,
    shortened,
    title,
    whole_numbers,
)
from covpool.report.groups import MethodRow, Setting, Spread
from covpool.report.paper import paper_tables
from covpool.report.sources import Run
from covpool.report.svg import clean, colour

TOGETHER = 6
"""As many methods' learning curves are drawn in one panel; more get a panel each."""

BANDS = 3
"""As many methods get bands, which more would make one grey."""

Points = dict[int, float]


def training_figures(setting: Setting, styles: Styles, prefix: str) -> list[PageFigure | Missing]:
    """All figures of a setting, `prefix` being in their names."""
    return [
        learning_curves(setting, styles, f"{prefix}curves"),
        accuracy(setting, styles, f"{prefix}accuracy"),
        smoothness(setting, styles, f"{prefix}smoothness"),
        conditioning(setting, styles, f"{prefix}conditioning"),
        kernel_sizes(setting, styles, f"{prefix}kernels"),
    ]


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


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One measure by epoch, for each row: of each seed, and their mean."""

    key: str
    text: str
    seeds: Mapping[str, Sequence[Points]]
    means: Mapping[str, Points]

    @classmethod
    def of(cls, rows: Iterable[MethodRow], key: str, scale: float, text: str) -> "Curves":
        """From the runs' histories."""
        seeds = {row.label: [_by_epoch(run, key, scale) for run in row.runs] for row in rows}
        means = {label: mean_by_place(own) for label, own in seeds.items()}
        return cls(key=key, text=text, seeds=seeds, means=means)

    def draw(self, axes: Axes, rows: Sequence[MethodRow], styles: Styles) -> None:
        """These rows' curves, over those of the others in grey."""
        shown = {row.label for row in rows}
        for label, points in self.means.items():
            if label not in shown:
                plot(axes, points, color=colour("grid"), linewidth=1.2)
        for row in rows:
            look = styles.of(row.method).line(hybrid=row.hybrid)
            seeds = self.seeds[row.label]
            if max(len(points) for points in seeds) > 1:
                look["marker"] = None
            for points in seeds if len(seeds) > 1 else ():
                plot(axes, points, **{**look, "linewidth": 0.7, "alpha": 0.45, "marker": None})
            plot(axes, self.means[row.label], **look, linewidth=1.9)
        mark_switches(axes, _switch_epochs(rows))
        whole_numbers(axes)

    def limits(self) -> tuple[float, float]:
        """Of the vertical axis, for panels to share."""
        every = [value for own in self.seeds.values() for p in own for value in p.values()]
        values = [value for value in every if math.isfinite(value)] or [0.0, 1.0]
        margin = 0.05 * (max(values) - min(values)) or 1.0
        return min(values) - margin, max(values) + margin


def learning_curves(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """Top-1 on the test split and training loss by epoch."""
    heading = "Learning curves"
    rows = [row for row in setting.rows if any(run.history for run in row.runs)]
    if not rows:
        finished = any(row.finished for row in setting.rows)
        return Missing(
            title=heading,
            why="The runs' metrics.jsonl are not there, only their final figures; name the folder "
            "that holds the run directories."
            if finished
            else "No run has come to the end of an epoch.",
        )
    top1 = Curves.of(rows, "test_top1", 100.0, "top-1 on the test split (%)")
    few = len(rows) <= TOGETHER
    if few:
        loss = Curves.of(rows, "train_loss", 1.0, "training loss")
        panels = [_curves_together(each, rows, styles, name) for each in (top1, loss)]
        seen = ["Each method's mean over seeds by epoch, and thin each seed."]
    else:
        panels = [_curve_alone(top1, row, styles, f"{name}-{i}") for i, row in enumerate(rows)]
        seen = [
            "Top-1 on the test split (%) by epoch, one panel a method: the mean over seeds, thin "
            "each seed, and in grey the other methods' means."
        ]
    seen += _coinciding(rows)
    if any(row.hybrid for row in rows):
        seen.append("A dotted line marks where the method is switched.")
    return PageFigure(
        name=name,
        title=heading,
        panels=panels,
        legend=legend(rows, styles, name) if few else (),
        seen=seen,
        not_shown=[
            "Where a run ended early, the mean from there on is of those that went on.",
            "Means of few seeds: differences at single epochs are mostly noise.",
        ],
        small=not few,
    )


def _curves_together(
    curves: Curves, rows: Sequence[MethodRow], styles: Styles, name: str
) -> Markup:
    def draw(axes: Axes) -> None:
        curves.draw(axes, rows, styles)
        title(axes, curves.text, x="epoch")

    return panel(f"{name}-{curves.key}", f"Learning curves: {curves.text}", draw)


def _curve_alone(curves: Curves, row: MethodRow, styles: Styles, name: str) -> Markup:
    def draw(axes: Axes) -> None:
        curves.draw(axes, [row], styles)
        axes.set_ylim(curves.limits())
        title(axes, shortened(row.label), x="epoch")

    return panel(name, f"Learning curves: {curves.text}, {row.label}", draw, size=SMALL)


def _coinciding(rows: Sequence[MethodRow]) -> list[str]:
    """Says of methods with the very same curves that one hides the others."""
    by_curve: dict[str, list[str]] = {}
    for row in rows:
        curves = [_by_epoch(run, "test_top1", 1.0) for run in row.runs]
        by_curve.setdefault(repr(curves), []).append(row.label)
    return [
        f"{names(labels)} have the same accuracies in every epoch: the last hides the others."
        for labels in by_curve.values()
        if len(labels) > 1
    ]


def _by_epoch(run: Run, key: str, scale: float) -> Points:
    return {int(row["epoch"]): scale * row[key] for row in run.history}


def _switch_epochs(rows: Iterable[MethodRow]) -> list[float]:
    found = set()
    for run in (run for row in rows for run in row.runs):
        for before, after in pairwise(run.history):
            if before["method"] != after["method"]:
                found.add(after["epoch"] - 0.5)
    return sorted(found)


def accuracy(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """Final top-1 by method, each seed a dot; differences to the baseline."""
    heading = "Accuracy by method"
    if not any(row.finished for row in setting.rows):
        return Missing(title=heading, why="No run has finished.")
    size = (WIDE[0], 0.75 + 0.34 * len(setting.rows))
    finals = {row.label: row.spreads["final", "test_top1"] for row in setting.rows}

    def absolute(axes: Axes) -> None:
        _dots(axes, setting.rows, finals, styles)
        title(axes, "Final top-1 on the test split (%)")

    panels = [panel(f"{name}-final", f"{heading}: Final top-1", absolute, size=size)]
    others = [row for row in setting.rows if row.differences and row.differences["final"].values]
    if others:
        gaps = {row.label: row.differences["final"] for row in others if row.differences}

        def relative(axes: Axes) -> None:
            _dots(axes, others, gaps, styles)
            axes.axvline(0, color=colour("ink"), linewidth=1)
            title(axes, f"difference to {setting.baseline} (points)")

        size = (WIDE[0], 0.75 + 0.34 * len(others))
        panels.append(panel(f"{name}-difference", f"{heading}: differences", relative, size=size))
    return PageFigure(
        name=name,
        title=heading,
        panels=panels,
        seen=[
            "Small dots are seeds, the large mark is their mean and the bar its 95% interval by "
            "Student's t; hollow marks are hybrid schedules.",
            *_verdicts(setting),
        ],
        not_shown=[
            "Seeds vary initial weights and order, not the images: intervals say nothing of other "
            "data.",
            "With few seeds intervals are wide; one that contains zero is no proof of equality.",
            *(["With one seed there is no interval."] if len(setting.seeds) < 2 else []),
        ],
    )


def _dots(
    axes: Axes, rows: Sequence[MethodRow], spreads: Mapping[str, Spread], styles: Styles
) -> None:
    for place, row in enumerate(rows):
        spread, style = spreads[row.label], styles.of(row.method)
        values = [*spread.values.values()]
        if spread.mean is None:
            # In axes coordinates: there is no accuracy to place it at.
            text = f"{row.runs[0].status}: no accuracy"
            axes.text(0.02, place, clean(text), transform=axes.get_yaxis_transform(), va="center")
            continue
        if spread.low is not None and spread.high is not None:
            ends = [spread.low, spread.high]
            axes.plot(ends, [place, place], color=style.color, linewidth=2, solid_capstyle="butt")
        if len(values) > 1:
            axes.plot(values, [place + 0.24] * len(values), ".", color=style.color, alpha=0.7, ms=5)
        face = colour("surface") if row.hybrid else style.color
        axes.plot(spread.mean, place, style.marker, color=style.color, mfc=face, ms=7)
    axes.set_yticks(range(len(rows)), [shortened(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if not axes.has_data():
        axes.set_xticks([])


def _verdicts(setting: Setting) -> list[str]:
    """What the intervals of the paired differences say, in words."""
    better, worse, open_ = [], [], []
    for row in setting.rows:
        found = row.differences["final"] if row.differences else None
        if found is None or found.low is None or found.high is None:
            continue
        if found.low == found.high == 0:
            open_.append(row.label)
        else:
            (better if found.low > 0 else worse if found.high < 0 else open_).append(row.label)
    texts = []
    for rows, verb in ((better, "above"), (worse, "below")):
        if rows:
            texts.append(
                f"{names(rows)} {'lie' if len(rows) > 1 else 'lies'} {verb} {setting.baseline} "
                "by more than the interval."
            )
    if open_:
        texts.append(
            f"These seeds do not tell {names(open_)} from {setting.baseline}: the interval of the "
            "difference contains zero."
        )
    return texts


def probe_rows(run: Run, probe: str) -> list[Mapping[str, Any]]:
    """The run's records of a probe that hold figures."""
    return [
        row
        for row in run.analysis
        if row.get("probe") == probe and "error" not in row and isinstance(row.get("step"), int)
    ]


def _failed(setting: Setting, probe: str) -> list[str]:
    texts = [
        str(row["error"])
        for run in setting.runs
        for row in run.analysis
        if row.get("probe") == probe and "error" in row
    ]
    if not texts:
        return []
    return [f"{len(texts)} measurements failed and are left out; the first: {texts[0]}"]


def _float(value: Any) -> float:
    """A number of a record, where infinities and NaN are text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _median_by_epoch(rows: Iterable[Mapping[str, Any]], figure: Any) -> Points:
    by_epoch: dict[int, list[float]] = {}
    for row in rows:
        value = figure(row)
        if not math.isnan(value):
            by_epoch.setdefault(int(row["epoch"]), []).append(value)
    return {epoch: statistics.median(own) for epoch, own in sorted(by_epoch.items())}


NO_PROBE = (
    "The runs were trained without the {probe} probe, so there is no analysis.jsonl with its "
    "records; docs/analysis.md says how to switch it on."
)


def smoothness(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """Effective β-smoothness along training, as the paper's first figure."""
    heading = "Effective β-smoothness along training"
    measured = {
        row.label: [own for run in row.runs if (own := probe_rows(run, "smoothness"))]
        for row in setting.rows
    }
    rows = [row for row in setting.rows if measured[row.label]]
    if not rows:
        return Missing(title=heading, why=NO_PROBE.format(probe="smoothness"))

    hybrid = any(row.hybrid for row in rows)
    switch = ", a dotted line where the method is switched" if hybrid else ""

    def draw(axes: Axes) -> None:
        seen = []
        switches = set()
        for row in rows:
            look = styles.of(row.method).line(hybrid=row.hybrid)
            series = []
            for records in measured[row.label]:
                points = {r["step"]: _float(r.get("smoothness")) for r in records}
                thin = {"linewidth": 0.6, "alpha": 0.45, "marker": None}
                plot(axes, points, **{**look, **thin})
                seen += points.values()
                switches |= {
                    after["step"]
                    for before, after in pairwise(records)
                    if before.get("method") != after.get("method")
                }
                series.append(_median_over_epoch_at_step(records))
            plot(axes, mean_by_place(series), **look, linewidth=1.9)
        logarithmic(axes, "y", seen)
        mark_switches(axes, switches)
        whole_numbers(axes)
        title(axes, "β (low is smooth)", x="training step")

    medians = {
        row.label: statistics.median(
            [
                value
                for records in measured[row.label]
                for r in records
                if math.isfinite(value := _float(r.get("smoothness")))
            ]
            or [math.nan]
        )
        for row in rows
    }
    return PageFigure(
        name=name,
        title=heading,
        panels=[panel(f"{name}-beta", heading, draw, size=ALONE)],
        legend=legend(rows, styles, name),
        seen=[
            "The largest change of the loss's gradient along a step down it, relative to the "
            "length of the step. Thin: each measurement; bold: medians of each epoch, averaged "
            f"over seeds{switch}.",
            "Median over all measurements: "
            + "; ".join(f"{label} {number(value)}" for label, value in medians.items())
            + ".",
            *_failed(setting, "smoothness"),
        ],
        not_shown=[
            "It is a property of the whole network on one batch along one line, not of the pooling "
            "alone, and has the unit of 1/step length: compare methods in one setting, not "
            "settings.",
        ],
    )


def _median_over_epoch_at_step(records: Sequence[Mapping[str, Any]]) -> Points:
    """The epoch's median, at the epoch's middle measurement."""
    by_epoch: dict[int, list[tuple[int, float]]] = {}
    for row in records:
        value = _float(row.get("smoothness"))
        if math.isfinite(value):
            by_epoch.setdefault(int(row["epoch"]), []).append((row["step"], value))
    return {
        own[len(own) // 2][0]: statistics.median(value for _, value in own)
        for own in by_epoch.values()
    }


QUANTILE = {"low": 1, "median": 3, "high": 5}
"""Places of the 5% quantile, the median and the 95% quantile in a record's distribution."""

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
    measured = {
        row.label: [each for run in row.runs for each in probe_rows(run, "conditioning")]
        for row in setting.rows
    }
    rows = [row for row in setting.rows if measured[row.label]]
    if not rows:
        return Missing(title=heading, why=NO_PROBE.format(probe="conditioning"))

    banded = len(rows) <= BANDS

    def draw(axes: Axes, way: str, figure: str, text: str) -> None:
        seen: list[float] = []
        for row in rows:
            look = styles.of(row.method).line(hybrid=row.hybrid)
            low, middle, high = (
                _median_by_epoch(measured[row.label], lambda r, q=q: _quantile(r, way, figure, q))
                for q in QUANTILE.values()
            )
            places = [epoch for epoch in middle if math.isfinite(high.get(epoch, math.nan))]
            plot(axes, middle, **look)
            if banded:
                axes.fill_between(
                    places,
                    [low[p] for p in places],
                    [high[p] for p in places],
                    color=look["color"],
                    alpha=0.12,
                    linewidth=0,
                )
                seen += low.values()
            else:
                thin = {"linewidth": 0.8, "alpha": 0.6, "marker": None}
                plot(axes, {p: high[p] for p in places}, **{**look, **thin})
                seen += middle.values()
            seen += high.values()
        if figure != "effective_rank":
            logarithmic(axes, "y", seen)
        mark_switches(axes, _switch_epochs(rows))
        whole_numbers(axes)
        title(axes, text, x="epoch")

    panels = []
    for way, figure, text in FIGURES:
        present = any(
            math.isfinite(_quantile(r, way, figure, QUANTILE["median"]))
            for own in measured.values()
            for r in own
        )
        if present:
            panels.append(
                panel(
                    f"{name}-{figure}",
                    f"{heading}: {text}",
                    lambda axes, a=way, b=figure, c=text: draw(axes, a, b, c),
                )
            )
    if not panels:
        return Missing(title=heading, why="The records of the conditioning probe hold no figures.")
    printed = paper_tables()["table2_condition_number_mpncov"]
    cells = ", ".join(
        f"{number(value)} in epoch {epoch.removeprefix('epoch')}"
        for epoch, value in printed.items()
    )
    first = measured[rows[0].label][0]
    spread = "bands: from the 5% to the 95% quantile" if banded else "thin: the 95% quantile"
    return PageFigure(
        name=name,
        title=heading,
        panels=panels,
        legend=legend(rows, styles, name),
        seen=[
            "The covariances that the pooling layer met in training batches "
            f"({first.get('channels', '?')} channels, {first.get('positions', '?')} positions). "
            f"Lines with marks: the median sample; {spread}.",
            "The paper's Table 2, of another network on ImageNet, prints for the floored figure "
            f"{cells}.",
            *_failed(setting, "conditioning"),
        ],
        not_shown=[
            "With fewer positions than channels the covariance is singular, and the floored figure "
            "is the largest eigenvalue over the floor: it says nothing of the features, whose own "
            "condition number is that of the range.",
        ],
    )


def _quantile(row: Mapping[str, Any], way: str, figure: str, place: int) -> float:
    quantiles = row.get(way, {}).get(figure, {}).get("quantiles") or ()
    return _float(quantiles[place]) if place < len(quantiles) else math.nan


def kernel_sizes(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """The largest |K| met in training."""
    heading = "The largest |K| met in training"
    measured = {
        row.label: [
            each
            for run in row.runs
            for each in probe_rows(run, "conditioning")
            if (each.get("kernel") or {}).get("largest")
        ]
        for row in setting.rows
    }
    rows = [row for row in setting.rows if measured[row.label]]
    if not rows:
        probed = any(probe_rows(run, "conditioning") for run in setting.runs)
        why = "None of the methods trained has a kernel K." if probed else NO_PROBE
        return Missing(title=heading, why=why.format(probe="conditioning"))

    def draw(axes: Axes) -> None:
        seen: list[float] = []
        for row in rows:
            look = styles.of(row.method).line(hybrid=row.hybrid)
            largest = _largest_by_epoch(measured[row.label])
            plot(axes, largest, **look)
            seen += largest.values()
        logarithmic(axes, "y", seen)
        whole_numbers(axes)
        title(axes, "largest |K| of the epoch", x="epoch")

    nonfinite = sum(
        int(each["kernel"].get("nonfinite") or 0) for own in measured.values() for each in own
    )
    ties = sum(int(each["kernel"].get("ties") or 0) for own in measured.values() for each in own)
    return PageFigure(
        name=name,
        title=heading,
        panels=[panel(f"{name}-largest", heading, draw, size=ALONE)],
        legend=legend(rows, styles, name),
        seen=[
            "The largest finite kernel entry over the measured samples of an epoch, all seeds.",
            f"{ties or 'No'} pairs of tied eigenvalues were met, {nonfinite or 'no'} entries that "
            "are not finite.",
        ],
        not_shown=[
            "K reaches the gradient multiplied by the difference of the eigenvalues' roots, which "
            "is small where K is large: a large K alone is no large gradient.",
            "Steps between measurements are not seen.",
        ],
    )


def _largest_by_epoch(rows: Iterable[Mapping[str, Any]]) -> Points:
    found: Points = {}
    for row in rows:
        quantiles = row["kernel"]["largest"].get("quantiles") or ()
        value = _float(quantiles[-1]) if quantiles else math.nan
        if math.isfinite(value):
            found[int(row["epoch"])] = max(value, found.get(int(row["epoch"]), -math.inf))
    return found
