"""The tables of a study's summary."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from covpool.experiments.arms import Arm
from covpool.experiments.inference import (
    Spread,
    differences,
    geometric_mean,
    prediction_interval,
    seeds_needed,
)
from covpool.experiments.outcome import SPECTRA, Outcome
from covpool.experiments.paper import accuracies, printed_name
from covpool.experiments.sheet import Table
from covpool.text import quantity

HALF_WIDTHS = (0.5, 1.0)
"""Of intervals, in points of percent, that the summary says the number of seeds for."""

EQUAL = "all rates are equal here"
"""The remark where accuracies say nothing about rates beyond those that were tried."""

PLACES: Mapping[str, tuple[int, int | None]] = {"table4": (0, 1), "table5": (2, None)}
"""Which of `paper.COLUMNS` stand beside standalone and hybrid training; None: none does."""


def accuracy_table(outcome: Outcome) -> Table:
    """Final and Best, and Final's differences to the references."""
    study, runs = outcome.study, outcome.runs
    beside = PLACES.get(study.stands_for)
    rows = []
    for arm, name in outcome.groups.items():
        final = outcome.final(arm)
        row = [name, f"{outcome.rate(arm):g}", str(len(final)), runs.spread(arm, final)]
        row.append(runs.spread(arm, runs.accuracies(arm, "best")))
        for reference in study.references:
            pairs = differences(final, outcome.final(reference))
            itself = outcome.representative(reference) == arm
            row.append("–" if itself else Spread.of(pairs).interval_text())
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
    return Table(heading="Accuracies", columns=columns, rows=rows)


def seeds_table(outcome: Outcome) -> Table:
    """How far the differences scatter, and the seeds that a narrower interval would take."""
    rows, listed = [], set[frozenset[Arm]]()
    for reference in outcome.study.references:
        base = outcome.final(reference)
        for arm, name in outcome.groups.items():
            pairs = [*differences(outcome.final(arm), base).values()]
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
    return Table(heading="Seeds", columns=columns, rows=rows)


def rates_table(outcome: Outcome) -> Table:
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
    return Table(heading="Rates", columns=columns, rows=rows)


def doubtful_rates(outcome: Outcome) -> tuple[list[str], list[str], bool]:
    """Arms whose rate is at the edge of what was tried, those that no other rate was tried of, and
    whether not all were tried with the same rates."""
    chosen = _chosen(outcome)
    remarks = {label: _at_edge(own) for label, own in chosen.items()}
    alone = [label for label, own in chosen.items() if len(_tried(own)) < 2]
    at_edge = [
        label
        for label, remark in remarks.items()
        if label not in alone and remark not in ("", EQUAL)
    ]
    return at_edge, alone, len({frozenset(_tried(own)) for own in chosen.values()}) > 1


def _chosen(outcome: Outcome) -> dict[str, Mapping[str, Any]]:
    labels = dict.fromkeys(arm.tuned_as.label for arm in outcome.arms)
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
    if len(set(chosen["validation_top1"].values())) == 1:
        return EQUAL
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
        printed = accuracies(printed_name(arm.method))
        if printed is not None:
            cells.append(f"{arm.label} {printed[place]}" if len(same) > 1 else printed[place])
    return ", ".join(cells) or "–"


def cost_table(outcome: Outcome) -> Table:
    """Parameters, time a step, memory."""
    rows = []
    for arm, name in outcome.groups.items():
        seconds, memory = outcome.seconds_per_step(arm), outcome.peak_memory(arm)
        counts = {
            int(summary["parameters"])
            for (own, _), summary in outcome.runs.summaries.items()
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
    columns = ("", "parameters", "a step", "peak memory")
    return Table(heading="Cost", columns=columns, rows=rows)


def spectrum_table(outcome: Outcome) -> Table:
    """Median condition number and effective rank, and β, in the first and the last epoch."""
    rows = []
    for arm, label in outcome.groups.items():
        per_seed = [outcome.by_epoch(arm, seed) for own, seed in outcome.runs.runs if own == arm]
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
        rows = []
    columns = (
        "first → last epoch",
        "condition number, range of the features",
        "condition number, the paper's way",
        "effective rank",
        "β-smoothness",
    )
    return Table(heading="Spectra and smoothness", columns=columns, rows=rows)


def _figure(value: float) -> str:
    # Condition numbers beyond this are of rounding errors in place of zeros.
    return f"{value:.3g}" if value < 1 / torch.finfo(torch.float64).eps else "singular"


def reproduction_table(outcome: Outcome, earlier: Sequence[Mapping[str, Any]]) -> Table:
    """Each arm's mean beside the interval that an earlier study's runs predict for it."""
    rows = []
    for arm in outcome.arms:
        before = {
            line["seed"]: (line["learning_rate"], 100 * line["final"]["test_top1"])
            for line in earlier
            if line["arm"] == arm.label and line["status"] == "finished"
        }
        now = outcome.final(arm)
        values = [accuracy for _, accuracy in before.values()]
        expected = prediction_interval(values, len(now)) if now else None
        mean = statistics.fmean(now.values()) if now else None
        verdict = "not measured"
        if mean is not None and expected is not None:
            verdict = "within" if expected[0] <= mean <= expected[1] else "outside"
        remarks = []
        if again := sorted(set(now) & set(before)):
            same = all(abs(now[seed] - before[seed][1]) < 1e-9 for seed in again)
            seeds = ", ".join(map(str, again))
            remarks.append(f"seed {seeds} again, {'equal' if same else 'not equal'}")
        if other := {rate for rate, _ in before.values()} - {outcome.rate(arm)}:
            remarks.append(f"trained at {', '.join(f'{rate:g}' for rate in sorted(other))} there")
        rows.append(
            (
                arm.label,
                f"{statistics.fmean(values):.2f}, {quantity(len(values), 'seed')}"
                if values
                else "–",
                f"{expected[0]:.2f} to {expected[1]:.2f}" if expected else "–",
                f"{mean:.2f}, seed {', '.join(map(str, now))}" if mean is not None else "–",
                verdict,
                "; ".join(remarks) or "–",
            )
        )
    columns = ("", "Final there", "95% of new runs", "Final here", "", "remark")
    return Table(heading="Against earlier runs", columns=columns, rows=rows)
