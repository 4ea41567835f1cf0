"""What a study came to: its runs with their rates, and which of its arms computed the same."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from covpool.analysis.records import plain
from covpool.experiments.arms import Arm
from covpool.experiments.inference import BySeed, median_or_none
from covpool.experiments.results import PAPERS_WAY, RunSet
from covpool.experiments.study import Rates, Study, optim_of
from covpool.train.run_directory import Row, replace_text
from covpool.train.sampling import steps_and_batch

RUN_LINES = "runs.jsonl"

MEASURED = {
    "condition_number": ("conditioning", "of_features", "condition_number_of_range"),
    "condition_number_as_in_the_paper": PAPERS_WAY,
    "effective_rank": ("conditioning", "of_features", "effective_rank"),
    "smoothness": ("smoothness", "smoothness"),
}
"""What is told of the probes by epoch, and where it is, as `RunSet.by_epoch` takes it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The runs that count, and the rates that they were trained with.

    Attributes:
        study: with the arms that have runs.
        runs: the runs.
        rates: as `chosen_rates` gives them.
        train_images: images that the runs were trained on.
        test_images: images that they were evaluated on.
        not_run: labels of the study's arms that have no runs.
    """

    study: Study
    runs: RunSet
    rates: Rates
    train_images: int
    test_images: int
    not_run: tuple[str, ...] = ()

    @cached_property
    def groups(self) -> dict[Arm, str]:
        """Arms that trained differently, and what each is called.

        Methods whose kernels never come to bear compute the same: where all runs of arms have the
        same losses in every epoch, to the last digit, the arm with the most runs stands for all.
        """
        groups: list[list[Arm]] = []
        for arm in self.arms:
            own = next((g for g in groups if self._same_runs(g[0], arm)), None)
            groups.append([arm]) if own is None else own.append(arm)
        return {
            max(group, key=lambda arm: len(self.final(arm))): " / ".join(a.label for a in group)
            for group in groups
        }

    def representative(self, arm: Arm) -> Arm | None:
        """The arm that stands for this one; None where there are no runs of it."""
        if arm not in self.arms:
            return None
        return next(each for each in self.groups if each == arm or self._same_runs(each, arm))

    def _same_runs(self, one: Arm, other: Arm) -> bool:
        seeds = set(self._losses[one]) & set(self._losses[other])
        return bool(seeds) and all(self._losses[one][s] == self._losses[other][s] for s in seeds)

    @cached_property
    def _losses(self) -> dict[Arm, dict[int, list[tuple[float, float]]]]:
        return {
            arm: {
                seed: [(r["train_loss"], r["test_loss"]) for r in self.runs.history(arm, seed)]
                for seed in self.final(arm)
            }
            for arm in self.arms
        }

    @property
    def arms(self) -> list[Arm]:
        """In the order of the study."""
        return [arm for arm in self.study.arms if arm in self.runs.arms]

    def final(self, arm: Arm) -> BySeed:
        """Top-1 accuracy of the last epoch in percent by seed, of the arm's finished runs."""
        return self.runs.accuracies(arm)

    def rate(self, arm: Arm) -> float:
        """The arm's learning rate."""
        return optim_of(self.rates, arm)["learning_rate"]

    def seconds_per_step(self, arm: Arm) -> float | None:
        """The median over the epochs that the arm's own method trained, of all seeds."""
        steps = steps_and_batch(self.train_images, self.study.config.data.batch_size)[0]
        return median_or_none(
            row["seconds"] / steps
            for (own, seed) in self.runs.runs
            if own == arm
            for row in self.runs.history(arm, seed)
            if row["method"] == arm.method
        )

    def peak_memory(self, arm: Arm) -> float | None:
        """The median over seeds, in MiB."""
        return median_or_none(
            summary["peak_memory_bytes"] / 2**20
            for (own, _), summary in self.runs.summaries.items()
            if own == arm and summary.get("peak_memory_bytes")
        )

    def lines(self) -> Iterator[Row]:
        """A run each: what it was, what it came to, on what machine, its spectra by epoch."""
        for (arm, seed), summary in self.runs.summaries.items():
            reason = self.runs.failures.get(self.runs.runs[arm, seed].name)
            yield {
                "study": self.study.name,
                "arm": arm.label,
                "method": arm.method,
                "protocol": arm.protocol,
                "seed": seed,
                **optim_of(self.rates, arm),
                **({"reason": reason} if reason else {}),
                **summary,
                "by_epoch": self.by_epoch(arm, seed),
            }

    def by_epoch(self, arm: Arm, seed: int) -> dict[str, dict[int, float]]:
        """By name of `MEASURED` what was measured along a run, as `RunSet.by_epoch` has it."""
        found = {name: self.runs.by_epoch(arm, *place) for name, place in MEASURED.items()}
        return {name: own[seed] for name, own in found.items() if seed in own}

    def write_lines(self, folder: Path) -> None:
        """Write runs.jsonl."""
        lines = (
            json.dumps(plain(row), allow_nan=False, ensure_ascii=False) for row in self.lines()
        )
        replace_text(folder / RUN_LINES, "".join(f"{line}\n" for line in lines))
