"""Runs grouped into what may be compared, with means, deviations and paired differences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covpool.experiments import paper
from covpool.experiments.inference import Spread, differences, median_or_none
from covpool.report.sources import Run
from covpool.train.same_options import shared_options

METHOD_KEYS = tuple(
    ("model", name) for name in ("schedule", "hybrid", "constants", "gap_reduction")
)
"""Options that tell a table's rows apart, beside method, seed and a matched head; all others must
be equal within a table."""

CHOSEN_KEYS = (("optim", "learning_rate"), ("optim", "weight_decay"))
"""What a study or a probe chooses for each of its rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodRow:
    """The runs of one method, or of one schedule of methods, in one setting.

    Attributes:
        label: for people; unique in the setting.
        runs: all of them, seed by seed.
    """

    label: str
    runs: Sequence[Run]

    @property
    def method(self) -> str:
        """The pooling that ends the schedule."""
        return self.runs[0].method

    @property
    def hybrid(self) -> bool:
        """Whether the pooling is switched during training."""
        return self.runs[0].hybrid

    @property
    def finished(self) -> list[Run]:
        """The runs that enter the means."""
        return [run for run in self.runs if run.finished]

    def spread(self, measure: str = "final", score: str = paper.METRICS[0]) -> Spread:
        """A score of the last epoch, or of the best one, in percent, of the finished runs."""
        return Spread.of({run.seed: 100 * run.summary[measure][score] for run in self.finished})

    @property
    def seconds(self) -> float | None:
        """The median training time of an epoch, or None where it is not known."""
        epochs = (epoch for run in self.finished for epoch in run.history)
        return median_or_none(float(each["seconds"]) for each in epochs if "seconds" in each)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs that differ in method and seed alone.

    Attributes:
        title: data, network and epochs.
        options: what distinguishes it from the report's other settings, option by option.
        rows: one for each method.
        base: the row that differences are to.
        duplicates: runs left out because another has the same method and seed.
    """

    title: str
    options: Sequence[tuple[str, Any]]
    rows: Sequence[MethodRow]
    base: MethodRow
    duplicates: Sequence[Run]

    @property
    def baseline(self) -> str:
        """The label of the row that differences are to."""
        return self.base.label

    def difference(self, row: MethodRow) -> Spread:
        """Final top-1 of a row, paired by seed against the baseline; empty for the baseline."""
        base = {} if row is self.base else self.base.spread().values
        return Spread.of(differences(row.spread().values, base))

    @property
    def runs(self) -> list[Run]:
        """All runs of its rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def split(self) -> str:
        """What the figures called "test" are of: the test split, or the validation split."""
        return f"{self.runs[0].config.get('data', {}).get('evaluate', 'test')} split"

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
    free = METHOD_KEYS if run.study is None else (*METHOD_KEYS, *CHOSEN_KEYS)
    options = {
        ".".join(key): value for key, value in shared_options(run.config).items() if key not in free
    }
    if options["model.hidden_features"] == "matched":  # which the row's label says
        options["model.hidden_features"] = None
    options["study"] = run.study and str(run.study)
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
    rows = {
        label: MethodRow(label=label, runs=[seeds[seed] for seed in sorted(seeds)])
        for label, seeds in by_label.items()
    }
    about = runs[0].summary
    epochs = runs[0].config["train"].get("epochs", about.get("epochs_planned", "?"))
    shared = _shared(runs[0])
    return Setting(
        title=f"{about['data']}, {about['backbone']}, {epochs} epoch{'s' * (epochs != 1)}",
        options=[(name, shared.get(name)) for name in different],
        rows=[*rows.values()],
        base=rows.get(baseline or "", next(iter(rows.values()))),
        duplicates=duplicates,
    )
