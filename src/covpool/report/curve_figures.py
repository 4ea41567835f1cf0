"""Figures of runs: learning curves, and accuracy by method."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from covpool.experiments.inference import Spread, mean_by_place
from covpool.report.figures import (
    AXIS,
    SMALL,
    THIN,
    WIDE,
    Missing,
    PageFigure,
    Styles,
    mark_switches,
    over_epochs,
    panel,
    plot,
    rows_beside,
    title,
)
from covpool.report.groups import MethodRow, Setting
from covpool.report.series import Points, switch_epochs
from covpool.report.svg import colour
from covpool.text import printable, shortened

TOGETHER = 6
"""As many methods' learning curves are drawn in one panel; more get a panel each."""


def learning_curves(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """Top-1 on the split that was evaluated and training loss by epoch."""
    heading = "Learning curves"
    rows = [row for row in setting.rows if any(run.history for run in row.runs)]
    if not rows:
        return Missing(title=heading, why="No run has the rows of an epoch in its metrics.jsonl.")
    top1 = f"top-1 on the {setting.split} (%)"
    few = len(rows) <= TOGETHER
    panels: list[Markup] = []
    if few:
        for key, scale, text in (("test_top1", 100.0, top1), ("train_loss", 1.0, "training loss")):
            seeds = _by_epoch(rows, key, scale)
            with panel(panels, f"{name}-{key}", f"{heading}: {text}") as axes:
                _draw(axes, rows, seeds, styles)
                over_epochs(axes, text)
    else:
        seeds = _by_epoch(rows, "test_top1", 100.0)
        every = [point for own in seeds.values() for run in own for point in run.items()]
        for i, row in enumerate(rows):
            label = f"{heading}: {top1}, {row.label}"
            with panel(panels, f"{name}-{i}", label, size=SMALL) as axes:
                for other in rows:
                    plot(axes, mean_by_place(seeds[other]), color=colour("grid"), linewidth=1.2)
                _draw(axes, [row], seeds, styles)
                # All panels have the limits that hold every run.
                axes.update_datalim([point for point in every if math.isfinite(point[1])])
                over_epochs(axes, shortened(row.label, AXIS))
    return PageFigure(
        name=name,
        title=heading,
        panels=panels,
        legend=styles.legend(name, rows) if few else (),
        about={
            "few": few,
            "several": any(len(row.runs) > 1 for row in rows),
            "top1": top1,
            "coinciding": _coinciding(rows),
            "switched": any(row.hybrid for row in rows),
        },
        small=not few,
    )


def _by_epoch(
    rows: Sequence[MethodRow], key: str, scale: float = 1.0
) -> dict[MethodRow, list[Points]]:
    """A measure of each run, scaled."""
    return {
        row: [{int(r["epoch"]): scale * r[key] for r in run.history} for run in row.runs]
        for row in rows
    }


def _draw(
    axes: Axes,
    rows: Sequence[MethodRow],
    seeds: Mapping[MethodRow, Sequence[Points]],
    styles: Styles,
) -> None:
    """The mean of each row's runs, and thin the runs themselves where there are several."""
    for row in rows:
        look = styles.line(row)
        if max(map(len, seeds[row])) > 1:
            look["marker"] = None
        for points in seeds[row] if len(seeds[row]) > 1 else ():
            plot(axes, points, **look | THIN)
        plot(axes, mean_by_place(seeds[row]), **look, linewidth=1.9)
    mark_switches(axes, switch_epochs(rows))


def _coinciding(rows: Sequence[MethodRow]) -> list[list[str]]:
    """Rows with the very same curves, of which one hides the others."""
    by_curve: dict[str, list[str]] = {}
    for row, curves in _by_epoch(rows, "test_top1").items():
        by_curve.setdefault(repr(curves), []).append(row.label)
    return [labels for labels in by_curve.values() if len(labels) > 1]


def accuracy(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """Final top-1 by method, each seed a dot; differences to the baseline."""
    heading = "Accuracy by method"
    if not any(row.finished for row in setting.rows):
        return Missing(title=heading, why="No run has finished.")
    finals = {row: row.spread() for row in setting.rows}
    gaps = {row: gap for row in setting.rows if (gap := setting.difference(row)).values}
    panels: list[Markup] = []
    for spreads, label, text in (
        (finals, "Final top-1", f"Final top-1 on the {setting.split} (%)"),
        (gaps, "differences", f"difference to {setting.baseline} (points)"),
    ):
        if spreads:
            size = (WIDE[0], 0.75 + 0.34 * len(spreads))
            with panel(panels, f"{name}-{len(panels)}", f"{heading}: {label}", size=size) as axes:
                _dots(axes, spreads, styles)
                if spreads is gaps:
                    axes.axvline(0, color=colour("ink"), linewidth=1)
                title(axes, text)
    return PageFigure(
        name=name,
        title=heading,
        panels=panels,
        about={
            "baseline": setting.baseline,
            "above": [row.label for row, gap in gaps.items() if gap.sign == 1],
            "below": [row.label for row, gap in gaps.items() if gap.sign == -1],
            "level": [row.label for row, gap in gaps.items() if gap.sign == 0],
            "seeds": len(setting.seeds),
        },
    )


def _dots(axes: Axes, spreads: Mapping[MethodRow, Spread], styles: Styles) -> None:
    for place, (row, spread) in enumerate(spreads.items()):
        look = styles.mark(row)
        if spread.mean is None:
            # In axes coordinates: there is no accuracy to place it at.
            text = printable(f"{row.runs[0].status}: no accuracy")
            axes.text(0.02, place, text, transform=axes.get_yaxis_transform(), va="center")
            continue
        if spread.low is not None and spread.high is not None:
            ends = [spread.low, spread.high]
            axes.plot(ends, [place] * 2, color=look["color"], linewidth=2, solid_capstyle="butt")
            values = [*spread.values.values()]
            above = [place + 0.24] * len(values)
            axes.plot(values, above, ".", color=look["color"], alpha=0.7, ms=5)
        axes.plot(spread.mean, place, **look)
    rows_beside(axes, [row.label for row in spreads])
    axes.spines["left"].set_visible(False)
    if not axes.has_data():
        axes.set_xticks([])
