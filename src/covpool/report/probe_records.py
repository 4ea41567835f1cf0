"""What the figures of probes share: reading their records."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from covpool.report.groups import Setting
from covpool.report.series import Points
from covpool.report.sources import Run

Record = Mapping[str, Any]


def probe_rows(run: Run, probe: str) -> list[Record]:
    """The run's records of a probe that hold figures."""
    return [
        row
        for row in run.analysis
        if row.get("probe") == probe and "error" not in row and isinstance(row.get("step"), int)
    ]


def failures(setting: Setting, probe: str) -> list[str]:
    """Says of measurements that failed, where any did."""
    texts = [
        str(row["error"])
        for run in setting.runs
        for row in run.analysis
        if row.get("probe") == probe and "error" in row
    ]
    if not texts:
        return []
    return [f"{len(texts)} measurements failed and are left out; the first: {texts[0]}"]


def as_float(value: Any) -> float:
    """A number of a record, where infinities and NaN are text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def median_by_epoch(rows: Iterable[Record], figure: Callable[[Record], float]) -> Points:
    """By epoch the median of a figure over the records that have it."""
    by_epoch: dict[int, list[float]] = {}
    for row in rows:
        value = figure(row)
        if not math.isnan(value):
            by_epoch.setdefault(int(row["epoch"]), []).append(value)
    return {epoch: statistics.median(own) for epoch, own in sorted(by_epoch.items())}


NO_PROBE = (
    "The runs were trained without the {probe} probe; --train.probes [{probe}] switches it on."
)


def quantile(distribution: object, place: int) -> float:
    """A quantile of a record's distribution; NaN where there is none."""
    quantiles = (distribution.get("quantiles") or ()) if isinstance(distribution, Mapping) else ()
    return as_float(quantiles[place]) if -len(quantiles) <= place < len(quantiles) else math.nan
