"""The tables of a page: accuracies, and the paper's beside ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from covpool.experiments import paper
from covpool.experiments.inference import BySeed, Spread
from covpool.experiments.sheet import Table
from covpool.report.groups import Setting


@dataclass(frozen=True, kw_only=True)
class PageTable(Table):
    """A table of the page.

    Attributes:
        kind: a class of the style sheet, and which caption of captions.html.jinja it has.
        small: by the name of a row, what stands beside that in small.
        lead: what is to be known before it.
        groups: headers above those of the other columns, and how many columns each has.
        about: what its caption tells.
    """

    kind: str
    small: Mapping[str, str | None] = field(default_factory=dict)
    lead: str = ""
    groups: Sequence[tuple[str, int]] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> Sequence[str]:
        """What stands beside each cell on a narrow page, which shows no header."""
        above = [
            text.split(":")[0].split(",")[0] for text, span in self.groups for _ in range(span)
        ]
        if not above:
            return self.columns[1:]
        return [f"{text}, {own}" for text, own in zip(above, self.columns[1:], strict=True)]


def tables_of(setting: Setting) -> list[PageTable]:
    """Those that have rows."""
    found = [accuracy_table(setting)]
    if not setting.own_images:
        found += [paper_table(setting), table1(setting)]
    return [table for table in found if table.rows]


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


def paper_table(setting: Setting) -> PageTable:
    """The paper's cells of the methods that the setting has, and ours, standalone and hybrid."""
    final: dict[tuple[str, bool], str] = {}
    for row in setting.rows:
        final.setdefault((row.method, row.hybrid), row.spread().text())
    cells = {name: paper.accuracies(paper.printed_name(name)) for name, _ in final}
    elsewhere = "" if setting.papers_data else ", on other data sets"
    return PageTable(
        heading="The same methods in the paper",
        kind="paper",
        columns=("method", "standalone", "hybrid", *paper.COLUMNS),
        groups=(
            ("here: Final top-1 %", 2),
            (f"the paper{elsewhere}: top-1 %", len(paper.COLUMNS)),
        ),
        rows=[
            (name, *(final.get((name, hybrid), "–") for hybrid in (False, True)), *own)
            for name, own in cells.items()
            if own
        ],
        about={"title": setting.title, "papers_data": setting.papers_data, "source": paper.SOURCE},
    )


def table1(setting: Setting) -> PageTable:
    """Errors of accurate SVD and of Newton-Schulz, standalone, the paper's beside ours; no rows
    where the setting has not both."""
    found = {row.label: row for row in setting.rows if row.finished}

    def errors(method: str, score: str) -> BySeed:
        return {s: 100 - value for s, value in found[method].spread(score=score).values.items()}

    both = found.keys() >= paper.TABLE_1.keys()
    cells = paper.beside_table1(errors, lambda method, own: Spread.of(own).text()) if both else []
    names = (*paper.TABLE_1, "difference")
    beside = (f"{w}: {t} error %" for t in ("top-1", "top-5") for w in ("paper", "here"))
    return PageTable(
        heading="The paper’s Table 1: accurate SVD against Newton-Schulz",
        kind="table1",
        columns=("method", *beside),
        rows=[(name, *own) for name, own in zip(names, cells, strict=False)],
        small=paper.TABLE_1,
        about={
            "title": setting.title,
            "seeds": len(setting.seeds),
            "same": setting.papers_data == "imagenet",
        },
    )
