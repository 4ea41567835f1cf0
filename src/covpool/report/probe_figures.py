"""Figures of what probes measured along training: smoothness and conditioning."""

import math
from collections.abc import Callable, Sequence
from itertools import chain

from markupsafe import Markup

from covpool.experiments.inference import mean_by_place
from covpool.experiments.paper import paper_tables
from covpool.report.figures import (
    ALONE,
    THIN,
    Missing,
    PageFigure,
    Styles,
    logarithmic,
    mark_switches,
    over_epochs,
    panel,
    plot,
)
from covpool.report.groups import Setting
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
    papers = paper_tables()["table2_condition_number_mpncov"]
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
            "papers": {} if setting.own_images else papers,
            "failures": failures(setting, "conditioning"),
        },
    )


def _quantile(way: str, figure: str, share: float) -> Callable[[Record], float]:
    return lambda record: quantile(record.get(way, {}).get(figure), share)
