"""Figures of what probes measured along training: smoothness and conditioning."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes

from covpool.experiments.inference import mean_by_place
from covpool.experiments.paper import paper_tables
from covpool.report.figures import (
    ALONE,
    Missing,
    PageFigure,
    Styles,
    logarithmic,
    number,
    over_epochs,
    panel,
)
from covpool.report.groups import Setting
from covpool.report.series import (
    NO_PROBE,
    Points,
    as_float,
    failures,
    legend,
    mark_switches,
    median_by_epoch,
    plot,
    probe_rows,
    quantile,
    switch_epochs,
)

BANDS = 3
"""As many methods get bands, which more would make one grey."""


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
                points = {r["step"]: as_float(r.get("smoothness")) for r in records}
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
        over_epochs(axes, "β (low is smooth)", x="training step")

    medians = {
        row.label: statistics.median(
            [
                value
                for records in measured[row.label]
                for r in records
                if math.isfinite(value := as_float(r.get("smoothness")))
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
            *failures(setting, "smoothness"),
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
        value = as_float(row.get("smoothness"))
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
                median_by_epoch(measured[row.label], lambda r, q=q: _quantile(r, way, figure, q))
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
        mark_switches(axes, switch_epochs(rows))
        over_epochs(axes, text)

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
            *([] if setting.own_images else [_papers_condition_numbers()]),
            *failures(setting, "conditioning"),
        ],
        not_shown=[
            "With fewer positions than channels the covariance is singular, and the floored figure "
            "is the largest eigenvalue over the floor: it says nothing of the features, whose own "
            "condition number is that of the range.",
        ],
    )


def _papers_condition_numbers() -> str:
    printed = paper_tables()["table2_condition_number_mpncov"]
    cells = ", ".join(
        f"{number(value)} in epoch {epoch.removeprefix('epoch')}"
        for epoch, value in printed.items()
    )
    return (
        "The paper's Table 2, of another network on ImageNet, prints for the floored figure "
        f"{cells}."
    )


def _quantile(row: Mapping[str, Any], way: str, figure: str, place: int) -> float:
    return quantile(row.get(way, {}).get(figure), place)
