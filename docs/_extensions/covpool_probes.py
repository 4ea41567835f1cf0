"""What the recorded probes of frozen features say: a forest of differences, and answers."""

import json
import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from covpool_pictures import ROOT, above, accuracies, draw_spread, series
from covpool_tables import table
from IPython.display import Markdown
from matplotlib.axes import Axes

from covpool.experiments.arms import BASELINES
from covpool.experiments.inference import Spread, differences
from covpool.report.figures import title
from covpool.report.svg import colour

FOLDER = "which-pooling"

REFERENCE = "gap-reduced-matched"
"""The average that has all that the covariance has, but for the second moments: the same reduced
maps, and a hidden layer that makes its head as large."""

QUESTIONS: Mapping[str, Sequence[tuple[str, str]]] = {
    "Does the covariance beat an average with as rich a head?": (
        ("isqrt-cov", REFERENCE),
        ("covariance", REFERENCE),
    ),
    "Does normalisation matter?": (("exact", "covariance"),),
    "Beyond scale?": (("exact", "frobenius"), ("exact", "sigma-max")),
    "Does the root's scale matter?": (("root-frobenius", "exact"), ("seb", "exact")),
    "Is the logarithm as good as the root?": (
        ("log-e", "exact"),
        ("chebyshev-log", "exact"),
        ("cho-tmlr", "exact"),
    ),
    "Is the entries' root as good?": (("bcnn", "exact"),),
    "Does the mean beside the covariance help?": (("gaussian", "exact"),),
    "Is an approximate root as good?": (("isqrt-cov", "exact"), ("svd-topn", "exact")),
    "Is DropCov above iSQRT?": (("dropcov", "isqrt-cov"),),
    "Does a learned exponent help?": (("power-learned", "exact"),),
}
"""By question the pairs of arms whose difference answers it."""


def probes() -> dict[str, str]:
    """By what a recorded probe is called the folder of its results."""
    folders = sorted((ROOT / "results" / FOLDER).glob("*/runs.jsonl"))
    return {path.parent.name: f"{FOLDER}/{path.parent.name}" for path in folders}


LEFT = -14
"""Points at which the forest ends on the left; what lies beyond it is written there."""


def draw_forest(axes: Axes) -> None:
    """Every pooling above the average with as rich a head, the best over all probes on top.

    Poolings with the same accuracies, seed by seed, are one line.
    """
    found = {name: above(folder, REFERENCE) for name, folder in probes().items()}
    lines: dict[str, list[str]] = {}
    for arm in dict.fromkeys(arm for spreads in found.values() for arm in spreads):
        values = {name: spreads[arm].values for name, spreads in found.items() if arm in spreads}
        lines.setdefault(json.dumps(values), []).append(arm)
    means = {
        arm: fmean(spreads[arm].mean or 0.0 for spreads in found.values() if arm in spreads)
        for arm, *_ in lines.values()
    }
    rows = sorted(lines.values(), key=lambda arms: means[arms[0]])
    for place, (name, spreads) in enumerate(found.items()):
        label: str | None = name
        for row, (arm, *_) in enumerate(rows):
            at = row - 0.2 * (place - (len(found) - 1) / 2)
            if arm in spreads and (mean := spreads[arm].mean or 0.0) < LEFT:
                axes.text(LEFT, at, f"◂ {mean:.0f}", color=series(2 + place), va="center")
            elif arm in spreads:
                draw_spread(axes, spreads[arm], at, place, label=label)
                label = None
    axes.axvline(0, color=colour("muted"), linewidth=1)
    axes.set_yticks(range(len(rows)), [_label(arms) for arms in rows])
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xlim(LEFT, None)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    title(axes, f"Accuracy above {REFERENCE}", x="points; 95% intervals over seeds")


def _label(arms: Sequence[str]) -> str:
    first, *others = arms
    return f"{first} (and {len(others)} more)" if others else first


SETS = {
    "letters": "typefaces200-lite0",
    "icons": "icons100-lite0",
    "clothes": "fashion500-lite0",
    "lite1": "typefaces200-lite1",
    "lite2": "typefaces200-lite2",
}
"""What sentences call a recorded probe; the first three are meant where none is named."""

AVERAGES = tuple(arm.label for arm in BASELINES)


def stated(text: str) -> Markdown:
    """A text with differences in it, as recorded: {gamma − exact} in points on letters, icons and
    clothes, {gamma − exact on letters} on one of them; `average` is the best of the averages."""

    def found(match: re.Match[str]) -> str:
        arm, other, where = match.groups()
        names = [where] if where else list(SETS)[:3]
        return " / ".join(f"{_points(SETS[name], arm, other):+.1f}" for name in names)

    return Markdown(re.sub(r"\{(\S+) − ([^\s}]+)(?: on (\w+))?\}", found, text))


def _points(name: str, arm: str, other: str) -> float:
    means = {k: fmean(own.values()) for k, own in accuracies(f"{FOLDER}/{name}").items()}
    means["average"] = max(means[average] for average in AVERAGES)
    return means[arm] - means[other]


def answers() -> Markdown:
    """By question the differences that answer it, on each probe."""
    found = {name: accuracies(folder) for name, folder in probes().items()}
    rows = []
    for question, pairs in QUESTIONS.items():
        for arm, other in pairs:
            cells = [
                Spread.of(differences(own.get(arm, {}), own.get(other, {}))).interval_text()
                for own in found.values()
            ]
            rows.append([question, f"`{arm}` − `{other}`", *cells])
            question = ""
    return Markdown(table(["", "points", *found], rows))
