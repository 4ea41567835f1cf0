"""What a study will take: steps measured here, and the seeds that an interval needs."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import stdev

import torch

from covpool.reproduce.arms import NEWTON_SCHULZ, Arm
from covpool.reproduce.estimate import device_of, seconds_per_epoch
from covpool.reproduce.runs import config_of
from covpool.study.design import Study
from covpool.study.phases import tuned_as
from covpool.train.comparison import CONFIDENCE
from covpool.train.grid import Cell
from covpool.train.job import prepare

MOST_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class Line:
    """One arm's part of the plan.

    Attributes:
        arm: the way to train.
        trials: runs on the validation images that its rate is chosen by.
        runs: runs that count.
        seconds: of all of them, one after the other; of the trials nothing where an earlier arm
            has them.
    """

    arm: Arm
    trials: int
    runs: int
    seconds: float


def make_plan(
    study: Study,
    cells: Iterable[tuple[Arm, Cell]],
    *,
    tuned: bool,
    threads: int,
    report: Callable[[str], None],
) -> list[Line]:
    """The plan of a study, from steps of every pooling measured on this machine.

    Args:
        study: what is compared.
        cells: the runs that count, with their arms.
        tuned: whether the rates are known already.
        threads: of each run.
        report: called with each arm's name before it is measured.
    """
    torch.set_num_threads(threads)
    device = device_of(study.config.train.accelerator)
    seconds: dict[Arm, float] = {}
    for arm in dict.fromkeys([*study.arms, *map(tuned_as, study.arms)]):
        if not arm.hybrid:
            report(arm.label)
            job = prepare(config_of(study.config, arm))
            seconds[arm] = seconds_per_epoch(job, arm.method, device)
    for arm in study.arms:
        if arm.hybrid and Arm(arm.method) not in seconds:
            report(arm.label)
            job = prepare(config_of(study.config, Arm(arm.method)))
            seconds[Arm(arm.method)] = seconds_per_epoch(job, arm.method, device)
    epochs = study.config.train.epochs
    switch = study.config.optim.milestones[-1] if study.config.optim.milestones else 0
    own = list(cells)
    lines, seen = [], set[Arm]()
    for arm in study.arms:
        runs = [cell for each, cell in own if each == arm]
        trials = 0 if tuned or tuned_as(arm) in seen else len(study.rates) * study.tuning_seeds
        seen.add(tuned_as(arm))
        total = trials * epochs * seconds[tuned_as(arm)]
        for cell in runs:
            if arm.hybrid:
                total += (switch - cell.inherited) * seconds[Arm(NEWTON_SCHULZ)]
                total += (epochs - switch) * seconds[Arm(arm.method)]
            else:
                total += epochs * seconds[arm]
        lines.append(Line(arm=arm, trials=trials, runs=len(runs), seconds=total))
    return lines


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
