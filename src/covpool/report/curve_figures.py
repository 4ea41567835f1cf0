"""Figures of runs: learning curves, and accuracy by method."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from covpool.experiments.inference import Spread, mean_by_place
from covpool.report.figures import (
    AXIS,
    SMALL,
    THIN,
    WIDE,
    PageFigure,
    Styles,
    mark_switches,
    plot,
    rows_beside,
)
from covpool.report.groups import MethodRow
from covpool.report.series import Points, switch_epochs
from covpool.report.svg import colour
from covpool.text import printable, shortened

TOGETHER = 6
"""As many methods' learning curves are drawn in one panel; more get a panel each."""


def learning_curves(figure: PageFigure) -> None:
    """Top-1 on the split that was evaluated and training loss by epoch."""
    setting, styles = figure.setting, figure.styles
    rows = [row for row in setting.rows if any(run.history for run in row.runs)]
    if not rows:
        figure.missing = "No run has the rows of an epoch in its metrics.jsonl."
        return
    top1 = f"top-1 on the {setting.split} (%)"
    figure.small = len(rows) > TOGETHER
    seeds = _by_epoch(rows, "test_top1", 100.0)
    if figure.small:
        every = [point for own in seeds.values() for run in own for point in run.items()]
        for row in rows:
            beside, label = shortened(row.label, AXIS), f"{top1}, {row.label}"
            with figure.panel(beside, size=SMALL, label=label) as axes:
                for other in rows:
                    plot(axes, mean_by_place(seeds[other]), color=colour("grid"), linewidth=1.2)
                _draw(axes, [row], seeds, styles)
                # All panels have the limits that hold every run.
                axes.update_datalim([point for point in every if math.isfinite(point[1])])
    else:
        losses = _by_epoch(rows, "train_loss")
        for values, text in ((seeds, top1), (losses, "training loss")):
            with figure.panel(text) as axes:
                _draw(axes, rows, values, styles)
        figure.legend = styles.legend(figure.name, rows)
    figure.about = {
        "few": not figure.small,
        "several": any(len(row.runs) > 1 for row in rows),
        "top1": top1,
        "coinciding": _coinciding(seeds),
        "switched": any(row.hybrid for row in rows),
    }


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


def _coinciding(seeds: Mapping[MethodRow, Sequence[Points]]) -> list[list[str]]:
    """Rows with the very same curves, of which one hides the others."""
    by_curve: dict[str, list[str]] = {}
    for row, curves in seeds.items():
        by_curve.setdefault(repr(curves), []).append(row.label)
    return [labels for labels in by_curve.values() if len(labels) > 1]


def accuracy(figure: PageFigure) -> None:
    """Final top-1 by method, each seed a dot; differences to the baseline."""
    setting = figure.setting
    if not any(row.finished for row in setting.rows):
        figure.missing = "No run has finished."
        return
    finals = {row: row.spread() for row in setting.rows}
    gaps = {row: gap for row in setting.rows if (gap := setting.difference(row)).values}
    for spreads, text in (
        (finals, f"Final top-1 on the {setting.split} (%)"),
        (gaps, f"difference to {setting.baseline} (points)"),
    ):
        if spreads:
            size = (WIDE[0], 0.75 + 0.34 * len(spreads))
            with figure.panel(text, x="", size=size) as axes:
                _dots(axes, spreads, figure.styles)
                if spreads is gaps:
                    axes.axvline(0, color=colour("ink"), linewidth=1)
    signs = {"above": 1, "below": -1, "level": 0}
    figure.about = {
        "baseline": setting.baseline,
        "seeds": len(setting.seeds),
        **{
            word: [row.label for row, gap in gaps.items() if gap.sign == sign]
            for word, sign in signs.items()
        },
    }


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
