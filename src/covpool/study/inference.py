"""Student's t beyond a mean's interval: tests of several questions, new runs, how many seeds."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from covpool.train.comparison import CONFIDENCE

MOST_SEEDS = 1000


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


def prediction_interval(values: Sequence[float], new: int) -> tuple[float, float] | None:
    """Where the mean of so many further values lies with a probability of 95%.

    mean ± t(n − 1)·s·√(1/n + 1/new), s the standard deviation of the n values; wider than the
    interval of their mean, as the new ones scatter too.

    Returns:
        None of fewer than two values.
    """
    from scipy.stats import t

    if len(values) < 2:
        return None
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    half = quantile * stdev(values) * math.sqrt(1 / len(values) + 1 / new)
    return fmean(values) - half, fmean(values) + half


def seeds_needed(pairs: Sequence[float], half_width: float) -> int | None:
    """Seeds after which the 95% interval of a paired difference is this narrow.

    n is the least with t(n − 1)·s/√n ≤ half_width, s the standard deviation of the pairs so far.

    Returns:
        None where two pairs are not there yet, or more than a thousand seeds would be needed.
    """
    from scipy.stats import t

    if len(pairs) < 2:
        return None
    deviation = stdev(pairs)
    for number in range(2, MOST_SEEDS + 1):
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, number - 1))
        if quantile * deviation / math.sqrt(number) <= half_width:
            return number
    return None
