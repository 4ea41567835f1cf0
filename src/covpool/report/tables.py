"""The tables of a page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from covpool.experiments.inference import Spread
from covpool.experiments.sheet import Table
from covpool.report.groups import Setting


@dataclass(frozen=True, kw_only=True)
class PageTable(Table):
    """A table of the page.

    Attributes:
        kind: a class of the style sheet.
        small: by the name of a row, what stands beside that in small.
        about: what its caption tells; of a table without one nothing.
    """

    kind: str
    small: Mapping[str, str | None] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def accuracy_table(setting: Setting) -> PageTable:
    """The accuracies of each method, and differences to the baseline."""
    rows = [
        (
            row.label,
            f"{len(row.finished)} of {len(row.runs)}",
            row.spread().text(),
            row.spread("best").text(),
            row.spread(score="test_top5").text(),
            "baseline" if row is setting.base else _interval(setting.difference(row)),
            "–" if row.seconds is None else f"{row.seconds:.2f}",
        )
        for row in setting.rows
    ]
    return PageTable(
        heading="Accuracy",
        kind="accuracy",
        columns=(
            *("method", "finished", "Final top-1 %", "Best top-1 %", "Final top-5 %"),
            *(f"Final, difference to {setting.baseline}", "s / epoch"),
        ),
        rows=rows,
        small={row.label: row.paper_name for row in setting.rows},
        about={"split": setting.split, "seeds": len(setting.seeds)},
    )


def _interval(spread: Spread) -> str:
    return spread.interval_text().replace("-", "−")
