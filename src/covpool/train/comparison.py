"""The table of a comparison: mean and deviation by method, paired differences."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from covpool.train.cells import Cell
from covpool.train.run_directory import Row, RunDirectory

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The outcome of a grid, a row for each method in the order given."""

    rows: list[Row]
    problems: list[str]


def tabulate(cells: Sequence[Cell], failures: dict[str, str]) -> Comparison:
    """Mean and deviation of Final and Best, time per epoch, paired difference to the first method.

    Means are over the runs that finished; `runs` and `problems` say where some did not.
    """
    methods = list(dict.fromkeys(cell.label for cell in cells))
    summaries = {(cell.label, cell.seed): cell.summary() for cell in cells}
    seeds = sorted({cell.seed for cell in cells})
    rows = []
    for method in methods:
        own = {
            seed: summaries[method, seed]
            for seed in seeds
            if summaries[method, seed]["status"] == "finished"
        }
        first = summaries_of(summaries, methods[0])
        row: Row = {"method": method, "runs": len(own), "planned": len(seeds)}
        for name in ("final", "best"):
            values = {seed: 100 * found[name]["test_top1"] for seed, found in own.items()}
            base = {seed: 100 * found[name]["test_top1"] for seed, found in first.items()}
            row[f"{name}_mean"], row[f"{name}_deviation"] = mean_and_deviation([*values.values()])
            pairs = [values[seed] - base[seed] for seed in values if seed in base]
            low = high = difference = None
            if method != methods[0]:
                difference, low, high = mean_and_interval(pairs)
            row[f"{name}_difference"] = difference
            row[f"{name}_difference_low"], row[f"{name}_difference_high"] = low, high
        times = [
            epoch["seconds"]
            for cell in cells
            if cell.label == method and cell.seed in own
            for epoch in RunDirectory(cell.path).read_metrics()
        ]
        row["seconds_per_epoch"] = statistics.median(times) if times else None
        rows.append(row)
    return Comparison(rows=rows, problems=list(_problems(cells, failures)))


def summaries_of(
    summaries: dict[tuple[str, int], dict[str, Any]], method: str
) -> dict[int, dict[str, Any]]:
    """The finished runs of a method by seed."""
    return {
        seed: summary
        for (name, seed), summary in summaries.items()
        if name == method and summary["status"] == "finished"
    }


def _problems(cells: Sequence[Cell], failures: dict[str, str]) -> Iterator[str]:
    for cell in cells:
        summary = cell.summary()
        if summary["status"] != "finished":
            reason = failures.get(cell.name) or summary.get("reason", "it has not run")
            yield f"{cell.name}: {summary['status']}; {reason}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n − 1); None where there are too few values."""
    if not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_and_interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Mean and its confidence interval by Student's t; None where there are too few values."""
    mean, deviation = mean_and_deviation(values)
    if mean is None or deviation is None:
        return mean, None, None
    from scipy.stats import t

    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    half = quantile * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


HEADER = ("method", "runs", "Final top-1 %", "Best top-1 %", "s/epoch", "Final − first, 95% CI")


def cells_of_row(row: Row) -> tuple[str, ...]:
    """A row of the table as text, under HEADER."""

    def spread(name: str) -> str:
        mean, deviation = row[f"{name}_mean"], row[f"{name}_deviation"]
        if mean is None:
            return "-"
        return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"

    difference, low = row["final_difference"], row["final_difference_low"]
    if difference is None:
        text = "-"
    elif low is None:
        text = f"{difference:+.2f}"
    else:
        text = f"{difference:+.2f} [{low:+.2f}, {row['final_difference_high']:+.2f}]"
    seconds = row["seconds_per_epoch"]
    return (
        row["method"],
        f"{row['runs']}/{row['planned']}",
        spread("final"),
        spread("best"),
        "-" if seconds is None else f"{seconds:.2f}",
        text,
    )
