"""Statistics over seeds, by Student's t: spreads, paired differences, and how many seeds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Self

BySeed = Mapping[int, float]

CONFIDENCE = 0.95

MOST_SEEDS = 1000

ROUNDING = 1e-9
"""A deviation below this is of rounding errors: what is measured comes in far larger steps."""


def differences(left: BySeed, right: BySeed) -> dict[int, float]:
    """left − right, for the seeds that both have."""
    return {seed: value - right[seed] for seed, value in left.items() if seed in right}


def mean_over(series: Sequence[BySeed]) -> dict[int, float]:
    """By seed the mean over the series, for the seeds that all have."""
    seeds = set[int].intersection(*(set(each) for each in series)) if series else set()
    return {seed: fmean(each[seed] for each in series) for seed in sorted(seeds)}


def mean_by_place(
    series: Iterable[Mapping[int, float]], mean: Callable[[Sequence[float]], float] = fmean
) -> dict[int, float]:
    """The mean at each place over the finite values; a place that has none is left out."""
    values: dict[int, list[float]] = {}
    for points in series:
        for place, value in points.items():
            if math.isfinite(value):
                values.setdefault(place, []).append(value)
    return {place: mean(own) for place, own in sorted(values.items())}


def median_or_none(values: Iterable[float]) -> float | None:
    """The median; None without values."""
    known = list(values)
    return median(known) if known else None


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm; NaN without values."""
    logs = [math.log(value) if value > 0 else -math.inf for value in values]
    return math.exp(fmean(logs)) if logs else math.nan


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values by seed, their mean and standard deviation (n − 1), and the 95% interval of the mean
    by Student's t; None what too few values do not give. Values that are all the same have no
    interval, since they do not tell how far others would scatter."""

    values: BySeed
    mean: float | None
    deviation: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: BySeed) -> Self:
        """Of values by seed."""
        own = [*values.values()]
        mean, deviation = fmean(own) if own else None, _deviation(own)
        if mean is None or not deviation:
            return cls(values=values, mean=mean, deviation=deviation, low=None, high=None)
        half = _quantile(len(own)) * deviation / math.sqrt(len(own))
        return cls(values=values, mean=mean, deviation=deviation, low=mean - half, high=mean + half)

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval lies above or below zero, 0 where it holds it; None where
        there is none."""
        if self.low is None or self.high is None:
            return None
        return (self.low > 0) - (self.high < 0)

    def text(self) -> str:
        """Mean ± deviation, as far as they are known."""
        if self.mean is None:
            return "–"
        mean = f"{self.mean:.2f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.2f}"

    def interval_text(self) -> str:
        """A difference and its interval, as far as they are known."""
        if self.mean is None:
            return "–"
        mean = f"{self.mean:+.2f}"
        return mean if self.low is None else f"{mean} [{self.low:+.2f}, {self.high:+.2f}]"


def seeds_needed(pairs: Sequence[float], half_width: float) -> int | None:
    """Seeds after which the 95% interval of a paired difference is this narrow.

    n is the least with t(n − 1)·s/√n ≤ half_width, s the standard deviation of the pairs so far.

    Returns:
        None where two pairs are not there yet, all are the same, or more than a thousand seeds
        would be needed.
    """
    if not (deviation := _deviation(pairs)):
        return None
    for number in range(2, MOST_SEEDS + 1):
        if _quantile(number) * deviation / math.sqrt(number) <= half_width:
            return number
    return None


def _deviation(values: Sequence[float]) -> float | None:
    """The standard deviation, 0 where it is of rounding alone; None of fewer than two values."""
    if len(values) < 2:
        return None
    deviation = stdev(values)
    return 0.0 if deviation < ROUNDING else deviation


def _quantile(number: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, number - 1))


def p_value(pairs: Sequence[float]) -> float | None:
    """Of the hypothesis that paired differences have the mean zero, two-sided.

    Returns:
        None where there are no two pairs, or all are the same, of which t is not defined.
    """
    from scipy.stats import t

    if not (deviation := _deviation(pairs)):
        return None
    statistic = abs(fmean(pairs)) * math.sqrt(len(pairs)) / deviation
    return float(2 * t.sf(statistic, len(pairs) - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The same, adjusted for their number: below α for any of them with probability at most α
    where no difference is there at all. Those that are None are not counted.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal
    of Statistics 6, 1979.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted
