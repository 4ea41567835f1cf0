"""What the probes wrote along the training, by epoch, stage and seed."""

import math
from collections.abc import Iterable

from covpool.analysis.records import QUANTILES
from covpool.reproduce.arms import Arm
from covpool.reproduce.results import BySeed, Setting, geometric_mean

CONDITION_NUMBERS = (
    (
        "floored, covariance as formed (the paper's way)",
        "of_covariance",
        "condition_number_floored",
    ),
    ("floored, features", "of_features", "condition_number_floored"),
    ("range of the features", "of_features", "condition_number_of_range"),
)
"""Titles, and where a row of the conditioning probe has the figure."""

PAPERS_WAY = CONDITION_NUMBERS[0][1:]

Stage = tuple[int, int]
"""First and last epoch with one learning rate, counted from 1."""


def stages(setting: Setting) -> list[Stage]:
    """The stages of the learning rate."""
    first = setting.first_epochs
    ends = [*(epoch - 1 for epoch in first[1:]), setting.config.train.epochs]
    return list(zip(first, ends, strict=True))


def condition_numbers(
    setting: Setting, arm: Arm, epoch: int, way: str, figure: str
) -> dict[int, float]:
    """By seed: the median over samples, the geometric mean over an epoch's measurements."""
    median = QUANTILES.index(0.5)
    found = {}
    for seed, rows in setting.measured(arm, "conditioning").items():
        values = [
            float(row[way][figure]["quantiles"][median]) for row in rows if row["epoch"] == epoch
        ]
        if values:
            found[seed] = geometric_mean(values)
    return found


def smoothness(setting: Setting, arm: Arm, stage: Stage) -> dict[int, float]:
    """By seed: the geometric mean of β over a stage's measurements."""
    return {
        seed: geometric_mean(values.values())
        for seed, values in _by_step(setting, arm, stage).items()
        if values
    }


def smoothness_ratio(setting: Setting, one: Arm, other: Arm, stage: Stage) -> dict[int, float]:
    """By seed: the geometric mean of β of one over β of the other, at the steps that both have."""
    left, right = (_by_step(setting, arm, stage) for arm in (one, other))
    ratios = {}
    for seed in left:
        steps = left[seed].keys() & right.get(seed, {}).keys()
        if steps:
            ratios[seed] = geometric_mean(left[seed][step] / right[seed][step] for step in steps)
    return ratios


def _by_step(setting: Setting, arm: Arm, stage: Stage) -> dict[int, dict[int, float]]:
    """β by seed and step, where it is a positive number."""
    first, last = stage
    return {
        seed: {
            row["step"]: value
            for row in rows
            if first <= row["epoch"] <= last and 0 < (value := float(row["smoothness"])) < math.inf
        }
        for seed, rows in setting.measured(arm, "smoothness").items()
    }


def spread(values: BySeed) -> str:
    """Geometric mean over seeds, and the least and largest of them."""
    if not values:
        return "not measured"
    mean = _number(geometric_mean(values.values()))
    if len(values) == 1:
        return mean
    return f"{mean} [{_number(min(values.values()))}, {_number(max(values.values()))}]"


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.2e}"


def log10(values: BySeed) -> dict[int, float]:
    """Decimal logarithms, in which ratios are differences."""
    return {
        seed: math.log10(value) if 0 < value < math.inf else math.nan
        for seed, value in values.items()
    }


def all_finite(values: Iterable[float]) -> bool:
    """Whether each is a finite number."""
    return all(math.isfinite(value) for value in values)
