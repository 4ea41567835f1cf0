"""The study's figure."""

from matplotlib.figure import Figure

from covpool.study.outcome import Outcome
from covpool.train.comparison import mean_and_interval


def accuracy_dots(outcome: Outcome) -> Figure:
    """Final accuracy by arm: seeds as dots, mean and its 95% interval beside them."""
    arms = outcome.arms
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
    axes.set_yticks(range(len(arms)), [arm.label for arm in reversed(arms)])
    axes.set_xlabel("top-1 accuracy of the last epoch, test split (%)")
    axes.grid(axis="x", alpha=0.3)
    return figure
