"""The runs of a probe: each pooling with each rate and decay on held-out images, then with each
seed at what these chose."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from covpool.experiments.arms import BASELINES, Arm
from covpool.experiments.frozen.features import FeatureFile
from covpool.experiments.frozen.heads import Examples
from covpool.experiments.runs import RUNS, Run
from covpool.experiments.study import TUNING
from covpool.linalg.methods import Method
from covpool.linalg.tables import choose
from covpool.models.network import head_widths
from covpool.poolings import POOLINGS, Pooling
from covpool.text import quantity
from covpool.train.config import RunConfig
from covpool.train.run_directory import Row, replace_text
from covpool.train.schedule import method_schedule

MATCHED, REDUCED, REDUCED_MATCHED = (
    Arm("gap", matched=True),
    Arm("gap", reduced=True),
    Arm("gap", reduced=True, matched=True),
)

MADE_OF = "features.json"
"""Beside a run's configuration: the digest of what it was trained on, which no option tells."""

REDUCTIONS = "a reduction for each seed"
"""Runs that were made with another, as one reduction for all seeds, are no pairs of these."""


def chosen_arms(text: str) -> tuple[Arm, ...]:
    """The poolings named, with commas between, or all; the baselines are always among them.

    Raises:
        ValueError: no such pooling.
    """
    known = {arm.label: arm for arm in (*map(Arm, POOLINGS), *BASELINES)}
    names = [name.strip() for name in text.split(",")]
    labels = list(known) if names == ["all"] else names
    arms = [choose("pooling", label, known) for label in labels]
    return tuple(dict.fromkeys((*BASELINES, *arms)))


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The features that heads are trained on, and the images that they are of.

    Attributes:
        features: the maps of one stage.
        name: the data set's.
        classes: class names.
        labels: of the training images.
        test_labels: of the test images.
        kept, held: numbers of the training images that trials are trained and evaluated on.
        mirrored: whether the features have the training images' mirror images.
        reduction: by which options the reductions are learned that the poolings of a seed share;
            None: each learns its own with its head.
        notes: what was said when the images were opened.
    """

    features: FeatureFile
    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    test_labels: tuple[int, ...]
    kept: tuple[int, ...]
    held: tuple[int, ...]
    mirrored: bool
    reduction: RunConfig | None
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Of the features, by the name of their folder, of the labels and the held-out ones, and of
        which seeds have a reduction of their own."""
        parts = (self.classes, self.labels, self.test_labels, self.kept, self.held)
        reductions = [] if self.reduction is None else [REDUCTIONS]
        text = json.dumps([self.features.folder.name, *parts, *reductions])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def mark(self, run: Path) -> None:
        """Note in a run's directory that it is made of these."""
        replace_text(run / MADE_OF, json.dumps({"digest": self.digest}) + "\n")

    def check_runs(self, output: Path) -> None:
        """Make sure that all runs and trials in a probe's folder were made of these.

        Raises:
            ValueError: one was not, or does not say what it was made of.
        """
        for configuration in sorted(output.glob("*/*/config.yaml")):
            run = configuration.parent
            try:
                found = json.loads((run / MADE_OF).read_text(encoding="utf-8"))["digest"]
            except (OSError, ValueError, KeyError, TypeError):
                found = None
            if run.parent.name in (RUNS, TUNING) and found != self.digest:
                raise ValueError(
                    f"these are other images or weights than those that the runs in {output} were "
                    f"made of, as {run.parent.name}/{run.name}, or an older covpool made them; "
                    "give another --output"
                )

    def examples(self, array: np.ndarray, *, trial: bool) -> Examples:
        """Those of a trial, or of a run that counts, with such an array in place of the maps."""
        count, labels = len(self.labels), torch.tensor(self.labels)
        train = torch.tensor(self.kept) if trial else torch.arange(count)
        first = count * (1 + self.mirrored)
        test = torch.tensor(self.held) if trial else torch.arange(first, len(array))
        return Examples(
            array=array,
            train=train,
            mirror=count * self.mirrored,
            labels=labels[train],
            test=test,
            test_labels=labels[test] if trial else torch.tensor(self.test_labels),
            classes=len(self.classes),
        )


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """What a configuration's head is made of.

    Attributes:
        row: the pooling.
        reduced: channels after its reduction; None: it pools the features as they are.
        hidden: width of the hidden layer, or None.
    """

    row: Method | Pooling
    reduced: int | None
    hidden: int | None

    @classmethod
    def of(cls, config: RunConfig, channels: int, classes: int) -> "HeadPlan":
        """That of a run, by the rules of `CovPoolModel`."""
        model, row = config.model, method_schedule(config).method_at(0)
        reduced, hidden = head_widths(
            row,
            channels,
            classes,
            reduced_channels=model.reduced_channels,
            hidden_features=model.hidden_features,
            gap_reduction=model.gap_reduction,
        )
        return cls(row=row, reduced=reduced, hidden=hidden)

    @property
    def key(self) -> str:
        """Equal for heads whose pooled vectors are equal: roots by the same algorithm, which differ
        in their gradients alone."""
        row = self.row
        what = repr(row.forward) if isinstance(row, Method) else f"{row.name} {row.constants}"
        return f"{what} {self.reduced} {self.hidden}"


@dataclass(frozen=True, kw_only=True)
class Bundle(Run):
    """Runs that are made together, as one of a grid: the first one's.

    Attributes:
        together: all of them.
        frozen: what they are trained on.
    """

    together: tuple[Run, ...]
    frozen: Frozen

    @classmethod
    def of(cls, runs: Sequence[Run], frozen: Frozen) -> "Bundle":
        """A bundle of runs."""
        first = {field.name: getattr(runs[0], field.name) for field in fields(Run)}
        return cls(**first, together=tuple(runs), frozen=frozen)

    @property
    def members(self) -> Sequence[Run]:
        return self.together

    @property
    def trial(self) -> bool:
        """Whether they are trials."""
        return bool(self.tried)

    @property
    def labels(self) -> str:
        """Of the arms in it."""
        return " / ".join(dict.fromkeys(run.arm.label for run in self.members))

    @property
    def name(self) -> str:
        if len(self.members) == 1:
            return self.members[0].name
        seeds = {run.seed for run in self.members}
        if len(seeds) == 1 and not self.trial:
            return f"{self.labels} seed {self.seed}"
        many = (len(self.members), "trial") if self.trial else (len(seeds), "seed")
        return f"{self.labels}, {quantity(*many)}"

    def settled(self) -> bool:
        return all(run.settled() for run in self.members)

    @property
    def epochs(self) -> int:
        return sum(run.epochs for run in self.members)

    def epochs_done(self) -> int:
        return sum(run.epochs_done() for run in self.members)

    def summary(self) -> Row:
        """Of one member its own; of several the mean over those that finished."""
        found = [run.summary() for run in self.members]
        finished = [summary for summary in found if summary["status"] == "finished"]
        if len(found) == 1 or not finished:
            return found[0]
        means = {
            name: {"test_top1": fmean(summary[name]["test_top1"] for summary in finished)}
            for name in ("final", "best")
        }
        seconds = sum(summary["seconds"] for summary in finished)
        return {**finished[0], **means, "seconds": seconds}


def bundled(runs: Iterable[Run], frozen: Frozen) -> list[Bundle]:
    """The runs that are not settled, and those that are, in bundles that are trained at once.

    Linear classifiers of the same vectors are one bundle; heads with more to train are each one.
    Vectors behind a shared reduction are those of a seed.
    """
    channels, classes = frozen.features.shape[1], len(frozen.classes)
    groups: dict[object, list[Run]] = {}
    for run in runs:
        plan = HeadPlan.of(run.config, channels, classes)
        own = frozen.reduction is not None or plan.reduced is None
        linear = plan.hidden is None and not run.config.model.drop_rate
        together = own and linear and not learns(plan, plan.reduced or channels)
        seed = None if plan.reduced is None else run.seed
        key = (plan.key, seed, run.settled()) if together else run.path
        groups.setdefault(key, []).append(run)
    return [Bundle.of(members, frozen) for members in groups.values()]


def learns(plan: HeadPlan, channels: int) -> bool:
    """Whether the pooling of so many channels has parameters, or is another in training, so that
    it cannot be computed once for all."""
    if isinstance(plan.row, Method):
        return False
    return plan.row.regulariser != "none" or plan.row.count(channels)[1] > 0
