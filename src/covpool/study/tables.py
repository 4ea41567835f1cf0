"""The tables of a study's summary."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from covpool.linalg.methods import METHODS
from covpool.report.paper import accuracies
from covpool.reproduce.arms import Arm
from covpool.reproduce.results import differences, geometric_mean
from covpool.study.inference import seeds_needed
from covpool.study.outcome import SPECTRA, Outcome
from covpool.study.phases import tuned_as
from covpool.train.comparison import mean_and_interval

HALF_WIDTHS = (0.5, 1.0)
"""Of intervals, in points of percent, that the summary says the number of seeds for."""

PLACES: Mapping[str, tuple[int, int | None]] = {"table4": (0, 1), "table5": (2, None)}
"""Which of `paper.COLUMNS` stand beside standalone and hybrid training; None: none does."""


def accuracy_table(outcome: Outcome) -> dict[str, Any]:
    """Final and Best, and Final's differences to the references."""
    study, setting = outcome.study, outcome.setting
    beside = PLACES.get(study.stands_for)
    rows = []
    for arm, name in outcome.groups.items():
        final = setting.accuracies(arm, "final")
        row = [name, f"{outcome.rate(arm):g}", str(len(final)), setting.spread(arm, final)]
        row.append(setting.spread(arm, setting.accuracies(arm, "best")))
        for reference in study.references:
            pairs = differences(final, setting.accuracies(reference, "final"))
            itself = outcome.representative(reference) == arm
            row.append("–" if itself else _interval([*pairs.values()]))
        if beside:
            row.append(_printed(outcome, arm, beside[arm.hybrid]))
        rows.append(row)
    columns = ["", "rate", "seeds", "Final, mean ± deviation", "Best, mean ± deviation"]
    columns += [f"Final − {reference.label} [95%]" for reference in study.references]
    if beside:
        columns.append(
            "the paper, ImageNet, ResNet-50"
            if study.stands_for == "table4"
            else "the paper, Birds, Final / Best (standalone)"
        )
    return {"columns": columns, "rows": rows}


def seeds_table(outcome: Outcome) -> dict[str, Any]:
    """How far the differences scatter, and the seeds that a narrower interval would take."""
    rows, listed = [], set[frozenset[Arm]]()
    for reference in outcome.study.references:
        base = outcome.setting.accuracies(reference, "final")
        for arm, name in outcome.groups.items():
            pairs = [*differences(outcome.setting.accuracies(arm, "final"), base).values()]
            both = frozenset({outcome.representative(reference) or reference, arm})
            if len(both) == 1 or both in listed:
                continue
            listed.add(both)
            needed = [seeds_needed(pairs, half) for half in HALF_WIDTHS]
            rows.append(
                [
                    f"{name} − {reference.label}",
                    str(len(pairs)),
                    f"{statistics.stdev(pairs):.2f}" if len(pairs) > 1 else "–",
                    *("–" if number is None else str(number) for number in needed),
                ]
            )
    columns = ["difference", "seeds", "standard deviation"]
    columns += [f"seeds for ±{half:g} points, as it scatters here" for half in HALF_WIDTHS]
    return {"columns": columns, "rows": rows}


def rates_table(outcome: Outcome) -> dict[str, Any]:
    """Validation accuracy by rate, the rate taken, and whether the rates went far enough."""
    rates = sorted({float(rate) for chosen in _chosen(outcome).values() for rate in _tried(chosen)})
    rows = [
        [
            label,
            *(_validation(chosen, rate) for rate in rates),
            f"{chosen['rate']:g}",
            _at_edge(chosen) or "–",
        ]
        for label, chosen in _chosen(outcome).items()
    ]
    columns = ["validation top-1 at", *(f"{rate:g}" for rate in rates), "taken", "remark"]
    return {"columns": columns, "rows": rows}


def rate_warnings(outcome: Outcome) -> list[str]:
    """What a sceptic has to know of the choice of rates."""
    chosen = _chosen(outcome)
    warnings = []
    if edges := [label for label, own in chosen.items() if _at_edge(own)]:
        warnings.append(
            f"**The rate of {', '.join(edges)} is at the edge of what was tried:** another one "
            "beyond it may be better, and differences to these arms may be differences of rates."
        )
    if len({frozenset(_tried(own)) for own in chosen.values()}) > 1:
        warnings.append("**Not all arms were tried with the same rates**; see the table of rates.")
    return warnings


def _chosen(outcome: Outcome) -> dict[str, Mapping[str, Any]]:
    labels = dict.fromkeys(tuned_as(arm).label for arm in outcome.arms)
    return {label: outcome.rates[label] for label in labels}


def _tried(chosen: Mapping[str, Any]) -> set[float]:
    return {float(rate) for rate in chosen["validation_top1"]}


def _validation(chosen: Mapping[str, Any], rate: float) -> str:
    for tried, top1 in chosen["validation_top1"].items():
        if float(tried) == rate:
            return "diverged" if top1 is None else f"{top1:.2f}"
    return "not tried"


def _at_edge(chosen: Mapping[str, Any]) -> str:
    """A remark where the rate taken is the least or the largest of those that were tried."""
    tried, rate = _tried(chosen), float(chosen["rate"])
    if not tried:
        return "given, with no trials"
    if all(top1 is None for top1 in chosen["validation_top1"].values()):
        return "all diverged; the lowest is taken"
    if len(tried) == 1:
        return "the only one tried"
    # Rates are written with six digits.
    ends = {"lowest": min(tried), "highest": max(tried)}
    found = [name for name, end in ends.items() if math.isclose(rate, end, rel_tol=1e-5)]
    return f"the {found[0]} tried" if found else ""


def _printed(outcome: Outcome, representative: Arm, place: int | None) -> str:
    """The paper's cells of all arms that are the same here."""
    if place is None:
        return "–"
    same = [arm for arm in outcome.arms if outcome.representative(arm) == representative]
    cells = []
    for arm in same:
        row = METHODS.get(arm.method)
        printed = accuracies(row.paper_name if row else None)
        if printed is not None:
            cells.append(f"{arm.label} {printed[place]}" if len(same) > 1 else printed[place])
    return ", ".join(cells) or "–"


def cost_table(outcome: Outcome) -> dict[str, Any]:
    """Parameters, time a step, memory."""
    rows = []
    for arm, name in outcome.groups.items():
        seconds, memory = outcome.seconds_per_step(arm), outcome.peak_memory(arm)
        counts = {
            int(summary["parameters"])
            for (own, _), summary in outcome.setting.summaries.items()
            if own == arm and summary.get("parameters")
        }
        rows.append(
            (
                name,
                ", ".join(f"{count:,}" for count in sorted(counts)) or "–",
                "–" if seconds is None else f"{1000 * seconds:.0f} ms",
                "–" if memory is None else f"{memory:.0f} MiB",
            )
        )
    return {"columns": ("", "parameters", "a step", "peak memory"), "rows": rows}


def spectrum_table(outcome: Outcome) -> dict[str, Any] | None:
    """Median condition number and effective rank, and β, in the first and the last epoch."""
    rows = []
    for arm, label in outcome.groups.items():
        per_seed = [
            outcome.by_epoch(arm, seed) for own, seed in outcome.setting.cells if own == arm
        ]
        row = [label]
        for name in (*SPECTRA, "smoothness"):
            ends = []
            for place in (min, max):
                values = [
                    series[name][place(series[name])] for series in per_seed if series.get(name)
                ]
                ends.append(_figure(geometric_mean(values)) if values else "–")
            row.append(" → ".join(ends) if set(ends) != {"–"} else "–")
        rows.append(row)
    if all(set(row[1:]) == {"–"} for row in rows):
        return None
    columns = (
        "first → last epoch",
        "condition number, range of the features",
        "condition number, the paper's way",
        "effective rank",
        "β-smoothness",
    )
    return {"columns": columns, "rows": rows}


def _figure(value: float) -> str:
    # Condition numbers beyond this are of rounding errors in place of zeros.
    return f"{value:.3g}" if value < 1 / torch.finfo(torch.float64).eps else "singular"


def _interval(values: Sequence[float]) -> str:
    mean, low, high = mean_and_interval(values)
    if mean is None:
        return "–"
    return f"{mean:+.2f}" if low is None else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
