"""What the runs of a setting came to, read from their directories."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from covpool.reproduce.arms import Arm
from covpool.train.analysis_rows import read_analysis
from covpool.train.cells import Cell
from covpool.train.comparison import mean_and_deviation
from covpool.train.config import RunConfig
from covpool.train.run_directory import Row, RunDirectory

BySeed = Mapping[int, float]

METRICS = ("test_top1", "test_top5")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The runs of one recipe, and what they came to.

    Attributes:
        recipe: its name.
        about: how they were computed, in a sentence.
        paper_scale: whether that is the paper's own way.
        config: what the runs share.
        cells: by arm and seed.
        failures: reasons by cell name, of the cells that failed.
    """

    recipe: str
    about: str
    paper_scale: bool
    config: RunConfig
    cells: Mapping[tuple[Arm, int], Cell]
    failures: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def summaries(self) -> dict[tuple[Arm, int], Row]:
        """The summary of each cell."""
        return {key: cell.summary() for key, cell in self.cells.items()}

    @property
    def arms(self) -> list[Arm]:
        """The arms, in order."""
        return list(dict.fromkeys(arm for arm, _ in self.cells))

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted({seed for _, seed in self.cells})

    def errors(self, arm: Arm, metric: str = METRICS[0], measure: str = "final") -> BySeed:
        """Error in percent by seed, of the arm's finished runs."""
        return {
            seed: 100 * (1 - summary[measure][metric])
            for (own, seed), summary in self.summaries.items()
            if own == arm and summary["status"] == "finished"
        }

    def accuracies(self, arm: Arm, measure: str) -> BySeed:
        """Top-1 accuracy in percent by seed, of the arm's finished runs."""
        found = self.errors(arm, METRICS[0], measure)
        return {seed: 100 - error for seed, error in found.items()}

    def history(self, arm: Arm, seed: int) -> list[Row]:
        """A row for each epoch of a run."""
        return RunDirectory(self.cells[arm, seed].path).read_metrics()

    def measured(self, arm: Arm, probe: str) -> dict[int, list[Row]]:
        """By seed what a probe wrote along the arm's finished runs, errors left out."""
        found = {}
        for (own, seed), summary in self.summaries.items():
            if own == arm and summary["status"] == "finished":
                rows = read_analysis(self.cells[own, seed].path)
                rows = [row for row in rows if row["probe"] == probe and "error" not in row]
                if rows:
                    found[seed] = rows
        return found

    @property
    def first_epochs(self) -> list[int]:
        """The first epoch of each stage of the learning rate, counted from 1."""
        epochs = self.config.train.epochs
        return [1, *(epoch + 1 for epoch in self.config.optim.milestones if epoch < epochs)]

    def problems(self, arms: Iterable[Arm]) -> list[str]:
        """The runs of these arms that have not finished, and why."""
        told = []
        for (arm, _), cell in self.cells.items():
            summary = self.summaries[arm, cell.seed]
            if arm in arms and summary["status"] != "finished":
                reason = self.failures.get(cell.name) or summary.get("reason", "it has not run")
                told.append(f"{cell.name}: {summary['status']}; {reason}")
        return told

    def spread(self, arm: Arm, values: BySeed) -> str:
        """Mean ± deviation, and how many of the arm's runs it is of where that is not all."""
        planned = sum(own == arm for own, _ in self.cells)
        if not planned:
            return "–"
        if not values:
            states = {self.summaries[key]["status"] for key in self.cells if key[0] == arm}
            return " or ".join(sorted(states))
        mean, deviation = mean_and_deviation([*values.values()])
        text = f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
        return text if len(values) == planned else f"{text} ({len(values)} of {planned})"


@dataclass(frozen=True, kw_only=True)
class Results:
    """The settings by recipe; `small` where the images are none of the paper's."""

    settings: Mapping[str, Setting] = field(default_factory=dict)
    small: Setting | None = None

    def of(self, recipe: str) -> Setting | None:
        """The recipe's own setting at the paper's scale, else the small one."""
        return self.small or self.settings.get(recipe)


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
