"""The tables of a summary."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from covpool.experiments.inference import geometric_mean, holm, p_value, seeds_needed
from covpool.experiments.observations import Claim
from covpool.experiments.outcome import MEASURED, Outcome
from covpool.experiments.sheet import Table

HALF_WIDTHS = (0.5, 1.0)
"""Of intervals, in points of percent, that the summary says the number of seeds for."""

EQUAL = "all rates are equal here"
"""The remark where accuracies say nothing about rates beyond those that were tried."""


def accuracy_table(outcome: Outcome) -> Table:
    """Final and Best of each way to train."""
    rows = []
    for arm, name in outcome.groups.items():
        final, best = outcome.final(arm), outcome.runs.accuracies(arm, "best")
        accuracies = (outcome.runs.spread(arm, values) for values in (final, best))
        rows.append((name, f"{outcome.rate(arm):g}", str(len(final)), *accuracies))
    columns = ("", "rate", "seeds", "Final, mean ± deviation", "Best, mean ± deviation")
    return Table(heading="Accuracies", columns=columns, rows=rows)


def differences_table(claims: Sequence[Claim]) -> tuple[Table, list[dict[str, Any]]]:
    """Each difference with its interval, its p adjusted for the number of them, how far it scatters
    over seeds, and how many of these a narrower interval would take; the same as numbers."""
    series = [[*claim.pairs.values()] for claim in claims]
    adjusted = holm([p_value(pairs) for pairs in series])
    words = [*map(_above_zero, claims)]
    rows = []
    for claim, word, pairs, p in zip(claims, words, series, adjusted, strict=True):
        needed = [seeds_needed(pairs, half) for half in HALF_WIDTHS]
        deviation = claim.spread.deviation
        rows.append(
            (
                claim.text,
                word,
                claim.told(),
                "–" if p is None else f"{p:.2g}",
                "–" if deviation is None else f"{deviation:.2f}",
                *("–" if number is None else str(number) for number in needed),
            )
        )
    columns = (
        *("difference", "above zero", "of Final [95%]", "p, by Holm of all of these"),
        *("deviation", *(f"seeds for ±{half:g} points" for half in HALF_WIDTHS)),
    )
    data = [
        {**claim.to_dict(), "verdict": word, "p_by_holm": p}
        for claim, word, p in zip(claims, words, adjusted, strict=True)
    ]
    return Table(heading="Differences", columns=columns, rows=rows), data


def _above_zero(claim: Claim) -> str:
    """Whether a difference is, in a word: there is no paper here that its sign would oppose."""
    if len(claim.pairs) > 1 and not any(claim.pairs.values()):
        return "the same"
    return "below" if claim.spread.sign == -1 else claim.verdict


def rates_table(outcome: Outcome) -> Table:
    """Validation accuracy by rate, and by decay where several were tried, what was taken, and
    whether the rates went far enough; no rows where nothing was tried."""
    chosen = _chosen(outcome)
    tops = {label: _trials(own) for label, own in chosen.items()}
    tried = sorted({pair for own in tops.values() for pair in own})
    rows = [
        [
            label,
            *(_validation(tops[label], pair) for pair in tried),
            _pair((own["rate"], own["weight_decay"]) if "trials" in own else (own["rate"],)),
            _at_edge(own) or "–",
        ]
        for label, own in chosen.items()
        if tried
    ]
    what = "rate, decay" if any(len(pair) > 1 for pair in tried) else "rate"
    columns = [f"validation top-1 at {what}", *map(_pair, tried), "taken", "remark"]
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


def _trials(chosen: Mapping[str, Any]) -> dict[tuple[float, ...], float | None]:
    """Validation accuracies by rate, or by rate and decay."""
    if "trials" in chosen:
        return {(t["rate"], t["weight_decay"]): t["validation_top1"] for t in chosen["trials"]}
    return {(float(rate),): top1 for rate, top1 in chosen["validation_top1"].items()}


def _pair(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _validation(tops: Mapping[tuple[float, ...], float | None], pair: tuple[float, ...]) -> str:
    top1 = tops.get(pair, math.nan)
    return "diverged" if top1 is None else "not tried" if math.isnan(top1) else f"{top1:.2f}"


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
        for name in MEASURED:
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
