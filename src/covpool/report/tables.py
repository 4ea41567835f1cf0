"""The tables of a page: accuracies, and the paper's beside ours."""

from collections.abc import Sequence
from dataclasses import dataclass

from covpool.experiments import paper
from covpool.experiments.inference import Spread, differences
from covpool.report.groups import SCORES, MethodRow, Setting

Cell = str | tuple[str, ...]
"""Text; in parts, a line may break between them."""


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table of the page.

    Attributes:
        columns: the header; the first is that of the rows' names.
        rows: each a name, in large and in small, and the other cells.
        captions: what the cells are, a paragraph each.
        heading: of the table.
        lead: what is to be known before it.
        kind: a class of the style sheet.
        groups: headers above those of the other columns, and how many columns each has.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[tuple[str, str], Sequence[Cell]]]
    captions: Sequence[str]
    heading: str = ""
    lead: str = ""
    kind: str = ""
    groups: Sequence[tuple[str, int]] = ()

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
    several = len(setting.seeds) > 1
    interval = (
        ", with the 95% interval by Student's t" if several else "; one seed gives no interval"
    )
    return PageTable(
        heading="Accuracy",
        columns=(
            *("method", "finished", "Final top-1 %", "Best top-1 %", "Final top-5 %"),
            *(f"Final, difference to {setting.baseline}", "s / epoch"),
        ),
        rows=[
            (
                (row.label, row.paper_name or ""),
                (
                    f"{len(row.finished)} of {len(row.runs)}",
                    row.spreads["final", "test_top1"].text(),
                    row.spreads["best", "test_top1"].text(),
                    row.spreads["final", "test_top5"].text(),
                    interval_parts(row.differences["final"]) if row.differences else ("baseline",),
                    "–" if row.seconds is None else f"{row.seconds:.2f}",
                ),
            )
            for row in setting.rows
        ],
        captions=[
            "Mean ± standard deviation over the seeds of finished runs, on the "
            f"{setting.split}. Final is the last epoch; Best is the epoch of the highest top-1 on "
            f"the {setting.split} itself, so it flatters. Differences are in percentage points, "
            f"paired by seed{interval}. Seconds are the median over epochs of training without "
            "evaluation."
        ],
    )


def interval_parts(spread: Spread) -> tuple[str, ...]:
    """The mean and, with enough seeds, its interval."""
    return tuple(spread.interval_text().replace("-", "−").split(" ", 1))


def paper_table(setting: Setting) -> PageTable:
    """The paper's cells of the methods that the setting has, and ours, standalone and hybrid."""
    final: dict[tuple[str, bool], str] = {}
    for row in setting.rows:
        final.setdefault((row.method, row.hybrid), row.spreads["final", "test_top1"].text())
    cells = {name: paper.accuracies(paper.printed_name(name)) for name, _ in final}
    elsewhere = "" if setting.papers_data else ", on other data sets"
    order = "Compare the order of the methods and the size of the differences, not the figures. "
    return PageTable(
        heading="The same methods in the paper",
        kind="paper",
        columns=("method", "standalone", "hybrid", *paper.COLUMNS),
        groups=(
            ("here: Final top-1 %", 2),
            (f"the paper{elsewhere}: top-1 %", len(paper.COLUMNS)),
        ),
        rows=[
            ((name, ""), (*(final.get((name, hybrid), "–") for hybrid in (False, True)), *own))
            for name, own in cells.items()
            if own
        ],
        captions=[
            "The paper’s cells are from its Tables 4 (100 minus the printed top-1 error) and 5 "
            "(Final / Best), each measured on the data set named above it, with networks trained "
            f"at that size; ours are on {setting.title}. {'' if setting.papers_data else order}"
            f"{paper.SOURCE}."
        ],
    )


TABLE_1 = (("svd", "MPN-COV (SVD)"), ("isqrt-cov", "iSQRT-COV (Newton-Schulz)"))
"""The methods of the paper's Table 1, and their names in it."""


def table1(setting: Setting) -> PageTable:
    """Errors of accurate SVD and of Newton-Schulz, standalone, the paper's beside ours; no rows
    where the setting has not both."""
    printed = paper.paper_tables()["table1_resnet50_imagenet_error"]
    found = {row.label: row for row in setting.rows if row.finished}
    rows: list[tuple[tuple[str, str], list[Cell]]] = []
    if all(method in found for method, _ in TABLE_1):
        rows = [*((names, []) for names in TABLE_1), (("difference", ""), [])]
        for place, score in enumerate(SCORES):
            papers = [printed[name][place] for _, name in TABLE_1]
            ours = [_errors(found[method], score) for method, _ in TABLE_1]
            for (_, cells), cell, own in zip(rows, papers, ours, strict=False):
                cells += [f"{cell:.2f}", Spread.of(own).text()]
            gap = Spread.of({0: papers[0] - papers[1]}), Spread.of(differences(*ours))
            rows[-1][1].extend(map(interval_parts, gap))
    interval = ", with its 95% interval" if len(setting.seeds) > 1 else ""
    same = setting.papers_data == "imagenet"
    sign = "" if same else " Compare the sign of the difference, not its size."
    return PageTable(
        heading="The paper’s Table 1: accurate SVD against Newton-Schulz",
        columns=(
            "method",
            *(f"{w}: {t} error %" for t in ("top-1", "top-5") for w in ("paper", "here")),
        ),
        rows=rows,
        captions=[
            f"The paper’s cells are of ResNet-50 on ImageNet; ours of the last epoch on "
            f"{setting.title}, mean ± standard deviation over seeds. The last row is the "
            f"difference, ours paired by seed{interval}: above zero, Newton-Schulz has the smaller "
            f"error.{sign}"
        ],
    )


def _errors(row: MethodRow, score: str) -> dict[int, float]:
    values = row.spreads["final", score].values
    return {seed: 100 - value for seed, value in values.items()}
