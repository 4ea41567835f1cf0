"""What the runs of an experiment came to, read from their directories."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import getitem

from covpool.analysis.records import QUANTILES
from covpool.experiments.arms import Arm
from covpool.experiments.inference import BySeed, Spread, geometric_mean
from covpool.experiments.paper import METRICS
from covpool.experiments.runs import Runs
from covpool.train.analysis_rows import measurements, read_analysis
from covpool.train.config import RunConfig
from covpool.train.run_directory import Row, RunDirectory

SMALL = "typefaces-steps"
"""The recipe that stands in where the images given are none of the paper's."""

CONDITION_NUMBERS = (
    (
        "floored, covariance as formed (the paper's way)",
        "conditioning",
        "of_covariance",
        "condition_number_floored",
    ),
    ("floored, features", "conditioning", "of_features", "condition_number_floored"),
    ("range of the features", "conditioning", "of_features", "condition_number_of_range"),
)
"""Titles, and where the figures are, as `RunSet.by_epoch` takes it."""

PAPERS_WAY = CONDITION_NUMBERS[0][1:]

Stage = tuple[int, int]
"""First and last epoch with one learning rate, counted from 1."""


@dataclass(frozen=True, kw_only=True)
class RunSet:
    """The runs of one configuration, and what they came to.

    Attributes:
        name: its recipe, or its study.
        about: how they were computed, in a sentence.
        paper_scale: whether that is the paper's own way.
        config: what the runs share.
        runs: by arm and seed.
        failures: reasons by the run's name, of the runs that failed.
    """

    name: str
    about: str = ""
    paper_scale: bool = False
    config: RunConfig
    runs: Runs
    failures: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def summaries(self) -> dict[tuple[Arm, int], Row]:
        """The summary of each run."""
        return {key: run.summary() for key, run in self.runs.items()}

    def ended(self, failures: Mapping[str, str]) -> "RunSet":
        """The same after training, with what came of it."""
        return replace(self, failures=failures)

    @property
    def own_images(self) -> bool:
        """Whether the images are neither the paper's nor embedded: its cells are not shown beside
        what they came to, as the two cannot be compared."""
        return self.name == SMALL and self.config.data.root is not None

    @property
    def arms(self) -> list[Arm]:
        """The arms, in order."""
        return list(dict.fromkeys(arm for arm, _ in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted({seed for _, seed in self.runs})

    def finished(self, arm: Arm) -> dict[int, Row]:
        """By seed the summaries of the arm's finished runs."""
        return {
            seed: summary
            for (own, seed), summary in self.summaries.items()
            if own == arm and summary["status"] == "finished"
        }

    def errors(self, arm: Arm, metric: str = METRICS[0], measure: str = "final") -> BySeed:
        """Error in percent by seed, of the arm's finished runs."""
        found = self.finished(arm)
        return {seed: 100 * (1 - summary[measure][metric]) for seed, summary in found.items()}

    def accuracies(self, arm: Arm, measure: str = "final") -> BySeed:
        """Top-1 accuracy in percent by seed, of the arm's finished runs."""
        found = self.errors(arm, METRICS[0], measure)
        return {seed: 100 - error for seed, error in found.items()}

    def history(self, arm: Arm, seed: int) -> list[Row]:
        """A row for each epoch of a run."""
        return RunDirectory(self.runs[arm, seed].path).read_metrics()

    def problems(self, arms: Iterable[Arm]) -> list[str]:
        """The runs of these arms that have not finished, and why."""
        told = []
        for key, run in self.runs.items():
            summary = self.summaries[key]
            if run.arm in arms and summary["status"] != "finished":
                reason = self.failures.get(run.name) or summary.get("reason", "it has not run")
                told.append(f"{run.name}: {summary['status']}; {reason}")
        return told

    def spread(self, arm: Arm, values: BySeed) -> str:
        """Mean ± deviation, and how many of the arm's runs it is of where that is not all."""
        states = {self.summaries[key]["status"] for key in self.runs if key[0] == arm}
        if not values:
            return " or ".join(sorted(states)) or "–"
        planned = sum(own == arm for own, _ in self.runs)
        text = Spread.of(values).text()
        return text if len(values) == planned else f"{text} ({len(values)} of {planned})"

    @property
    def first_epochs(self) -> list[int]:
        """The first epoch of each stage of the learning rate, counted from 1."""
        epochs = self.config.train.epochs
        return [1, *(epoch + 1 for epoch in self.config.optim.milestones if epoch < epochs)]

    @property
    def stages(self) -> list[Stage]:
        """The stages of the learning rate."""
        first = self.first_epochs
        ends = [*(epoch - 1 for epoch in first[1:]), self.config.train.epochs]
        return list(zip(first, ends, strict=True))

    def measured(self, arm: Arm, probe: str) -> dict[int, list[Row]]:
        """By seed what a probe wrote along the arm's finished runs, errors left out."""
        found = {}
        for seed in self.finished(arm):
            if rows := measurements(read_analysis(self.runs[arm, seed].path), probe):
                found[seed] = rows
        return found

    def by_epoch(self, arm: Arm, *place: str) -> dict[int, dict[int, float]]:
        """A figure of a probe by seed and epoch: of distributions the median over samples, of an
        epoch's measurements the geometric mean.

        Args:
            arm: of whose runs.
            place: the probe, and where a row of it has the figure.
        """
        probe, *keys = place
        found: dict[int, dict[int, list[float]]] = {}
        for seed, rows in self.measured(arm, probe).items():
            epochs = found.setdefault(seed, {})
            for row in rows:
                figure = reduce(getitem, keys, row)
                if isinstance(figure, Mapping):
                    figure = figure["quantiles"][QUANTILES.index(0.5)]
                epochs.setdefault(row["epoch"], []).append(float(figure))
        return {
            seed: {epoch: geometric_mean(values) for epoch, values in own.items()}
            for seed, own in found.items()
        }

    def at_epoch(self, arm: Arm, epoch: int, *place: str) -> dict[int, float]:
        """The same by seed, of one epoch."""
        found = self.by_epoch(arm, *place)
        return {seed: own[epoch] for seed, own in found.items() if epoch in own}

    def smoothness(self, arm: Arm, stage: Stage) -> dict[int, dict[int, float]]:
        """β by seed and step, where it is a positive number."""
        first, last = stage
        return {
            seed: {
                row["step"]: value
                for row in rows
                if first <= row["epoch"] <= last
                and 0 < (value := float(row["smoothness"])) < math.inf
            }
            for seed, rows in self.measured(arm, "smoothness").items()
        }

    def smoothness_ratio(self, one: Arm, other: Arm, stage: Stage) -> dict[int, float]:
        """By seed: the geometric mean of β of one over β of the other, at the steps that both
        have."""
        left, right = (self.smoothness(arm, stage) for arm in (one, other))
        ratios = {}
        for seed in left:
            steps = left[seed].keys() & right.get(seed, {}).keys()
            if steps:
                ratios[seed] = geometric_mean(left[seed][at] / right[seed][at] for at in steps)
        return ratios


Results = Mapping[str, RunSet]
"""By recipe; where the images are none of the paper's, of `SMALL` alone."""
