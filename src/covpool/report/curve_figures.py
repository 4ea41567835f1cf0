"""Figures of runs: learning curves, and accuracy by method."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from covpool.experiments.inference import Spread, mean_by_place
from covpool.report.figures import (
    AXIS,
    SMALL,
    WIDE,
    Missing,
    PageFigure,
    Styles,
    names,
    over_epochs,
    panel,
    rows_beside,
    title,
)
from covpool.report.groups import MethodRow, Setting
from covpool.report.series import Points, legend, mark_switches, plot, switch_epochs
from covpool.report.sources import Run
from covpool.report.svg import colour
from covpool.text import printable, shortened

TOGETHER = 6
"""As many methods' learning curves are drawn in one panel; more get a panel each."""


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
        mark_switches(axes, switch_epochs(rows))

    def limits(self) -> tuple[float, float]:
        """Of the vertical axis, for panels to share."""
        every = [value for own in self.seeds.values() for p in own for value in p.values()]
        values = [value for value in every if math.isfinite(value)] or [0.0, 1.0]
        margin = 0.05 * (max(values) - min(values)) or 1.0
        return min(values) - margin, max(values) + margin


def learning_curves(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """Top-1 on the split that was evaluated and training loss by epoch."""
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
    top1 = Curves.of(rows, "test_top1", 100.0, f"top-1 on the {setting.split} (%)")
    few = len(rows) <= TOGETHER
    if few:
        loss = Curves.of(rows, "train_loss", 1.0, "training loss")
        panels = [_curves_together(each, rows, styles, name) for each in (top1, loss)]
        several = any(len(row.runs) > 1 for row in rows)
        seen = [
            "Each method's mean over seeds by epoch, and thin each seed."
            if several
            else "One run of each method, by epoch."
        ]
    else:
        panels = [_curve_alone(top1, row, styles, f"{name}-{i}") for i, row in enumerate(rows)]
        seen = [
            f"Top-1 on the {setting.split} (%) by epoch, one panel a method: the mean over seeds, "
            "thin each seed, and in grey the other methods' means."
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
        over_epochs(axes, curves.text)

    return panel(f"{name}-{curves.key}", f"Learning curves: {curves.text}", draw)


def _curve_alone(curves: Curves, row: MethodRow, styles: Styles, name: str) -> Markup:
    def draw(axes: Axes) -> None:
        curves.draw(axes, [row], styles)
        axes.set_ylim(curves.limits())
        over_epochs(axes, shortened(row.label, AXIS))

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


def accuracy(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """Final top-1 by method, each seed a dot; differences to the baseline."""
    heading = "Accuracy by method"
    if not any(row.finished for row in setting.rows):
        return Missing(title=heading, why="No run has finished.")
    size = (WIDE[0], 0.75 + 0.34 * len(setting.rows))
    finals = {row.label: row.spreads["final", "test_top1"] for row in setting.rows}

    def absolute(axes: Axes) -> None:
        _dots(axes, setting.rows, finals, styles)
        title(axes, f"Final top-1 on the {setting.split} (%)")

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
            axes.text(
                0.02, place, printable(text), transform=axes.get_yaxis_transform(), va="center"
            )
            continue
        if spread.low is not None and spread.high is not None:
            ends = [spread.low, spread.high]
            axes.plot(ends, [place, place], color=style.color, linewidth=2, solid_capstyle="butt")
        if len(values) > 1:
            axes.plot(values, [place + 0.24] * len(values), ".", color=style.color, alpha=0.7, ms=5)
        face = colour("surface") if row.hybrid else style.color
        axes.plot(spread.mean, place, style.marker, color=style.color, mfc=face, ms=7)
    rows_beside(axes, [row.label for row in rows])
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
