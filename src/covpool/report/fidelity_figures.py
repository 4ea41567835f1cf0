"""The figure of how far each method's gradient was from the exact one, along training."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain

from markupsafe import Markup

from covpool.report.figures import (
    ALONE,
    WIDE,
    Missing,
    PageFigure,
    Styles,
    logarithmic,
    mark_switches,
    over_epochs,
    panel,
    plot,
)
from covpool.report.groups import MethodRow, Setting
from covpool.report.numbers import number
from covpool.report.series import (
    Record,
    failures,
    median,
    median_by_epoch,
    probed,
    quantile,
    switch_epochs,
)
from covpool.report.tables import PageTable
from covpool.text import shortened

ROUNDING = 1e-9
"""A relative distance of gradients below which a method counts as exact."""

LEAST_DISTANCE = 1e-16
"""Where a distance of zero is drawn."""

APART = 4
"""Up to so many trained methods have a panel and a column each; more are taken together."""

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
        table=_table(trained, [*drawn]),
        about={
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


def _figure(record: Record, method: str, figure: str, share: float = 0.5) -> float:
    return quantile(record["methods"].get(method, {}).get(figure), share)


def _table(trained: Sequence[Trained], methods: Sequence[str]) -> PageTable | None:
    if not methods:
        return None
    columns = [
        f"trained with {label}: {text}" if len(trained) > 1 else text
        for label, _, _ in trained
        for text in ("distance, %", "angle")
    ]
    rows = [
        (method, *(cell for _, _, records in trained for cell in _cells(records, method)))
        for method in methods
    ]
    return PageTable(kind="gradients", columns=["gradient of", *columns], rows=rows)


def _cells(records: Sequence[Record], method: str) -> tuple[str, str]:
    """Medians over the measurements, of the distance with its least and most distant image."""
    middle, least, most = (
        100 * median(_figure(record, method, "relative_distance", share) for record in records)
        for share in (0.5, 0.0, 1.0)
    )
    if math.isnan(middle):
        return "–", "–"
    angle = median(_figure(record, method, "angle") for record in records)
    distance = f"{_percent(middle)} ({_percent(least)} to {_percent(most)})"
    return distance, f"{_percent(angle)}°"


def _percent(value: float) -> str:
    """Two digits."""
    if not math.isfinite(value) or (value and not 1e-3 <= value < 1e5):
        return number(value)
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"
