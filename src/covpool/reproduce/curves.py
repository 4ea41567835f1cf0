"""The paper's figures, drawn from our runs."""

import math
from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from covpool.reproduce.arms import Arm
from covpool.reproduce.results import METRICS, Setting

MARKERS = "osv^D<>Xp"


def smoothness_curves(setting: Setting, arms: Sequence[Arm]) -> Figure:
    """β by step: each seed, and the median over seeds; the rate's decays are dotted."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        colour = f"C{place}"
        by_step: dict[int, list[float]] = {}
        for rows in setting.measured(arm, "smoothness").values():
            points = [(row["step"], float(row["smoothness"])) for row in rows]
            points = [(step, value) for step, value in points if 0 < value < math.inf]
            axes.plot(*_columns(points), color=colour, linewidth=0.6, alpha=0.35)
            for step, value in points:
                by_step.setdefault(step, []).append(value)
        middle = [(step, sorted(found)[len(found) // 2]) for step, found in sorted(by_step.items())]
        axes.plot(*_columns(middle), color=colour, linewidth=1.8, label=arm.method)
        for first in setting.first_epochs[1:]:
            rows = [row for own in setting.measured(arm, "smoothness").values() for row in own]
            steps = [row["step"] for row in rows if row["epoch"] == first]
            if steps and place == 0:
                axes.axvline(min(steps), color="0.4", linestyle=":")
    axes.set(xlabel="step", ylabel="effective β-smoothness", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return figure


def last_stage(setting: Setting, arms: Sequence[Arm]) -> Figure:
    """Top-1 and top-5 error by epoch of the last stage, mean over seeds."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    first = setting.first_epochs[-1]
    both: Sequence[Axes] = figure.subplots(1, 2)
    for axes, metric in zip(both, METRICS, strict=True):
        for place, arm in enumerate(arms):
            histories = [setting.history(arm, seed) for seed in setting.errors(arm, metric)]
            epochs = range(first, setting.config.train.epochs + 1)
            means = [
                (epoch, 100 * (1 - fmean(history[epoch - 1][metric] for history in histories)))
                for epoch in epochs
                if histories
            ]
            marker = MARKERS[place % len(MARKERS)]
            axes.plot(*_columns(means), marker=marker, markersize=4, label=arm.method)
        top = metric.removeprefix("test_top")
        axes.set(xlabel="epoch", ylabel=f"top-{top} error (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    both[-1].legend(fontsize=8, loc="upper right")
    return figure


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
