"""The tables of accuracies: ours, and the paper's beside ours."""

from typing import Any

from covpool.experiments import paper
from covpool.report.groups import SCORES, MethodRow, Setting, Spread


def accuracy_row(row: MethodRow) -> dict[str, Any]:
    """A method's cells in the table of accuracies."""
    difference = row.differences["final"] if row.differences else None
    return {
        "method": row.label,
        "paper_name": row.paper_name or "",
        "runs": f"{len(row.finished)} of {len(row.runs)}",
        "final": spread_text(row.spreads["final", "test_top1"]),
        "best": spread_text(row.spreads["best", "test_top1"]),
        "final5": spread_text(row.spreads["final", "test_top5"]),
        "difference": ("baseline",) if difference is None else interval_texts(difference),
        "seconds": "–" if row.seconds is None else f"{row.seconds:.2f}",
    }


def spread_text(spread: Spread) -> str:
    """Mean ± deviation."""
    if spread.mean is None:
        return "–"
    if spread.deviation is None:
        return f"{spread.mean:.2f}"
    return f"{spread.mean:.2f} ± {spread.deviation:.2f}"


def interval_texts(spread: Spread) -> tuple[str, ...]:
    """The mean and, with enough seeds, its interval: a line may break between them."""
    if spread.mean is None:
        return ("–",)
    if spread.low is None or spread.high is None:
        return (signed(spread.mean),)
    return signed(spread.mean), f"[{signed(spread.low)}, {signed(spread.high)}]"


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def paper_rows(setting: Setting) -> list[dict[str, Any]]:
    """The paper's cells of the methods that the setting has, and ours, standalone and hybrid."""
    rows = []
    for method in dict.fromkeys(row.method for row in setting.rows):
        cells = paper.accuracies(paper.printed_name(method))
        if cells is None:
            continue
        ours = {
            hybrid: next(
                (
                    spread_text(row.spreads["final", "test_top1"])
                    for row in setting.rows
                    if row.method == method and row.hybrid == hybrid
                ),
                "–",
            )
            for hybrid in (False, True)
        }
        scores = {"standalone": ours[False], "hybrid": ours[True]}
        rows.append({"method": method, **scores, "cells": cells})
    return rows


TABLE_1 = (("svd", "MPN-COV (SVD)"), ("isqrt-cov", "iSQRT-COV (Newton-Schulz)"))
"""The methods of the paper's Table 1, and their names in it."""


def table1_rows(setting: Setting) -> list[dict[str, Any]]:
    """Errors of accurate SVD and of Newton-Schulz, standalone, the paper's beside ours; none where
    the setting has not both."""
    printed = paper.paper_tables()["table1_resnet50_imagenet_error"]
    rows = {row.label: row for row in setting.rows if row.finished}
    if not all(method in rows for method, _ in TABLE_1):
        return []

    def errors(method: str, score: str) -> dict[int, float]:
        values = rows[method].spreads["final", score].values
        return {seed: 100 - value for seed, value in values.items()}

    found: list[dict[str, Any]] = [
        {"name": method, "paper_name": printed_name, "cells": []}
        for method, printed_name in TABLE_1
    ]
    found.append({"name": "difference", "paper_name": "", "cells": []})
    for place, (score, name) in enumerate(zip(SCORES, ("top-1", "top-5"), strict=True)):
        ours = [errors(method, score) for method, _ in TABLE_1]
        papers = [printed[printed_name][place] for _, printed_name in TABLE_1]
        pairs = {seed: ours[0][seed] - ours[1][seed] for seed in ours[0] if seed in ours[1]}
        cells: list[tuple[tuple[str, ...], ...]] = [
            ((f"{cell:.2f}",), (spread_text(Spread.of(own)),))
            for cell, own in zip(papers, ours, strict=True)
        ]
        cells.append(((signed(papers[0] - papers[1]),), interval_texts(Spread.of(pairs))))
        for row, (theirs, own) in zip(found, cells, strict=True):
            row["cells"] += [(f"paper: {name} error %", theirs), (f"here: {name} error %", own)]
    return found
