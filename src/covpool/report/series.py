"""What the figures of runs are drawn from: the records of probes, and points by epoch."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from covpool.analysis.records import QUANTILES
from covpool.report.groups import MethodRow, Setting
from covpool.train.analysis_rows import measurements

Points = dict[int, float]
"""Values by epoch or by step."""

Record = Mapping[str, Any]


def probed(setting: Setting, probe: str) -> dict[MethodRow, list[list[Record]]]:
    """By row, the records of a probe that hold figures, of each run that has any."""
    found = {}
    for row in setting.rows:
        runs = [measurements(run.analysis, probe) for run in row.runs]
        if any(runs):
            found[row] = [records for records in runs if records]
    return found


def failures(setting: Setting, probe: str) -> list[str]:
    """Why measurements of a probe failed, of each that did."""
    records = (record for run in setting.runs for record in run.analysis)
    return [str(r["error"]) for r in records if r.get("probe") == probe and "error" in r]


def switches(series: Iterable[Iterable[Record]], place: str = "epoch") -> list[int]:
    """The places, each once, of the records whose method is another one than before."""
    return sorted(
        {
            after[place]
            for records in series
            for before, after in pairwise(records)
            if before.get("method") != after.get("method")
        }
    )


def switch_epochs(rows: Iterable[MethodRow]) -> list[float]:
    """Where an axis of epochs is to show that the method was switched: between two of them."""
    return [epoch - 0.5 for epoch in switches(run.history for row in rows for run in row.runs)]


def as_float(value: Any) -> float:
    """A number of a record, where infinities and NaN are text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def quantile(distribution: object, share: float) -> float:
    """A quantile of a record's distribution; NaN where there is none."""
    quantiles = (distribution.get("quantiles") or ()) if isinstance(distribution, Mapping) else ()
    place = QUANTILES.index(share)
    return as_float(quantiles[place]) if place < len(quantiles) else math.nan


def median(values: Iterable[float]) -> float:
    """The median of the values that are numbers; NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def median_by_epoch(records: Iterable[Record], figure: Callable[[Record], float]) -> Points:
    """By epoch the median of a figure over the records that have it."""
    by_epoch: dict[int, list[float]] = {}
    for record in records:
        by_epoch.setdefault(int(record["epoch"]), []).append(figure(record))
    medians = {epoch: median(values) for epoch, values in sorted(by_epoch.items())}
    return {epoch: value for epoch, value in medians.items() if not math.isnan(value)}
