"""The study's figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from covpool.reproduce.arms import Arm
from covpool.reproduce.results import geometric_mean
from covpool.study.outcome import Outcome
from covpool.train.comparison import mean_and_interval


def accuracy_dots(outcome: Outcome) -> Figure:
    """Final accuracy by arm: seeds as dots, mean and its 95% interval beside them."""
    arms = list(outcome.groups)
    figure = Figure(figsize=(7, 0.7 + 0.32 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(reversed(arms)):
        values = [*outcome.setting.accuracies(arm, "final").values()]
        colour = "C0" if arm.method == "gap" else "C2" if arm.hybrid else "C1"
        axes.plot(values, [place - 0.12] * len(values), "o", color=colour, alpha=0.5, markersize=4)
        mean, low, high = mean_and_interval(values)
        if mean is not None:
            axes.plot([mean], [place + 0.12], "|", color=colour, markersize=9)
        if low is not None and high is not None:
            axes.plot([low, high], [place + 0.12] * 2, color=colour)
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
        for arm, label in outcome.groups.items():
            seeds = outcome.setting.accuracies(arm, "final")
            if name == "top1":
                histories = [outcome.setting.history(arm, seed) for seed in seeds]
                series = [
                    {row["epoch"]: 100 * row["test_top1"] for row in own} for own in histories
                ]
                points = _mean_by_epoch(series, fmean)
            else:
                found = [outcome.by_epoch(arm, seed).get(name, {}) for seed in seeds]
                points = _mean_by_epoch(found, geometric_mean)
            place = methods.index(_method_of(outcome, arm))
            axes.plot(
                list(points),
                list(points.values()),
                color=f"C{place}" if place < 10 else "0.5",
                linestyle=_line_style(arm),
                linewidth=1.3,
                label=label,
            )
        drawn = any(len(line.get_xdata()) for line in axes.get_lines())
        # An axis without points cannot be logarithmic.
        axes.set(xlabel="epoch", ylabel=title, yscale=scale if drawn else "linear")
        for first in outcome.setting.first_epochs[1:]:
            axes.axvline(first, color="0.4", linestyle=":", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
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


def _mean_by_epoch(
    series: Sequence[Mapping[int, float]], mean: Callable[[Sequence[float]], float]
) -> dict[int, float]:
    """Over the finite values; an epoch that has none is left out."""
    means = {}
    for epoch in sorted({epoch for own in series for epoch in own}):
        values = [own[epoch] for own in series if math.isfinite(own.get(epoch, math.nan))]
        if values:
            means[epoch] = mean(values)
    return means
