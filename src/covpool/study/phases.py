"""The runs of a study: trials of the learning rate on validation images, then those that count."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from covpool.reproduce.arms import Arm
from covpool.reproduce.runs import TRUNK, cells_of, config_of
from covpool.study.design import Study
from covpool.train.cells import Cell, check_same_options
from covpool.train.config import RunConfig
from covpool.train.run_directory import replace_text

TUNING, RUNS, RATES = "tuning", "runs", "rates.json"
FIRST_TUNING_SEED = 1000

Rates = dict[str, dict[str, Any]]
"""By arm its `rate`, and the `validation_top1` in percent of every rate tried."""


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
    study: Study,
    trials: Mapping[tuple[Arm, float, int], Cell],
    failures: Mapping[str, str] = MappingProxyType({}),
) -> Rates:
    """By arm the rate of the highest mean validation accuracy in the last epoch, and all trials.

    A trial that diverged counts as no accuracy at all; of equals the lower rate is taken, and of
    an arm whose every trial diverged the lowest, so that its runs show what becomes of it.

    Raises:
        ValueError: a trial that neither finished nor diverged, which says nothing of its rate.
    """
    _check_ended(trials.values(), failures)
    chosen = {}
    for arm in dict.fromkeys(map(tuned_as, study.arms)):
        means = {}
        for rate in sorted(study.rates):
            own = [cell for (each, r, _), cell in trials.items() if (each, r) == (arm, rate)]
            means[rate] = fmean(_final(cell) for cell in own)
        best = max(means, key=lambda rate: means[rate])
        accuracies = {
            f"{rate:g}": 100 * mean if math.isfinite(mean) else None for rate, mean in means.items()
        }
        chosen[arm.label] = {"rate": best, "validation_top1": accuracies}
    return chosen


def _check_ended(trials: Iterable[Cell], failures: Mapping[str, str]) -> None:
    unsettled = [cell for cell in trials if not cell.settled()]
    if unsettled:
        first, summary = unsettled[0], unsettled[0].summary()
        reason = failures.get(first.name) or summary.get("reason", "it has not run")
        raise ValueError(
            f"no rate is chosen while {len(unsettled)} of the trials have not come to an end, the "
            f"first {first.path} ({summary['status']}; {reason}); the same command tries them "
            "again, and --arms can leave an arm out"
        )


def _final(cell: Cell) -> float:
    summary = cell.summary()
    return summary["final"]["test_top1"] if summary["status"] == "finished" else -math.inf


def write_rates(folder: Path, rates: Mapping[str, Mapping[str, Any]]) -> None:
    """Write rates.json."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / RATES, json.dumps(rates, indent=2) + "\n")


def read_rates(path: Path, arms: Iterable[Arm]) -> Rates:
    """The rates that an earlier tuning chose.

    Raises:
        ValueError, OSError: no such file, or one that lacks an arm.
    """
    wrong = f"{path} is not a {RATES} of a study"
    try:
        rates = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{wrong}: {error}") from error
    if not isinstance(rates, dict):
        raise ValueError(f"{wrong}: it holds {rates!r}, no arms")
    for label, chosen in rates.items():
        tried = chosen.get("validation_top1") if isinstance(chosen, dict) else None
        rate = chosen.get("rate") if isinstance(chosen, dict) else None
        if not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise ValueError(f"{wrong}: {label} has {chosen!r}, no `rate` above 0")
        if not isinstance(tried, dict):
            raise ValueError(f"{wrong}: {label} has {chosen!r}, no `validation_top1` by rate")
    for arm in arms:
        if (label := tuned_as(arm).label) not in rates:
            raise ValueError(
                f"{path} has no rate of {label}, only of {', '.join(rates) or 'nothing'}; leave "
                f"--rates out to tune it, or --arms without it"
            )
    return rates


def earlier_rates(folder: Path) -> Rates:
    """The rates that an earlier command left in the output folder; none where there is none.

    Raises:
        ValueError: a file that is not what a study writes.
    """
    file = folder / RATES
    return read_rates(file, ()) if file.is_file() else {}


def final_cells(
    study: Study, rates: Mapping[str, Mapping[str, Any]], output: Path, threads: int
) -> dict[tuple[Arm, int], Cell]:
    """The runs that count, each arm at its rate, seed by seed so that all are compared early.

    Hybrid runs begin at the last decay from the state of the Newton-Schulz run with their seed,
    where the study has it.
    """
    configs = {}
    ordered = sorted(study.arms, key=lambda arm: (arm.hybrid, arm != TRUNK))
    for seed in sorted({seed for arm in study.arms for seed in study.seeds_of(arm)}):
        for arm in ordered:
            if seed not in study.seeds_of(arm):
                continue
            rate = rates[tuned_as(arm).label]["rate"]
            configs[arm, seed] = _with(config_of(study.config, arm), rate, seed, threads)
    return cells_of(configs, partial(path_of, output))


def found_cells(
    study: Study, rates: Mapping[str, Mapping[str, Any]], output: Path
) -> dict[tuple[Arm, int], Cell]:
    """The runs of the study's arms that are in the output folder, of whatever seeds.

    Raises:
        ValueError: one that was begun with other options or at another rate.
    """
    found = {}
    for arm in study.arms:
        for path in (output / RUNS).glob(f"{arm.label}-seed*"):
            seed = path.name.removeprefix(f"{arm.label}-seed")
            if not seed.isdecimal() or not (path / "config.yaml").is_file():
                continue
            if (label := tuned_as(arm).label) not in rates:
                raise ValueError(
                    f"run {path} is there, but {output / RATES} has no rate of {label}; put that "
                    "file back, move the run away, or choose another --output"
                )
            config = _with(config_of(study.config, arm), rates[label]["rate"], int(seed), None)
            cell = Cell(label=arm.label, seed=int(seed), config=config, path=path)
            check_same_options(cell)
            found[arm, int(seed)] = cell
    return dict(sorted(found.items(), key=lambda item: item[0][1]))


def path_of(output: Path, arm: Arm, seed: int) -> Path:
    """The directory of a run that counts."""
    return output / RUNS / f"{arm.label}-seed{seed}"


def _with(config: RunConfig, rate: float, seed: int, threads: int | None) -> RunConfig:
    return replace(
        config,
        optim=replace(config.optim, learning_rate=rate),
        train=replace(config.train, seed=seed, threads=threads),
    )
