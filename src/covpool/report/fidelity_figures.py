"""The figure of how far each method's gradient was from the exact one, along training."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from covpool.report.figures import (
    ALONE,
    WIDE,
    Missing,
    PageFigure,
    Styles,
    logarithmic,
    names,
    number,
    over_epochs,
    panel,
    power_of_ten,
)
from covpool.report.groups import MethodRow, Setting
from covpool.report.series import (
    NO_PROBE,
    Points,
    Record,
    failures,
    mark_switches,
    median_by_epoch,
    plot,
    probe_rows,
    quantile,
    switch_epochs,
)
from covpool.report.tables import PageTable
from covpool.text import shortened

LEAST, MIDDLE, MOST = 0, 3, -1
"""Places of the least, median and largest sample in a record's distribution."""

ROUNDING = 1e-9
"""A relative distance of gradients below which a method counts as exact."""

LEAST_DISTANCE = 1e-16
"""Where a distance of zero is drawn."""

APART = 4
"""Up to so many trained methods have a panel and a column each; more are taken together."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The fidelity records of runs that were trained alike.

    Attributes:
        label: what was trained.
        rows: the setting's rows that are in it.
        records: of all its runs and seeds.
    """

    label: str
    rows: Sequence[MethodRow]
    records: Sequence[Record]

    @property
    def methods(self) -> list[str]:
        """Those that were measured."""
        return list(dict.fromkeys(method for each in self.records for method in each["methods"]))

    def by_epoch(self, method: str) -> Points:
        """The median over measurements of the median sample's relative distance."""
        return median_by_epoch(self.records, lambda r: _figure(r, method, "relative_distance"))

    def over_all(self, method: str, figure: str, place: int = MIDDLE) -> float:
        """The median of a quantile over all measurements."""
        values = [_figure(each, method, figure, place) for each in self.records]
        known = [value for value in values if not math.isnan(value)]
        return statistics.median(known) if known else math.nan


def _figure(record: Record, method: str, figure: str, place: int = MIDDLE) -> float:
    return quantile(record["methods"].get(method, {}).get(figure), place)


def _trained(setting: Setting) -> list[Trained]:
    found = []
    for row in setting.rows:
        records = [
            each
            for run in row.runs
            for each in probe_rows(run, "fidelity")
            if isinstance(each.get("methods"), Mapping)
        ]
        if records:
            found.append(Trained(label=row.label, rows=[row], records=records))
    if len(found) <= APART:
        return found
    return [
        Trained(
            label=f"any of {len(found)} methods",
            rows=[row for each in found for row in each.rows],
            records=[record for each in found for record in each.records],
        )
    ]


def real_fidelity(setting: Setting, styles: Styles, name: str) -> PageFigure | Missing:
    """How far each method's gradient is from the exact one, on the covariances of the runs."""
    heading = "Gradient fidelity on the covariances of these runs"
    trained = _trained(setting)
    if not trained:
        return Missing(title=heading, why=NO_PROBE.format(probe="fidelity"))
    methods = list(dict.fromkeys(method for each in trained for method in each.methods))
    exact = [
        method
        for method in methods
        if all(
            max(each.by_epoch(method).values(), default=0.0) < ROUNDING
            and not math.isnan(each.over_all(method, "relative_distance"))
            for each in trained
        )
    ]
    drawn = [method for method in methods if method not in exact]
    lost = sum(
        int(figures.get("relative_distance", {}).get("not_a_number") or 0)
        for each in trained
        for record in each.records
        for figures in record["methods"].values()
    )

    def draw(axes: Axes, own: Trained, limits: tuple[float, float]) -> None:
        for method in drawn:
            points = own.by_epoch(method)
            shown = {epoch: max(value, LEAST_DISTANCE) for epoch, value in points.items()}
            plot(axes, shown, **styles.of(method).line())
        logarithmic(axes, "y", limits)
        axes.set_ylim(*limits)
        mark_switches(axes, switch_epochs(own.rows))
        over_epochs(axes, shortened(f"relative distance, trained with {own.label}", 52))

    values = [
        max(value, LEAST_DISTANCE)
        for each in trained
        for method in drawn
        for value in each.by_epoch(method).values()
        if math.isfinite(value)
    ] or [LEAST_DISTANCE, 1.0]
    limits = (min(values) / 2, max(values) * 2)
    size = ALONE if len(trained) == 1 else WIDE
    samples = sorted({int(record.get("samples", 0)) for each in trained for record in each.records})
    count = f"{samples[0]} to {samples[-1]}" if len(samples) > 1 else str(samples[0])
    return PageFigure(
        name=name,
        title=heading,
        panels=[
            panel(
                f"{name}-{place}",
                f"{heading}: trained with {each.label}",
                lambda axes, own=each: draw(axes, own, limits),
                size=size,
            )
            for place, each in enumerate(trained)
        ]
        if drawn
        else (),
        legend=styles.legend(name, drawn),
        table=_fidelity_table(trained, drawn),
        seen=[
            "On features that the pooling layer met in training, with the gradient that the loss "
            "sent back to it: how far the gradient that each method would have passed on to the "
            "features is from the exact one, as a share of its length (1 = 100%). Lines: the "
            f"median of {count} images of a batch, and of the measurements in an epoch, over "
            "seeds.",
            *(
                [f"Not drawn, as within {power_of_ten(ROUNDING)} throughout: {names(exact, 13)}."]
                if exact
                else []
            ),
            *([f"{lost} gradients that are not finite are left out."] if lost else []),
            *failures(setting, "fidelity"),
        ],
        not_shown=[
            "The gradient that arrives is that of the method trained; training with another one "
            "would have led elsewhere.",
            "Methods that iterate, and svd-topn, compute another root too: theirs may be the right "
            "gradient of what they compute.",
            "A gradient further from the exact one does not mean a worse training.",
        ],
    )


def _fidelity_table(trained: Sequence[Trained], drawn: Sequence[str]) -> PageTable | None:
    if not drawn:
        return None
    columns = [
        f"trained with {each.label}: {text}" if len(trained) > 1 else text
        for each in trained
        for text in ("distance, %", "angle")
    ]
    rows = [
        ((method, ""), [cell for each in trained for cell in _cells(each, method)])
        for method in drawn
    ]
    return PageTable(
        kind="numbers",
        columns=["gradient of", *columns],
        rows=rows,
        captions=[
            "Relative distance from the exact gradient, and angle to it, of the median image; in "
            "brackets the least and the most distant image of a batch. Medians over all "
            "measurements."
        ],
    )


def _cells(own: Trained, method: str) -> tuple[str, str]:
    distances = [
        100 * own.over_all(method, "relative_distance", place) for place in (MIDDLE, LEAST, MOST)
    ]
    if math.isnan(distances[0]):
        return "–", "–"
    middle, least, most = (_percent(value) for value in distances)
    return f"{middle} ({least} to {most})", f"{_percent(own.over_all(method, 'angle'))}°"


def _percent(value: float) -> str:
    """Two digits."""
    if not math.isfinite(value):
        return number(value)
    if value and not 1e-3 <= value < 1e5:
        return number(value)
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"
