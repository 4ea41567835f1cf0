"""Statistics over seeds, by Student's t: spreads, paired differences, and how many seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

BySeed = Mapping[int, float]

CONFIDENCE = 0.95

MOST_SEEDS = 1000

Interval = tuple[float | None, float | None, float | None]
"""Mean, lower and upper end; None where there are too few values."""


def differences(left: BySeed, right: BySeed) -> dict[int, float]:
    """left − right, for the seeds that both have."""
    return {seed: value - right[seed] for seed, value in left.items() if seed in right}


def mean_over(series: Sequence[BySeed]) -> dict[int, float]:
    """By seed the mean over the series, for the seeds that all have."""
    seeds = set[int].intersection(*(set(each) for each in series)) if series else set()
    return {seed: fmean(each[seed] for each in series) for seed in sorted(seeds)}


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm; NaN without values."""
    logs = [math.log(value) if value > 0 else -math.inf for value in values]
    return math.exp(fmean(logs)) if logs else math.nan


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n − 1); None where there are too few values."""
    if not values:
        return None, None
    return fmean(values), stdev(values) if len(values) > 1 else None


def mean_and_interval(values: Sequence[float]) -> Interval:
    """Mean and its 95% interval by Student's t; None where there are too few values."""
    mean, deviation = mean_and_deviation(values)
    if mean is None or deviation is None:
        return mean, None, None
    half = _quantile(len(values)) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


def prediction_interval(values: Sequence[float], new: int) -> tuple[float, float] | None:
    """Where the mean of so many further values lies with a probability of 95%.

    mean ± t(n − 1)·s·√(1/n + 1/new), s the standard deviation of the n values; wider than the
    interval of their mean, as the new ones scatter too. None of fewer than two values.
    """
    if len(values) < 2:
        return None
    half = _quantile(len(values)) * stdev(values) * math.sqrt(1 / len(values) + 1 / new)
    return fmean(values) - half, fmean(values) + half


def seeds_needed(pairs: Sequence[float], half_width: float) -> int | None:
    """Seeds after which the 95% interval of a paired difference is this narrow.

    n is the least with t(n − 1)·s/√n ≤ half_width, s the standard deviation of the pairs so far.

    Returns:
        None where two pairs are not there yet, or more than a thousand seeds would be needed.
    """
    if len(pairs) < 2:
        return None
    deviation = stdev(pairs)
    for number in range(2, MOST_SEEDS + 1):
        if _quantile(number) * deviation / math.sqrt(number) <= half_width:
            return number
    return None


def _quantile(number: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, number - 1))


def p_value(pairs: Sequence[float]) -> float | None:
    """Of the hypothesis that paired differences have the mean zero, two-sided.

    Returns:
        None where there are no two pairs, or all are the same, of which t is not defined.
    """
    from scipy.stats import t

    if len(pairs) < 2 or not (deviation := stdev(pairs)):
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


def spread_text(mean: float | None, deviation: float | None, none: str = "–") -> str:
    """Mean ± deviation, as far as they are known."""
    if mean is None:
        return none
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def interval_text(
    mean: float | None, low: float | None, high: float | None, none: str = "–"
) -> str:
    """A difference and its interval, as far as they are known."""
    if mean is None:
        return none
    return f"{mean:+.2f}" if low is None else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
