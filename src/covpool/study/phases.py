"""The runs of a study: trials of the learning rate on validation images, then those that count."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from covpool.reproduce.arms import NEWTON_SCHULZ, Arm
from covpool.reproduce.runs import config_of
from covpool.study.design import Study
from covpool.train.branches import BranchPoint
from covpool.train.config import RunConfig
from covpool.train.grid import Cell
from covpool.train.run_directory import replace_text

TUNING, RUNS, RATES = "tuning", "runs", "rates.json"
FIRST_TUNING_SEED = 1000
TRUNK = Arm(NEWTON_SCHULZ)


def tuned_as(arm: Arm) -> Arm:
    """The arm whose trials decide an arm's rate.

    Hybrid training is that of Newton-Schulz until the last decay, with its rates: the paper's
    protocol changes the method of a given training.
    """
    return TRUNK if arm.hybrid else arm


def tuning_cells(study: Study, output: Path, threads: int) -> dict[tuple[Arm, float, int], Cell]:
    """The trials: each arm with each rate, evaluated on held-out training images."""
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + study.tuning_seeds)
    data = replace(study.config.data, evaluate="validation")
    config = replace(study.config, data=data, train=replace(study.config.train, probes=()))
    return {
        (arm, rate, seed): Cell(
            label=f"{arm.label} rate {rate:g}",
            seed=seed,
            config=_with(config_of(config, arm), rate, seed, threads),
            path=output / TUNING / f"{arm.label}-rate{rate:g}-seed{seed}",
        )
        for seed in seeds
        for arm in dict.fromkeys(map(tuned_as, study.arms))
        for rate in study.rates
    }


def chosen_rates(
    study: Study, trials: Mapping[tuple[Arm, float, int], Cell]
) -> dict[str, dict[str, object]]:
    """By arm the rate of the highest mean validation accuracy in the last epoch, and all trials.

    A trial that diverged counts as no accuracy at all; of equals the lower rate is taken.

    Raises:
        ValueError: an arm none of whose rates trained to the end.
    """
    chosen = {}
    for arm in dict.fromkeys(map(tuned_as, study.arms)):
        means = {}
        for rate in sorted(study.rates):
            own = [cell for (each, r, _), cell in trials.items() if (each, r) == (arm, rate)]
            means[rate] = fmean(_final(cell) for cell in own)
        best = max(means, key=lambda rate: means[rate])
        if not math.isfinite(means[best]):
            reasons = {c.summary().get("reason", "") for (a, _, _), c in trials.items() if a == arm}
            raise ValueError(
                f"no rate of {', '.join(map(str, study.rates))} trained {arm.label} to the end "
                f"({'; '.join(sorted(filter(None, reasons)))}); give lower study.rates"
            )
        accuracies = {
            f"{rate:g}": 100 * mean if math.isfinite(mean) else None for rate, mean in means.items()
        }
        chosen[arm.label] = {"rate": best, "validation_top1": accuracies}
    return chosen


def _final(cell: Cell) -> float:
    summary = cell.summary()
    return summary["final"]["test_top1"] if summary["status"] == "finished" else -math.inf


def write_rates(folder: Path, rates: Mapping[str, Mapping[str, object]]) -> None:
    """Write rates.json."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / RATES, json.dumps(rates, indent=2) + "\n")


def read_rates(path: Path, arms: Iterable[Arm]) -> dict[str, dict[str, object]]:
    """The rates that an earlier tuning chose.

    Raises:
        ValueError, OSError: no such file, or one that lacks an arm.
    """
    try:
        rates = json.loads(path.read_text(encoding="utf-8"))
        for arm in arms:
            float(rates[tuned_as(arm).label]["rate"])
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a {RATES} of a study: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path} has no rate of {error}; tune it with the whole study") from error
    return rates


def final_cells(
    study: Study, rates: Mapping[str, Mapping[str, object]], output: Path, threads: int
) -> dict[tuple[Arm, int], Cell]:
    """The runs that count, each arm at its rate, seed by seed so that all are compared early.

    Hybrid runs begin at the last decay from the state of the Newton-Schulz run with their seed,
    where the study has it.
    """
    milestones = study.config.optim.milestones
    switch = milestones[-1] if milestones else 0
    branching = bool(switch) and any(arm.hybrid for arm in study.arms) and TRUNK in study.arms
    cells = {}
    ordered = sorted(study.arms, key=lambda arm: (arm.hybrid, arm != TRUNK))
    for seed in sorted({seed for arm in study.arms for seed in study.seeds_of(arm)}):
        for arm in ordered:
            if seed not in study.seeds_of(arm):
                continue
            rate = float(str(rates[tuned_as(arm).label]["rate"]))
            begins = branching and arm.hybrid and seed in study.seeds_of(TRUNK)
            keeps = branching and arm == TRUNK
            cells[arm, seed] = Cell(
                label=arm.label,
                seed=seed,
                config=_with(config_of(study.config, arm), rate, seed, threads),
                path=path_of(output, arm, seed),
                callbacks=(partial(BranchPoint, epochs=switch),) if keeps else (),
                trunk=path_of(output, TRUNK, seed) if begins else None,
                inherited=switch if begins else 0,
            )
    return cells


def path_of(output: Path, arm: Arm, seed: int) -> Path:
    """The directory of a run that counts."""
    return output / RUNS / f"{arm.label}-seed{seed}"


def _with(config: RunConfig, rate: float, seed: int, threads: int) -> RunConfig:
    return replace(
        config,
        optim=replace(config.optim, learning_rate=rate),
        train=replace(config.train, seed=seed, threads=threads),
    )
