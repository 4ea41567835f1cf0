"""The page itself: what the template is filled with."""

import datetime
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from covpool.experiments import paper
from covpool.experiments.inference import Spread, differences
from covpool.experiments.sheet import Sheet, Table
from covpool.report.curve_figures import accuracy, learning_curves
from covpool.report.figures import PageFigure, Styles
from covpool.report.groups import Setting, group
from covpool.report.probe_figures import conditioning, kernel_sizes, real_fidelity, smoothness
from covpool.report.series import failures, probed
from covpool.report.sources import Run
from covpool.report.template import fill
from covpool.text import quantity

GENERATOR = "covpool report"
"""The page's `generator`, by which an earlier report is known."""

CONFUSIONS = 24
"""As many of the most frequent confusions are listed, at least 3 and at most 8 for a method."""

FIGURES: Mapping[str, tuple[str, str, Callable[[PageFigure], None]]] = {
    "curves": ("Learning curves", "", learning_curves),
    "accuracy": ("Accuracy by method", "", accuracy),
    "smoothness": ("Effective β-smoothness along training", "smoothness", smoothness),
    "conditioning": ("Conditioning by epoch", "conditioning", conditioning),
    "kernels": ("The largest |K| met in training, and its bound", "conditioning", kernel_sizes),
    "gradients": (
        "Gradient fidelity on the covariances of these runs",
        "fidelity",
        real_fidelity,
    ),
}
"""The figures of each setting, in the page's order: title, the probe that they need, and what draws
them. Their captions have these names too."""


def render(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    sheets: Sequence[Sheet] = (),
) -> str:
    """The report as one page of HTML.

    Args:
        runs: what `find_runs` found.
        baseline: the label of the row that differences are taken to; None: each setting's first.
        sheets: what `find_sheets` found.

    Raises:
        ValueError: an unknown baseline.
    """
    settings = group(runs, baseline)
    styles = Styles(run.method for run in runs)
    return fill(
        "page.html.jinja",
        generator=GENERATOR,
        date=datetime.date.today().isoformat(),
        source=paper.SOURCE,
        runs=runs,
        sheets=sheets,
        sections=[
            {
                # Numbered where there are several, as titles may be alike.
                "title": own.title if len(settings) == 1 else f"{number}. {own.title}",
                **_section(own, styles, f"s{number}"),
            }
            for number, own in enumerate(settings, start=1)
        ],
    )


def _section(setting: Setting, styles: Styles, prefix: str) -> dict[str, Any]:
    """What the page says of one setting."""
    figures = {name: _figure(setting, styles, name, prefix) for name in FIGURES}
    notes = (str(note) for run in setting.runs for note in run.summary.get("notes", ()))
    return {
        "setting": setting,
        "standing": _standing(setting),
        "unfinished": Counter(run.status for run in setting.runs if not run.finished),
        "accuracy": accuracy_table(setting),
        "papers": {row.label: paper.printed_name(row.method) for row in setting.rows},
        "notes": dict.fromkeys(notes),
        "skipped": sum(int(run.summary.get("skipped_steps", 0)) for run in setting.runs),
        "confusions": _confusions(setting),
        "pictures": {name: own for run in setting.runs for name, own in run.examples.items()},
        "figures": {name: each for name, each in figures.items() if not each.missing},
        "missing": [each for each in figures.values() if each.missing],
        "facts": _facts(setting),
        "options": _options(setting),
    }


def _figure(setting: Setting, styles: Styles, name: str, prefix: str) -> PageFigure:
    title, probe, draw = FIGURES[name]
    figure = PageFigure(name=f"{prefix}-{name}", title=title, setting=setting, styles=styles)
    if probe:
        figure.measured = probed(setting, probe)
        figure.about["failures"] = failures(setting, probe)
    if probe and not figure.measured:
        figure.missing = (
            f"The runs were trained without the {probe} probe; --train.probes [{probe}] switches "
            "it on."
        )
    else:
        draw(figure)
    return figure


def accuracy_table(setting: Setting) -> Table:
    """The accuracies of each method, and differences to the baseline."""
    rows = [
        (
            row.label,
            f"{len(row.finished)} of {len(row.runs)}",
            row.spread().text(),
            row.spread("best").text(),
            row.spread(score="test_top5").text(),
            "baseline"
            if row is setting.base
            else setting.difference(row).interval_text().replace("-", "−"),
            "–" if row.seconds is None else f"{row.seconds:.2f}",
        )
        for row in setting.rows
    ]
    columns = (
        *("method", "finished", "Final top-1 %", "Best top-1 %", "Final top-5 %"),
        *(f"Final, difference to {setting.baseline}", "s / epoch"),
    )
    return Table(columns=columns, rows=rows)


def _standing(setting: Setting) -> Mapping[str, Any]:
    """Which method is ahead, where the intervals of its differences to all others say that one is.

    Of the methods with the most finished runs: the best, those below it by more than the interval,
    those that are not, with the ends of their means. Empty without finished runs.
    """
    most = max(len(row.finished) for row in setting.rows)
    if not most:
        return {}
    finals = {row.label: row.spread() for row in setting.rows if len(row.finished) == most}
    means = {label: found.mean or 0.0 for label, found in finals.items()}
    best = max(means, key=lambda label: means[label])
    gaps = {
        label: Spread.of(differences(finals[best].values, found.values))
        for label, found in finals.items()
        if label != best
    }
    below = [label for label, gap in gaps.items() if gap.sign == 1]
    level = [label for label in finals if label not in below]
    ends = [f"{end(means[label] for label in level):.4g}%" for end in (min, max)]
    return {
        "seeds": most,
        "methods": len(finals),
        "best": best,
        "score": finals[best].text(),
        "below": below,
        "level": level,
        "ends": dict.fromkeys(ends),
    }


def _confusions(setting: Setting) -> list[tuple[str, list[tuple[str, str, int]]]]:
    """By method, the pairs of classes confused most often, over all seeds: the class, what it was
    called, the number of images."""
    found = []
    listed = min(8, max(3, CONFUSIONS // len(setting.rows)))
    for row in setting.rows:
        counts = Counter[tuple[str, str]]()
        for each in (each for run in row.runs for each in run.confusions):
            counts[str(each["class"]), str(each["called"])] += each["images"]
        if counts:
            found.append((row.label, [(*pair, n) for pair, n in counts.most_common(listed)]))
    return found


def _facts(setting: Setting) -> dict[str, str]:
    """Data, network, machine and versions, each with all values that occur."""
    summaries = [run.summary for run in setting.runs]
    machines = [summary.get("machine") or {} for summary in summaries]

    def values(name: str, of: Sequence[Mapping[str, Any]] = summaries, form: str = "") -> str:
        found = [format(each[name], form) for each in of if each.get(name) is not None]
        return ", ".join(dict.fromkeys(found))

    facts = {
        "data": values("data"),
        "network": values("backbone"),
        "parameters": values("parameters", form=","),
        "epochs planned": values("epochs_planned"),
        "seeds": ", ".join(map(str, sorted({run.seed for run in setting.runs}))),
        "covpool": values("covpool"),
        "torch": values("torch"),
        **{name: values(name, machines) for machine in machines for name in machine},
        "training time": _time(summaries),
        "machine": "" if any(machines) else "not recorded by these runs",
    }
    return {name: text for name, text in facts.items() if text}


def _time(summaries: Sequence[Mapping[str, Any]]) -> str:
    seconds = sum(float(summary.get("seconds", 0)) for summary in summaries)
    if not seconds:
        return ""
    text = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2g} h"
    return f"{text} over {quantity(len(summaries), 'run')}, evaluation not counted"


def _options(setting: Setting) -> dict[str, dict[str, dict[str, None]]]:
    """The configuration by group and name; an option that differs between runs has all its
    values."""
    groups: dict[str, dict[str, dict[str, None]]] = {}
    for run in setting.runs:
        for name, options in run.config.items():
            for key, value in options.items():
                groups.setdefault(name, {}).setdefault(key, {})[_plain(value)] = None
    return groups


def _plain(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "–" if value in ([], {}, "") else str(value)
