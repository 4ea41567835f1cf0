"""Figures of experiments, each a file of its own: by step, by epoch, by arm."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from covpool.experiments.arms import Arm
from covpool.experiments.inference import Spread, geometric_mean, mean_by_place
from covpool.experiments.outcome import Outcome
from covpool.experiments.paper import METRICS
from covpool.experiments.results import RunSet

MARKERS = "osv^D<>Xp"

Points = Mapping[int, float]
"""Values by epoch or by step."""


def smoothness_curves(runs: RunSet, arms: Sequence[Arm]) -> Figure:
    """β by step: each seed, and the median over seeds; the rate's decays are dotted."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        look = {"color": f"C{place}"}
        series = [*runs.smoothness(arm, (1, runs.config.train.epochs)).values()]
        for points in series:
            _plot(axes, points, linewidth=0.6, alpha=0.35, **look)
        middle = mean_by_place(series, lambda values: sorted(values)[len(values) // 2])
        _plot(axes, middle, linewidth=1.8, label=arm.method, **look)
    rows = [row for own in runs.measured(arms[0], "smoothness").values() for row in own]
    for first in runs.first_epochs[1:]:
        if steps := [row["step"] for row in rows if row["epoch"] == first]:
            axes.axvline(min(steps), color="0.4", linestyle=":")
    axes.set(xlabel="step", ylabel="effective β-smoothness", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return figure


def last_stage(runs: RunSet, arms: Sequence[Arm]) -> Figure:
    """Top-1 and top-5 error by epoch of the last stage, mean over seeds."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    both: Sequence[Axes] = figure.subplots(1, 2)
    for axes, metric in zip(both, METRICS, strict=True):
        for place, arm in enumerate(arms):
            means = mean_by_place(_histories(runs, arm, metric, runs.first_epochs[-1]))
            errors = {epoch: 100 * (1 - mean) for epoch, mean in means.items()}
            marker = MARKERS[place % len(MARKERS)]
            _plot(axes, errors, marker=marker, markersize=4, label=arm.method)
        top = metric.removeprefix("test_top")
        _by_epoch(axes, ylabel=f"top-{top} error (%)")
    both[-1].legend(fontsize=8, loc="upper right")
    return figure


def accuracy_dots(outcome: Outcome) -> Figure:
    """Final accuracy by arm: seeds as dots, mean and its 95% interval beside them."""
    arms = list(outcome.groups)
    figure = Figure(figsize=(7, 0.7 + 0.32 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(reversed(arms)):
        spread = Spread.of(outcome.final(arm))
        values = [*spread.values.values()]
        colour = "C0" if arm.method == "gap" else "C2" if arm.hybrid else "C1"
        axes.plot(values, [place - 0.12] * len(values), "o", color=colour, alpha=0.5, markersize=4)
        if spread.mean is not None:
            axes.plot([spread.mean], [place + 0.12], "|", color=colour, markersize=9)
        if spread.low is not None and spread.high is not None:
            axes.plot([spread.low, spread.high], [place + 0.12] * 2, color=colour)
    axes.set_yticks(range(len(arms)), [outcome.groups[arm] for arm in reversed(arms)])
    axes.set_xlabel("top-1 accuracy of the last epoch, test split (%)")
    axes.grid(axis="x", alpha=0.3)
    return figure


PANELS = (
    ("top1", "top-1 accuracy, test split (%)", "linear"),
    ("condition_number", "condition number of the features", "log"),
    ("effective_rank", "effective rank", "linear"),
    ("smoothness", "effective β-smoothness", "log"),
)
"""What is drawn by epoch: its name, its axis and that one's scale."""


def by_epoch(outcome: Outcome) -> Figure:
    """Accuracy, conditioning and smoothness by epoch: means over the finished runs of each arm.

    A method has one colour, its hybrid training is dashed, gap's variants dotted; the rate's decays
    are dotted lines. Of the measured quantities the mean is geometric.
    """
    figure = Figure(figsize=(9, 6.8), layout="constrained")
    methods = list(dict.fromkeys(_method_of(outcome, arm) for arm in outcome.groups))
    for axes, (name, title, scale) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        drawn = False
        for arm, label in outcome.groups.items():
            if name == "top1":
                means = mean_by_place(_histories(outcome.runs, arm, METRICS[0]))
                points = {epoch: 100 * mean for epoch, mean in means.items()}
            else:
                found = [outcome.by_epoch(arm, seed).get(name, {}) for seed in outcome.final(arm)]
                points = mean_by_place(found, geometric_mean)
            place = methods.index(_method_of(outcome, arm))
            look = {"color": f"C{place}" if place < 10 else "0.5", "linestyle": _line_style(arm)}
            _plot(axes, points, linewidth=1.3, label=label, **look)
            drawn |= bool(points)
        # An axis without points cannot be logarithmic.
        _by_epoch(axes, ylabel=title, yscale=scale if drawn else "linear")
        for first in outcome.runs.first_epochs[1:]:
            axes.axvline(first, color="0.4", linestyle=":", linewidth=0.8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _method_of(outcome: Outcome, arm: Arm) -> str:
    """The arm's, or that of the standalone arm which stands for its method."""
    alone = outcome.representative(Arm(arm.method))
    return arm.method if alone is None else alone.method


def _line_style(arm: Arm) -> str:
    if arm.hybrid:
        return "--"
    return {(False, False): "-", (True, False): ":"}.get((arm.matched, arm.reduced), "-.")


def _histories(runs: RunSet, arm: Arm, metric: str, first: int = 1) -> list[Points]:
    """By epoch, from the first one on, of each finished run."""
    return [
        {row["epoch"]: row[metric] for row in runs.history(arm, seed) if row["epoch"] >= first}
        for seed in runs.finished(arm)
    ]


def _plot(axes: Axes, points: Points, **look: Any) -> None:
    axes.plot(list(points), list(points.values()), **look)


def _by_epoch(axes: Axes, **texts: str) -> None:
    axes.set(xlabel="epoch", **texts)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
