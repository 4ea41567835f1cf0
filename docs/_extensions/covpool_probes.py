"""What the recorded probes of frozen features say: a forest of differences, and answers."""

import json
import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from covpool_pictures import above, accuracies, draw_spread, series
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
        ("gaussian", REFERENCE),
    ),
    "Does normalisation matter?": (("isqrt-cov", "covariance"),),
    "Beyond scale?": (("isqrt-cov", "frobenius"), ("isqrt-cov", "sigma-max")),
    "Does the root's scale matter?": (("root-frobenius", "isqrt-cov"), ("seb", "isqrt-cov")),
    "Is a logarithm or an inverse as good as the root?": (
        ("log-e", "isqrt-cov"),
        ("chebyshev-log", "isqrt-cov"),
        ("cho-tmlr", "isqrt-cov"),
        ("precision", "isqrt-cov"),
    ),
    "Is the entries' root as good?": (("bcnn", "isqrt-cov"),),
    "Does the mean beside the covariance help?": (
        ("gaussian", "isqrt-cov"),
        ("gamma", "isqrt-cov"),
    ),
    "Is an approximate root as good?": (("isqrt-cov", "exact"), ("svd-topn", "exact")),
    "Is DropCov above iSQRT?": (("dropcov", "isqrt-cov"),),
    "Does a learned exponent help?": (("power-learned", "exact"),),
}
"""By question the pairs of arms whose difference answers it."""


SETS: Mapping[str, tuple[str, str]] = {
    "letters": ("letters", "typefaces200-lite0"),
    "families": ("families", "families519-lite0"),
    "icons": ("icons", "icons100-lite0"),
    "clothes": ("clothes", "fashion500-lite0"),
    "lite1": ("letters, Lite1", "typefaces200-lite1"),
    "lite2": ("letters, Lite2", "typefaces200-lite2"),
    "fine": ("letters, 14×14 positions", "typefaces200-lite0-224"),
    "last": ("letters, last stage", "typefaces200-lite0-224-last"),
    "own": ("icons, reductions of their own", "icons100-lite0-own"),
    "all": ("letters, last stage, all poolings", "letters30-lite0-last"),
}
"""By what sentences call a recorded probe: what figures call it, and the folder of its results."""

IN_TURN = ("letters", "families", "icons", "clothes")
"""Those that are meant where a sentence names none."""


LEFT = -14
"""Points at which the forest ends on the left; what lies beyond it is written there."""


def draw_forest(axes: Axes, sets: Sequence[str] = IN_TURN) -> None:
    """Every pooling above the average with as rich a head, the best over these probes on top.

    Poolings with the same accuracies, seed by seed, are one line.
    """
    found = {SETS[name][0]: above(_folder(name), REFERENCE) for name in sets}
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


def _folder(name: str) -> str:
    return f"{FOLDER}/{SETS[name][1]}"


def _label(arms: Sequence[str]) -> str:
    first, *others = arms
    return f"{first} (and {len(others)} more)" if others else first


AVERAGES = tuple(arm.label for arm in BASELINES)


def stated(text: str) -> Markdown:
    """A text with differences in it, as recorded: {gamma − exact} in points on each of `IN_TURN`, a
    dash where one was not run, {gamma − exact on letters} on one of them; and with accuracies,
    {gamma on letters}. `average` is the best of the averages."""

    def found(match: re.Match[str]) -> str:
        arm, other, where = match.groups()
        return " / ".join(_told(name, arm, other) for name in ([where] if where else IN_TURN))

    return Markdown(re.sub(r"\{(\S+?)(?: − (\S+?))?(?: on (\w+))?\}", found, text))


def _told(name: str, arm: str, other: str | None) -> str:
    means = {k: fmean(own.values()) for k, own in accuracies(_folder(name)).items()}
    means["average"] = max(means[average] for average in AVERAGES)
    if not {arm, other or arm} <= set(means):
        return "–"
    return f"{means[arm]:.1f}%" if other is None else f"{means[arm] - means[other]:+.1f}"


def answers(sets: Sequence[str]) -> Markdown:
    """By question the differences that answer it, on each probe; without pairs that none has."""
    found = {SETS[name][0]: accuracies(_folder(name)) for name in sets}
    rows = []
    for question, pairs in QUESTIONS.items():
        for arm, other in pairs:
            if not any({arm, other} <= set(own) for own in found.values()):
                continue
            cells = [
                Spread.of(differences(own.get(arm, {}), own.get(other, {}))).interval_text()
                for own in found.values()
            ]
            rows.append([question, f"`{arm}` − `{other}`", *cells])
            question = ""
    return Markdown(table(["", "points", *found], rows))
