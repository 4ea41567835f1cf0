"""The table of a comparison: mean and deviation by method, paired differences."""

from collections.abc import Mapping
from typing import Any

from covpool.experiments.inference import (
    differences,
    interval_text,
    mean_and_deviation,
    mean_and_interval,
    spread_text,
)
from covpool.experiments.results import RunSet, median_or_none
from covpool.experiments.sheet import Sheet, Table
from covpool.train.run_directory import Row

HEADER = ("method", "runs", "Final top-1 %", "Best top-1 %", "s/epoch", "Final − first, 95% CI")


def tabulate(runs: RunSet) -> list[Row]:
    """Mean and deviation of Final and Best, time per epoch, paired difference to the first method.

    Means are over the runs that finished; `runs` says where some did not.
    """
    rows = []
    for arm in runs.arms:
        finished = runs.finished(arm)
        row: Row = {"method": arm.label, "runs": len(finished), "planned": len(runs.seeds)}
        for name in ("final", "best"):
            values = _top1(finished, name)
            row[f"{name}_mean"], row[f"{name}_deviation"] = mean_and_deviation([*values.values()])
            base = {} if arm == runs.arms[0] else _top1(runs.finished(runs.arms[0]), name)
            found = mean_and_interval([*differences(values, base).values()])
            ends = ("difference", "difference_low", "difference_high")
            row |= {f"{name}_{end}": value for end, value in zip(ends, found, strict=True)}
        row["seconds_per_epoch"] = median_or_none(
            epoch["seconds"] for seed in finished for epoch in runs.history(arm, seed)
        )
        rows.append(row)
    return rows


def _top1(finished: Mapping[int, Row], measure: str) -> dict[int, float]:
    return {seed: 100 * summary[measure]["test_top1"] for seed, summary in finished.items()}


def cells_of_row(row: Row) -> tuple[str, ...]:
    """A row of the table as text, under HEADER."""
    seconds = row["seconds_per_epoch"]
    ends = ("final_difference", "final_difference_low", "final_difference_high")
    return (
        row["method"],
        f"{row['runs']}/{row['planned']}",
        *(spread_text(row[f"{n}_mean"], row[f"{n}_deviation"], "-") for n in ("final", "best")),
        "-" if seconds is None else f"{seconds:.2f}",
        interval_text(*(row[end] for end in ends), none="-"),
    )


def make_sheet(runs: RunSet, jobs: int) -> Sheet:
    """The comparison, with a table for people and the same as numbers."""
    config, rows = runs.config, tabulate(runs)
    split, threads = (
        config.data.evaluated_split,
        next(iter(runs.runs.values())).config.train.threads,
    )
    data: dict[str, Any] = {"config": config.to_dict(), "jobs": jobs, "table": rows}
    data["runs"] = [
        {"method": arm.label, "seed": seed, "path": runs.runs[arm, seed].path.name, **summary}
        for (arm, seed), summary in runs.summaries.items()
    ]
    return Sheet(
        name="comparison",
        title=f"Pooling methods compared: {config.model.backbone}, {config.train.epochs} epochs",
        tables=[Table(columns=HEADER, rows=[cells_of_row(row) for row in rows])],
        data=data,
        notes=[
            f"Mean ± standard deviation over seeds {', '.join(map(str, runs.seeds))}, {split}. "
            f"Final is the last epoch; Best the highest of all epochs on the {split} itself, so it "
            "flatters. s/epoch is the median over epochs of training without evaluation, "
            f"{jobs} run(s) at a time with {threads} thread(s) each. The difference is paired by "
            "seed against the first method, with its 95% interval by Student's t."
        ],
        problems=runs.problems(runs.arms),
    )
