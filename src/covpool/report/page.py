"""The page itself: what the template is filled with."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covpool.experiments import paper
from covpool.experiments.inference import Spread, differences
from covpool.report.curve_figures import accuracy, learning_curves
from covpool.report.fidelity_figures import real_fidelity
from covpool.report.figures import Missing, PageFigure, Styles, names
from covpool.report.groups import MethodRow, Setting, group
from covpool.report.kernel_figures import kernel_sizes
from covpool.report.observations import headline as of_observations
from covpool.report.probe_figures import conditioning, smoothness
from covpool.report.sources import Run
from covpool.report.svg import SERIES
from covpool.report.tables import PageTable, tables_of
from covpool.report.template import fill
from covpool.text import shortened

GENERATOR = "covpool report"
"""The page's `generator`, by which an earlier report is known."""

CONFUSIONS = 24
"""As many of the most frequent confusions are listed, at least 3 and at most 8 for a method."""

NAME_LENGTH = 60
"""As much of a class's name is shown."""

TRAINING_FIGURES = {
    "curves": learning_curves,
    "accuracy": accuracy,
    "smoothness": smoothness,
    "conditioning": conditioning,
    "kernels": kernel_sizes,
    "gradients": real_fidelity,
}
"""The figures of each setting, in the page's order."""


@dataclass(frozen=True)
class Called:
    """A class in a confusion, with small pictures of it, JPEG in base 64."""

    name: str
    pictures: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page says of one setting."""

    title: str
    setting: Setting
    tables: Sequence[PageTable]
    problems: Sequence[str]
    confusions: Sequence[tuple[str, Sequence[tuple[Called, Called, str]]]]
    figures: Sequence[PageFigure]
    missing: Sequence[Missing]
    facts: Sequence[tuple[str, str]]
    options: Sequence[tuple[str, Sequence[tuple[str, str]]]]


def render(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    observations: Sequence[PageTable] = (),
) -> str:
    """The report as one page of HTML.

    Args:
        runs: what `find_runs` found.
        baseline: the label of the row that differences are taken to; None: each setting's first.
        observations: what `find_observations` found.

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
        observations=observations,
        sections=[
            _section(own, styles, number if len(settings) > 1 else None)
            for number, own in enumerate(settings, start=1)
        ],
        headline=[*headline(settings), *map(of_observations, observations)],
        series=SERIES,
    )


def headline(settings: Sequence[Setting]) -> list[str]:
    """What was found, in a sentence or two for each setting."""
    texts = []
    for number, setting in enumerate(settings, start=1):
        where = f"{_title(setting, number)}: " if len(settings) > 1 else ""
        most = max(len(row.finished) for row in setting.rows)
        rows = [row for row in setting.rows if len(row.finished) == most]
        if most:
            texts.append(where + _accuracies(rows, f"{most} seeds" if most > 1 else "1 seed"))
        unfinished = [run for run in setting.runs if not run.finished]
        if unfinished:
            found = dict.fromkeys(dict.fromkeys(run.status for run in unfinished), 0)
            for run in unfinished:
                found[run.status] += 1
            counts = ", ".join(f"{count} {status}" for status, count in found.items())
            texts.append(f"{where}{counts}, of {len(setting.runs)} runs.")
    return texts


def _accuracies(rows: Sequence[MethodRow], seeds: str) -> str:
    """Which method is ahead, where the intervals of its differences to all others say that one is.

    Args:
        rows: with finished runs, as many each.
        seeds: how many.
    """
    finals = {row.label: row.spreads["final", "test_top1"] for row in rows}
    means = {label: found.mean or 0.0 for label, found in finals.items()}
    best = max(means, key=lambda label: means[label])
    score = f"{finals[best].text()}%"
    if len(rows) == 1:
        return f"{best} reaches {score} top-1 in the last epoch ({seeds})."
    ahead = {
        label: Spread.of(differences(finals[best].values, found.values))
        for label, found in finals.items()
        if label != best
    }
    below = [label for label, gap in ahead.items() if gap.low is not None and gap.low > 0]
    level = [label for label in finals if label not in below]
    of = f"Of the {len(rows)} methods with {seeds}"
    if len(level) == 1:
        return (
            f"{of}, {best} has the highest top-1 in the last epoch, {score}, by more than the 95% "
            "interval of its difference to each other method."
        )
    ends = [f"{end(means[label] for label in level):.4g}%" for end in (min, max)]
    scores = " to ".join(dict.fromkeys(ends))
    by = "one seed" if seeds == "1 seed" else "these seeds"
    verb = "is" if len(below) == 1 else "are"
    return (
        f"{of} none is ahead in the last epoch: {names(level)}, with {scores} top-1, are not told "
        f"apart by {by}{f'; {names(below)} {verb} below' if below else ''}."
    )


def _title(setting: Setting, number: int | None) -> str:
    """The setting's title, numbered where there are several, as titles may be alike."""
    return setting.title if number is None else f"{number}. {setting.title}"


def _section(setting: Setting, styles: Styles, number: int | None) -> Section:
    figures = [
        draw(setting, styles, f"s{number or 1}-{name}") for name, draw in TRAINING_FIGURES.items()
    ]
    return Section(
        title=_title(setting, number),
        setting=setting,
        tables=tables_of(setting),
        problems=[*_problems(setting), *_notes(setting)],
        confusions=_confusions(setting),
        figures=[figure for figure in figures if isinstance(figure, PageFigure)],
        missing=[figure for figure in figures if isinstance(figure, Missing)],
        facts=_facts(setting),
        options=_options(setting),
    )


def _problems(setting: Setting) -> list[str]:
    """The runs that are not in the means, and why."""
    found = [
        f"{row.label}, seed {run.seed}: {run.status}, after {run.summary['epochs']} epochs. "
        f"{run.summary.get('reason', '')}"
        for row in setting.rows
        for run in row.runs
        if not run.finished
    ]
    again = [
        f"{run.label}, seed {run.seed} in {run.path}: left out, as another run has the same "
        "options and seed."
        for run in setting.duplicates
    ]
    return [*found, *again]


def _notes(setting: Setting) -> list[str]:
    """What the runs noted of themselves, each text once."""
    skipped = sum(int(run.summary.get("skipped_steps", 0)) for run in setting.runs)
    notes = [str(note) for run in setting.runs for note in run.summary.get("notes", ())]
    if skipped:
        notes.append(f"{skipped:,} steps with a loss or gradient that was not finite were skipped.")
    return list(dict.fromkeys(notes))


def _confusions(setting: Setting) -> list[tuple[str, list[tuple[Called, Called, str]]]]:
    """By method, the pairs of classes confused most often, over all seeds: the class, what it was
    called, the number of images."""
    found = []
    pictures = {name: own for run in setting.runs for name, own in run.examples.items()}
    listed = min(8, max(3, CONFUSIONS // len(setting.rows)))
    for row in setting.rows:
        counts: dict[tuple[str, str], int] = {}
        for run in row.runs:
            for each in run.confusions:
                pair = (str(each["class"]), str(each["called"]))
                counts[pair] = counts.get(pair, 0) + each["images"]
        most = sorted(counts.items(), key=lambda item: -item[1])[:listed]
        if most:
            pairs = [
                (
                    Called(shortened(one, NAME_LENGTH), pictures.get(one, ())),
                    Called(shortened(other, NAME_LENGTH), pictures.get(other, ())),
                    f"{count:,}",
                )
                for (one, other), count in most
            ]
            found.append((row.label, pairs))
    return found


def _facts(setting: Setting) -> list[tuple[str, str]]:
    """Data, network, machine and versions, each with all values that occur."""
    summaries = [run.summary for run in setting.runs]
    machines = [summary.get("machine") or {} for summary in summaries]

    def values(name: str, of: Sequence[Mapping[str, Any]] = summaries, form: str = "") -> str:
        found = [format(each[name], form) for each in of if each.get(name) is not None]
        return ", ".join(dict.fromkeys(found))

    facts = [
        ("data", values("data")),
        ("network", values("backbone")),
        ("parameters", values("parameters", form=",")),
        ("epochs planned", values("epochs_planned")),
        ("seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in setting.runs}))),
        ("covpool", values("covpool")),
        ("torch", values("torch")),
        *((name, values(name, machines)) for name in dict.fromkeys(n for m in machines for n in m)),
        ("training time", _time(summaries)),
    ]
    known = [(name, text) for name, text in facts if text]
    return known if any(machines) else [*known, ("machine", "not recorded by these runs")]


def _time(summaries: Sequence[Mapping[str, Any]]) -> str:
    seconds = sum(float(summary.get("seconds", 0)) for summary in summaries)
    if not seconds:
        return ""
    text = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2g} h"
    return f"{text} over {len(summaries)} runs, evaluation not counted"


def _options(setting: Setting) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration by group; an option that differs between runs has all its values."""
    groups: dict[str, dict[str, dict[str, None]]] = {}
    for run in setting.runs:
        for name, options in run.config.items():
            for key, value in options.items():
                groups.setdefault(name, {}).setdefault(key, {})[_plain(value)] = None
    return [
        (name, [(key, "; ".join(values)) for key, values in options.items()])
        for name, options in groups.items()
    ]


def _plain(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "–" if value in ([], {}, "") else str(value)
