"""The table of a comparison: mean and deviation by method, paired differences."""

from typing import Any

from covpool.experiments.inference import Spread, differences, median_or_none
from covpool.experiments.results import RunSet
from covpool.experiments.sheet import Sheet, Table, notes
from covpool.text import quantity

HEADER = ("method", "runs", "Final top-1 %", "Best top-1 %", "s/epoch", "Final − first, 95% CI")


def make_sheet(runs: RunSet, jobs: int) -> Sheet:
    """The comparison, with a table for people and the same as numbers.

    Means are over the runs that finished; differences are to the first method.
    """
    rows, texts = [], []
    first = runs.arms[0]
    for arm in runs.arms:
        finished = runs.finished(arm)
        counts = {"runs": len(finished), "planned": len(runs.seeds)}
        row: dict[str, Any] = {"method": arm.label, **counts}
        spreads, gaps = {}, {}
        for name in ("final", "best"):
            own, base = (
                {seed: 100 * summary[name]["test_top1"] for seed, summary in found.items()}
                for found in (finished, runs.finished(first) if arm != first else {})
            )
            spread, gap = Spread.of(own), Spread.of(differences(own, base))
            row |= {f"{name}_mean": spread.mean, f"{name}_deviation": spread.deviation}
            row |= {f"{name}_difference": gap.mean}
            row |= {f"{name}_difference_low": gap.low, f"{name}_difference_high": gap.high}
            spreads[name], gaps[name] = spread.text("-"), gap.interval_text("-")
        seconds = median_or_none(
            epoch["seconds"] for seed in finished for epoch in runs.history(arm, seed)
        )
        rows.append(row | {"seconds_per_epoch": seconds})
        time = "-" if seconds is None else f"{seconds:.2f}"
        share = "/".join(map(str, counts.values()))
        texts.append((arm.label, share, *spreads.values(), time, gaps["final"]))
    config, some = runs.config, next(iter(runs.runs.values()))
    return Sheet(
        name="comparison",
        title=f"Pooling methods compared: {config.model.backbone}, "
        f"{quantity(config.train.epochs, 'epoch')}",
        tables=[Table(columns=HEADER, rows=texts)],
        data={
            "config": config.to_dict(),
            "jobs": jobs,
            "table": rows,
            "runs": [
                {"method": run.arm.label, "seed": run.seed, "path": run.path.name}
                | runs.summaries[key]
                for key, run in runs.runs.items()
            ],
        },
        notes=notes(
            "comparison",
            seeds=runs.seeds,
            split=config.data.evaluated_split,
            jobs=jobs,
            threads=some.config.train.threads,
        ),
        problems=runs.problems(runs.arms),
    )
