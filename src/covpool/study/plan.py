"""What a study will take, by steps measured here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain

import torch

from covpool.reproduce.arms import NEWTON_SCHULZ, Arm
from covpool.reproduce.estimate import device_of, seconds_per_epoch
from covpool.reproduce.runs import config_of
from covpool.study.design import Study
from covpool.study.phases import tuned_as
from covpool.train.cells import Cell
from covpool.train.job import Job, prepare


@dataclass(frozen=True, kw_only=True)
class Line:
    """One arm's part of the plan.

    Attributes:
        arm: the way to train.
        trials: runs on the validation images that its rate is chosen by.
        runs: runs that count.
        settled: how many of both are there already.
        seconds: of the others, one after the other; of the trials nothing where an earlier arm has
            them.
    """

    arm: Arm
    trials: int
    runs: int
    settled: int
    seconds: float


def make_plan(
    study: Study,
    trials: Iterable[tuple[Arm, Cell]],
    cells: Iterable[tuple[Arm, Cell]],
    *,
    job: Job,
    threads: int,
    report: Callable[[str], None],
) -> list[Line]:
    """The plan of a study, from steps of every pooling measured on this machine.

    Args:
        study: what is compared.
        trials: of the rates, with their arms; none where the rates are known.
        cells: the runs that count, with their arms.
        job: of the study's first arm, whose model is used up.
        threads: of each run.
        report: called with each arm's name before it is measured.
    """
    torch.set_num_threads(threads)
    device = device_of(study.config.train.accelerator)
    # Methods share a model, since they have no parameters; the images have been checked already.
    jobs = {_model_of(study.arms[0]): job}
    seconds: dict[Arm, float] = {}
    needed = ((replace(arm, hybrid=False), tuned_as(arm)) for arm in study.arms)
    for arm in dict.fromkeys(chain.from_iterable(needed)):
        report(arm.label)
        model = _model_of(arm)
        if model not in jobs:
            config = config_of(study.config, arm)
            if not config.data.skip_damaged:
                config = replace(config, data=replace(config.data, check="none"))
            jobs[model] = prepare(config)
        seconds[arm] = seconds_per_epoch(jobs[model], arm.method, device)
    epochs = study.config.train.epochs
    switch = study.config.optim.milestones[-1] if study.config.optim.milestones else 0
    tried, counted = list(trials), list(cells)
    lines, seen = [], set[Arm]()
    for arm in study.arms:
        own_trials = [cell for each, cell in tried if each == tuned_as(arm) and each not in seen]
        seen.add(tuned_as(arm))
        runs = [cell for each, cell in counted if each == arm]
        left = [cell for cell in own_trials if not cell.settled()]
        share = 1 - study.config.data.validation_fraction
        total = len(left) * share * epochs * seconds[tuned_as(arm)]
        for cell in runs:
            if cell.settled():
                continue
            if arm.hybrid:
                total += (switch - cell.inherited) * seconds[Arm(NEWTON_SCHULZ)]
                total += (epochs - switch) * seconds[Arm(arm.method)]
            else:
                total += epochs * seconds[arm]
        settled = sum(cell.settled() for cell in (*own_trials, *runs))
        lines.append(
            Line(arm=arm, trials=len(own_trials), runs=len(runs), settled=settled, seconds=total)
        )
    return lines


def _model_of(arm: Arm) -> tuple[bool, bool, bool]:
    """Arms of which this is equal train the same parameters."""
    return arm.method == "gap", arm.matched, arm.reduced
