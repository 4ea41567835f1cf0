"""Runs grouped into what may be compared, with means, deviations and paired differences."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covpool.experiments import paper
from covpool.experiments.inference import Spread, differences
from covpool.linalg.methods import METHODS
from covpool.report.sources import Run
from covpool.train.same_options import shared_options

METHOD_KEYS = (("model", "schedule"), ("model", "hybrid"), ("model", "constants"))
"""Options that tell a table's rows apart, beside method and seed; all others must be equal within
a table."""

MEASURES = ("final", "best")
SCORES = ("test_top1", "test_top5")


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """The runs of one method, or of one schedule of methods, in one setting.

    Attributes:
        label: for people; unique in the setting.
        runs: all of them, seed by seed.
        spreads: by measure ("final", "best") and score, of the finished runs.
        differences: by measure, of top-1, paired by seed against the setting's baseline; None for
            the baseline itself.
        seconds: the median training time of an epoch, or None where it is not known.
    """

    label: str
    runs: Sequence[Run]
    spreads: Mapping[tuple[str, str], Spread]
    differences: Mapping[str, Spread] | None
    seconds: float | None

    @property
    def method(self) -> str:
        """The pooling that ends the schedule."""
        return self.runs[0].method

    @property
    def hybrid(self) -> bool:
        """Whether the pooling is switched during training."""
        return self.runs[0].hybrid

    @property
    def paper_name(self) -> str | None:
        """What the paper calls the method."""
        row = METHODS.get(self.method)
        return row.paper_name if row else None

    @property
    def finished(self) -> list[Run]:
        """The runs that enter the means."""
        return [run for run in self.runs if run.finished]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs that differ in method and seed alone.

    Attributes:
        title: data, network and epochs.
        options: what distinguishes it from the report's other settings, option by option.
        rows: one for each method.
        baseline: the label of the row that differences are to.
        duplicates: runs left out because another has the same method and seed.
    """

    title: str
    options: Sequence[tuple[str, Any]]
    rows: Sequence[MethodRow]
    baseline: str
    duplicates: Sequence[Run]

    @property
    def runs(self) -> list[Run]:
        """All runs of its rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def split(self) -> str:
        """What the figures called "test" are of: the test split, or the validation split."""
        return f"{self.runs[0].config.get('data', {}).get('evaluate', 'test')} split"

    @property
    def papers_data(self) -> str | None:
        """Which of the paper's data sets its images are, by `data.name`; None: none of them."""
        name = self.runs[0].config.get("data", {}).get("name")
        return name if name in paper.DATA else None

    @property
    def own_images(self) -> bool:
        """Whether they are neither the paper's nor embedded: its cells are not shown beside what
        they came to, as the two cannot be compared."""
        root = self.runs[0].config.get("data", {}).get("root")
        return root is not None and self.papers_data is None

    @property
    def seeds(self) -> list[int]:
        """The seeds of finished runs."""
        return sorted({run.seed for run in self.runs if run.finished})


def group(runs: Iterable[Run], baseline: str | None = None) -> list[Setting]:
    """The runs by setting, in the order met; within it by method.

    Args:
        runs: of any kind.
        baseline: label of the row to take differences to; None: the first row of each setting.

    Raises:
        ValueError: no setting has a row of that label.
    """
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(repr(sorted(_shared(run).items())), []).append(run)
    members = list(by_setting.values())
    labels = dict.fromkeys(label for own in members for label in _by_label(own)[0])
    if baseline is not None and baseline not in labels:
        raise ValueError(
            f"--baseline {baseline!r} is none of the methods found; choose from {', '.join(labels)}"
        )
    different = _different([_shared(own[0]) for own in members])
    return [_setting(own, baseline, different) for own in members]


def _shared(run: Run) -> dict[str, Any]:
    """The options that the runs of one setting share, and what the data set calls itself."""
    options = {
        ".".join(key): value
        for key, value in shared_options(run.config).items()
        if key not in METHOD_KEYS
    }
    return {**options, "data set": run.summary["data"], "backbone": run.summary["backbone"]}


def _different(shared: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for options in shared for name in options)
    return [name for name in names if len({repr(options.get(name)) for options in shared}) > 1]


def _by_label(runs: Iterable[Run]) -> tuple[dict[str, dict[int, Run]], list[Run]]:
    """Runs by label and seed in the order of the table, and those that have both in common."""
    found: dict[str, dict[int, Run]] = {}
    duplicates = []
    for run in runs:
        seeds = found.setdefault(label_of(run), {})
        if run.seed in seeds:
            duplicates.append(run)
        else:
            seeds[run.seed] = run
    return found, duplicates


def label_of(run: Run) -> str:
    """The schedule's methods, with the constants that were set."""
    constants = run.config["model"].get("constants") or {}
    text = ", ".join(f"{name}={value}" for name, value in constants.items())
    return f"{run.label} ({text})" if text else run.label


def _setting(runs: list[Run], baseline: str | None, different: Sequence[str]) -> Setting:
    by_label, duplicates = _by_label(runs)
    first = baseline if baseline in by_label else next(iter(by_label))
    base = _values(by_label[first].values())
    about = runs[0].summary
    epochs = runs[0].config["train"].get("epochs", about.get("epochs_planned", "?"))
    shared = _shared(runs[0])
    return Setting(
        title=f"{about['data']}, {about['backbone']}, {epochs} epochs",
        options=[(name, shared.get(name)) for name in different],
        rows=[
            _row(label, [*seeds.values()], None if label == first else base)
            for label, seeds in by_label.items()
        ],
        baseline=first,
        duplicates=duplicates,
    )


Values = dict[tuple[str, str], dict[int, float]]


def _values(runs: Iterable[Run]) -> Values:
    """By measure and score, percent by seed, of the finished runs."""
    finished = [run for run in runs if run.finished]
    return {
        (measure, score): {run.seed: 100 * run.summary[measure][score] for run in finished}
        for measure in MEASURES
        for score in SCORES
    }


def _row(label: str, runs: list[Run], base: Values | None) -> MethodRow:
    values = _values(runs)
    gaps = None
    if base is not None:
        top1 = ((measure, SCORES[0]) for measure in MEASURES)
        gaps = {place[0]: Spread.of(differences(values[place], base[place])) for place in top1}
    times = [
        float(epoch["seconds"])
        for run in runs
        if run.finished
        for epoch in run.history
        if "seconds" in epoch
    ]
    return MethodRow(
        label=label,
        runs=sorted(runs, key=lambda run: run.seed),
        spreads={name: Spread.of(own) for name, own in values.items()},
        differences=gaps,
        seconds=statistics.median(times) if times else None,
    )
