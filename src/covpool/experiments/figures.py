"""Figures of experiments, each a file of its own: by step, by epoch, by arm."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import median_high
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from covpool.experiments.arms import Arm
from covpool.experiments.inference import Spread, differences, mean_by_place
from covpool.experiments.outcome import Outcome
from covpool.experiments.paper import METRICS
from covpool.experiments.results import RunSet

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
        middle = mean_by_place(series, median_high)
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
        for arm, marker in zip(arms, cycle("osv^D<>Xp"), strict=False):
            errors = mean_by_place(
                {row["epoch"]: 100 * (1 - row[metric]) for row in runs.history(arm, seed)}
                for seed in runs.finished(arm)
            )
            last = {epoch: e for epoch, e in errors.items() if epoch >= runs.first_epochs[-1]}
            _plot(axes, last, marker=marker, markersize=4, label=arm.method)
        axes.set(xlabel="epoch", ylabel=f"top-{metric.removeprefix('test_top')} error (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    both[-1].legend(fontsize=8, loc="upper right")
    return figure


def forest(outcome: Outcome) -> Figure:
    """Paired differences to the first reference, the largest on top, with their 95% intervals."""
    reference = outcome.study.references[0]
    itself, base = outcome.representative(reference), outcome.final(reference)
    spreads = {
        name: Spread.of(differences(outcome.final(arm), base))
        for arm, name in outcome.groups.items()
        if arm != itself
    }
    drawn = sorted((own.mean, name) for name, own in spreads.items() if own.mean is not None)
    figure = Figure(figsize=(7, 0.9 + 0.26 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for place, (mean, name) in enumerate(drawn):
        high = spreads[name].high
        reach = None if high is None else high - mean
        axes.errorbar(mean, place, xerr=reach, fmt="o", color="C0", markersize=4)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(drawn)), [name for _, name in drawn], fontsize=8)
    axes.set_xlabel(f"top-1 accuracy above {reference.label}, points [95%]")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _plot(axes: Axes, points: Points, **look: Any) -> None:
    axes.plot(list(points), list(points.values()), **look)
