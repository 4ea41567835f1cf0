"""A study: ways to train compared on one data set, with rates chosen on validation images.

It is a YAML file with a block `study` and a run's configuration, and makes trials of the learning
rate on held-out training images, then the runs that count.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, TypedDict

import yaml

from covpool.data.types import check_value
from covpool.experiments.arms import Arm, read_arm
from covpool.experiments.runs import (
    SHORT,
    Optim,
    Run,
    check_same_options,
    configured,
    found_runs,
    make_runs,
)
from covpool.linalg.tables import choose
from covpool.train.config import RunConfig
from covpool.train.options import require
from covpool.train.run_directory import replace_text

TUNING, RATES = "tuning", "rates.json"

FIRST_TUNING_SEED = 1000


class Chosen(TypedDict):
    """The rate of an arm, and the validation accuracy in percent of every rate tried, None where
    it diverged."""

    rate: float
    validation_top1: dict[str, float | None]


Rates = Mapping[str, Mapping[str, Any]]
"""By label of an arm a `Chosen`; where decays were tried too with its `weight_decay`, and all
`trials`."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, and how often.

    Attributes:
        name: the file's, without its ending.
        title: what it is about, in a line.
        reduced: what was made smaller for want of a faster machine; empty: nothing.
        history: what was changed after results were seen; empty: nothing.
        arms: the ways to train, by label; the first are trained first.
        leading: those of them that get `leading_seeds` seeds, the others `seeds`.
        references: the arms that all others are compared with.
        rates: learning rates that each arm is tried with on the validation images; of a comparison
            none, as its arms have one rate.
        decays: weight decays that each of them is tried with; none: that of `config`.
        tuning_seeds: seeds of these trials, from 1000 on so that no trial is a run that counts.
        config: options of every run.
    """

    name: str
    title: str
    reduced: str = ""
    history: str = ""
    arms: tuple[Arm, ...]
    leading: tuple[Arm, ...] = ()
    references: tuple[Arm, ...]
    seeds: int = 3
    leading_seeds: int = 5
    rates: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()
    tuning_seeds: int = 1
    config: RunConfig

    def __post_init__(self) -> None:
        for field in ("seeds", "leading_seeds", "tuning_seeds"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"study.{field} must be at least 1, not {value!r}")
        for field in ("arms", "references"):
            _check_names(field, getattr(self, field))
        if not all(0 < rate < math.inf for rate in self.rates):
            raise ValueError(f"study.rates must be above 0 and finite, not {list(self.rates)}")
        if not all(0 <= decay < math.inf for decay in self.decays):
            raise ValueError(f"study.decays must be at least 0, not {list(self.decays)}")
        for field in ("leading", "references"):
            strange = [arm.label for arm in getattr(self, field) if arm not in self.arms]
            if strange:
                raise ValueError(f"study.{field} has {strange[0]!r}, which study.arms has not")

    def seeds_of(self, arm: Arm) -> range:
        """The seeds that an arm is trained with."""
        first = self.config.train.seed
        return range(first, first + (self.leading_seeds if arm in self.leading else self.seeds))

    @property
    def trials(self) -> list[dict[str, float]]:
        """What each arm is tried with: options of the optimiser."""
        tried = {"learning_rate": self.rates, "weight_decay": self.decays}
        axes = {name: sorted(values) for name, values in tried.items() if values}
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]

    def restricted(self, labels: Sequence[str]) -> "Study":
        """The study with these arms alone; references that are not among them are left out.

        Raises:
            ValueError: one that the study does not have.
        """
        own = {arm.label: arm for arm in self.arms}
        arms = tuple(dict.fromkeys(choose("arm of the study", label, own) for label in labels))
        kept = {
            field: tuple(arm for arm in getattr(self, field) if arm in arms)
            for field in ("leading", "references")
        }
        return replace(
            self, arms=arms, leading=kept["leading"], references=kept["references"] or arms[:1]
        )


def _check_names(field: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(
            f"study.{field} must name something, and nothing twice, not {list(values)!r}"
        )


def read_study(path: Path) -> Study:
    """The study of a file.

    Raises:
        ValueError, OSError: a file that cannot be read, or says something that it may not.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("study"), dict):
        raise ValueError(f"{path} is no study: it has no block `study`")
    about: dict[str, Any] = content.pop("study")
    known = {field.name for field in dataclasses.fields(Study)} - {"name", "config"}
    for key in about:
        if key not in known:
            raise ValueError(
                f"{path}: study.{key} is unknown; known are {', '.join(sorted(known))}"
            )
    try:
        return Study(name=path.stem, config=RunConfig.from_dict(content), **_typed(about))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _typed(about: Mapping[str, Any]) -> dict[str, Any]:
    typed = dict(about)
    for field in ("title", "arms", "references", "rates"):
        if field not in typed:
            raise ValueError(f"study.{field} is missing")
    for field in ("arms", "leading", "references", "rates", "decays"):
        if not isinstance(typed.get(field, []), list):
            raise ValueError(f"study.{field} must be a list, as in [a, b], not {typed[field]!r}")
    for field in ("arms", "leading", "references"):
        if field in typed:
            typed[field] = tuple(read_arm(label) for label in typed[field])
    for field in ("rates", "decays"):
        if field in typed:
            typed[field] = tuple(float(value) for value in typed[field])
            _check_names(field, typed[field])
    return typed


def tuning_runs(study: Study, output: Path, threads: int) -> list[Run]:
    """The trials: each arm with each rate and decay, evaluated on held-out training images."""
    data = replace(study.config.data, evaluate="validation")
    # Nothing is read of a finished trial but its accuracy.
    keep = "best" if study.config.train.keep == "last" else study.config.train.keep
    train = replace(study.config.train, probes=(), keep=keep)
    shared = replace(study.config, data=data, train=train)
    return [
        Run(
            arm=arm,
            seed=seed,
            tried=tried,
            config=configured(shared, arm, seed=seed, threads=threads, optim=tried),
            path=output / TUNING / "-".join([arm.label, *_words(tried), f"seed{seed}"]),
        )
        for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + study.tuning_seeds)
        for arm in dict.fromkeys(arm.tuned_as for arm in study.arms)
        for tried in study.trials
    ]


def _words(tried: Optim) -> list[str]:
    return [f"{SHORT[name]}{value:g}" for name, value in tried.items()]


def chosen_rates(
    study: Study, trials: Sequence[Run], failures: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """By arm the rate, and the decay where several were tried, of the highest mean validation
    accuracy in the last epoch, and all trials.

    A trial that diverged counts as no accuracy at all. Ties take the lower rate, then the lower
    decay. Where every trial of an arm diverged it takes the lowest, so that its runs show it.

    Raises:
        ValueError: a trial that neither finished nor diverged, which says nothing of its rate.
    """
    if unsettled := [trial for trial in trials if not trial.settled()]:
        first, summary = unsettled[0], unsettled[0].summary()
        reason = failures.get(first.name) or summary.get("reason", "it has not run")
        raise ValueError(
            f"no rate is chosen while {len(unsettled)} of the trials have not come to an end, the "
            f"first {first.path} ({summary['status']}; {reason}); the same command tries them "
            "again, and one without it (--arms, --poolings) leaves it out"
        )
    chosen = {}
    for arm in dict.fromkeys(arm.tuned_as for arm in study.arms):
        own = [trial for trial in trials if trial.arm == arm]
        tops = [
            (tried, fmean(_final(trial) for trial in own if trial.tried == tried))
            for tried in study.trials
        ]
        best, _ = max(tops, key=lambda pair: pair[1])
        by_rate: dict[str, float] = {}
        for tried, top in tops:
            name = f"{tried['learning_rate']:g}"
            by_rate[name] = max(top, by_rate.get(name, -math.inf))
        validation = {name: _percent(top) for name, top in by_rate.items()}
        chosen[arm.label] = _entry(best) | {"validation_top1": validation}
        if study.decays:
            told = [_entry(tried) | {"validation_top1": _percent(top)} for tried, top in tops]
            chosen[arm.label]["trials"] = told
    return chosen


def _entry(tried: Optim) -> dict[str, Any]:
    """As rates.json has it, where the rate has been called `rate` since the first version."""
    return {"rate" if name == "learning_rate" else name: value for name, value in tried.items()}


def _percent(accuracy: float) -> float | None:
    return 100 * accuracy if math.isfinite(accuracy) else None


def _final(trial: Run) -> float:
    summary = trial.summary()
    return summary["final"]["test_top1"] if summary["status"] == "finished" else -math.inf


def optim_of(rates: Rates, arm: Arm) -> dict[str, float]:
    """The options of the optimiser that an arm is trained with."""
    own = rates[arm.tuned_as.label]
    decay = {"weight_decay": own["weight_decay"]} if "weight_decay" in own else {}
    return {"learning_rate": own["rate"], **decay}


def write_rates(folder: Path, rates: Rates) -> None:
    """Write rates.json."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / RATES, json.dumps(rates, indent=2) + "\n")


def read_rates(path: Path, arms: Iterable[Arm]) -> dict[str, Any]:
    """The rates that an earlier tuning chose.

    Raises:
        ValueError, OSError: no such file, or one that lacks an arm.
    """
    try:
        rates = json.loads(path.read_text(encoding="utf-8"))
        check_value("rates", rates, dict[str, Chosen])
        for label, chosen in rates.items():
            require(chosen["rate"] > 0, f"rates.{label}.rate", "above 0", chosen["rate"])
    except ValueError as error:
        raise ValueError(f"{path} is not a {RATES} of a study: {error}") from error
    for arm in arms:
        if (label := arm.tuned_as.label) not in rates:
            raise ValueError(
                f"{path} has no rate of {label}, only of {', '.join(rates) or 'nothing'}; leave "
                f"--rates out to tune it, or --arms without it"
            )
    return rates


def earlier_rates(folder: Path) -> dict[str, Any]:
    """The rates that an earlier command left in the output folder; none where there is none.

    Raises:
        ValueError: a file that is not what a study writes.
    """
    file = folder / RATES
    return read_rates(file, ()) if file.is_file() else {}


def final_runs(
    study: Study, rates: Rates, folder: Path, threads: int
) -> dict[tuple[Arm, int], Run]:
    """The runs that count, each arm at its rate, in a folder of their own."""
    return make_runs(
        study.config,
        {arm: study.seeds_of(arm) for arm in study.arms},
        folder,
        threads=threads,
        optim={arm: optim_of(rates, arm) for arm in study.arms},
    )


def earlier_runs(study: Study, rates: Rates, folder: Path) -> dict[tuple[Arm, int], Run]:
    """The runs of the study's arms that are in the folder of runs, of whatever seeds.

    Raises:
        ValueError: one that was begun with other options or at another rate.
    """
    found = {}
    for arm, seed, path in found_runs(folder, study.arms):
        if (label := arm.tuned_as.label) not in rates:
            raise ValueError(
                f"run {path} is there, but {folder.parent / RATES} has no rate of {label}; put "
                "that file back, move the run away, or choose another --output"
            )
        optim = optim_of(rates, arm)
        config = configured(study.config, arm, seed=seed, threads=None, optim=optim)
        found[arm, seed] = Run(arm=arm, seed=seed, config=config, path=path)
        check_same_options(found[arm, seed])
    return dict(sorted(found.items(), key=lambda item: item[0][1]))
