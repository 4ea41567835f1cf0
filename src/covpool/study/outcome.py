"""What a study came to: a line for each run, tables, and answers with their intervals."""

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from covpool.analysis.records import QUANTILES, plain
from covpool.reproduce import measured
from covpool.reproduce.arms import Arm
from covpool.reproduce.results import Setting, geometric_mean
from covpool.reproduce.runs import TRUNK
from covpool.study.design import Study
from covpool.study.phases import tuned_as
from covpool.train.run_directory import Row, replace_text
from covpool.train.sampling import steps_and_batch

RUN_LINES = "runs.jsonl"

SPECTRA = {
    "condition_number": ("of_features", "condition_number_of_range"),
    "condition_number_as_in_the_paper": measured.PAPERS_WAY,
    "effective_rank": ("of_features", "effective_rank"),
}
"""What is kept of the conditioning by epoch, and where a row of the probe has it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The runs that count, and the rates that they were trained with.

    Attributes:
        study: with the arms that have runs.
        setting: the runs.
        rates: as `chosen_rates` gives them.
        train_images: images that the runs were trained on.
        test_images: images that they were evaluated on.
        not_run: labels of the study's arms that have no runs.
    """

    study: Study
    setting: Setting
    rates: Mapping[str, Mapping[str, Any]]
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
            max(group, key=lambda arm: len(self.setting.accuracies(arm, "final"))): " / ".join(
                arm.label for arm in group
            )
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
                seed: [(r["train_loss"], r["test_loss"]) for r in self.setting.history(arm, seed)]
                for seed in self.setting.accuracies(arm, "final")
            }
            for arm in self.arms
        }

    @property
    def arms(self) -> list[Arm]:
        """In the order of the study."""
        return [arm for arm in self.study.arms if arm in self.setting.arms]

    def rate(self, arm: Arm) -> float:
        """The arm's learning rate."""
        return float(self.rates[tuned_as(arm).label]["rate"])

    def seconds_per_step(self, arm: Arm) -> float | None:
        """The median over the epochs that the arm's own method trained, of all seeds."""
        steps = steps_and_batch(self.train_images, self.study.config.data.batch_size)[0]
        seconds = [
            row["seconds"] / steps
            for (own, seed) in self.setting.cells
            if own == arm
            for row in self.setting.history(arm, seed)
            if row["method"] == arm.method
        ]
        return statistics.median(seconds) if seconds else None

    def peak_memory(self, arm: Arm) -> float | None:
        """The median over seeds, in MiB."""
        found = [
            summary["peak_memory_bytes"] / 2**20
            for (own, _), summary in self.setting.summaries.items()
            if own == arm and summary.get("peak_memory_bytes")
        ]
        return statistics.median(found) if found else None

    def lines(self) -> Iterator[Row]:
        """A run each: what it was, what it came to, on what machine, its spectra by epoch."""
        for (arm, seed), summary in self.setting.summaries.items():
            reason = self.setting.failures.get(self.setting.cells[arm, seed].name)
            yield {
                "study": self.study.name,
                "arm": arm.label,
                "method": arm.method,
                "protocol": arm.protocol,
                "seed": seed,
                "learning_rate": self.rate(arm),
                **({"reason": reason} if reason else {}),
                **summary,
                "by_epoch": self.by_epoch(arm, seed),
            }

    def by_epoch(self, arm: Arm, seed: int) -> dict[str, dict[int, float]]:
        """Condition number, effective rank and smoothness: the geometric mean over an epoch's
        measurements (of the median over samples).

        Hybrid runs that begin from the Newton-Schulz run have its measurements before that.
        """
        median = QUANTILES.index(0.5)
        found: dict[str, dict[int, list[float]]] = {}
        for row in self._rows(arm, seed, "conditioning"):
            for name, (way, figure) in SPECTRA.items():
                value = float(row[way][figure]["quantiles"][median])
                found.setdefault(name, {}).setdefault(row["epoch"], []).append(value)
        for row in self._rows(arm, seed, "smoothness"):
            found.setdefault("smoothness", {}).setdefault(row["epoch"], []).append(
                float(row["smoothness"])
            )
        return {
            name: {epoch: geometric_mean(values) for epoch, values in own.items()}
            for name, own in found.items()
        }

    def _rows(self, arm: Arm, seed: int, probe: str) -> list[Row]:
        own = self.setting.measured(arm, probe).get(seed, [])
        if not arm.hybrid or not own:
            return own
        switch = self.study.config.optim.milestones[-1]
        if min(row["epoch"] for row in own) <= switch:  # it trained these epochs itself
            return own
        before = self.setting.measured(TRUNK, probe).get(seed, [])
        return [*(row for row in before if row["epoch"] <= switch), *own]


def write_lines(outcome: Outcome, folder: Path) -> None:
    """Write runs.jsonl."""
    text = "".join(
        json.dumps(plain(line), allow_nan=False, ensure_ascii=False) + "\n"
        for line in outcome.lines()
    )
    replace_text(folder / RUN_LINES, text)
