"""What a study came to: a line for each run, tables, and answers with their intervals."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covpool.analysis.records import QUANTILES, plain
from covpool.report.paper import accuracies
from covpool.reproduce import measured
from covpool.reproduce.arms import ACCURATE, NEWTON_SCHULZ, Arm
from covpool.reproduce.observations import Claim
from covpool.reproduce.results import Setting, differences, geometric_mean, mean_over
from covpool.reproduce.sheet import Sheet, Table
from covpool.study.design import Study
from covpool.study.phases import tuned_as
from covpool.train.comparison import mean_and_interval
from covpool.train.run_directory import Row, replace_text
from covpool.train.sampling import steps_and_batch

RUN_LINES = "runs.jsonl"

SPECTRA = {
    "condition_number": ("of_features", "condition_number_of_range"),
    "condition_number_as_in_the_paper": measured.PAPERS_WAY,
    "effective_rank": ("of_features", "effective_rank"),
}
"""What is kept of the conditioning by epoch, and where a row of the probe has it."""

PLACES = {"table4": (0, 1), "table5": (2, 2)}
"""Which of `paper.COLUMNS` stand beside standalone and hybrid training."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The runs that count, and the rates that they were trained with."""

    study: Study
    setting: Setting
    rates: Mapping[str, Mapping[str, Any]]
    train_images: int

    @property
    def arms(self) -> list[Arm]:
        """In the order of the study."""
        return [arm for arm in self.study.arms if arm in self.setting.arms]

    def rate(self, arm: Arm) -> float:
        """The arm's learning rate."""
        return float(self.rates[tuned_as(arm).label]["rate"])

    def seconds_per_step(self, arm: Arm) -> float | None:
        """The median over the epochs that the arm's own method trained, of all seeds."""
        steps = steps_and_batch(self.train_images, self.study.config.data.batch_size)[0]
        seconds = [
            row["seconds"] / steps
            for (own, seed) in self.setting.cells
            if own == arm
            for row in self.setting.history(arm, seed)
            if row["method"] == arm.method
        ]
        return statistics.median(seconds) if seconds else None

    def peak_memory(self, arm: Arm) -> float | None:
        """The median over seeds, in MiB."""
        found = [
            summary["peak_memory_bytes"] / 2**20
            for (own, _), summary in self.setting.summaries.items()
            if own == arm and summary.get("peak_memory_bytes")
        ]
        return statistics.median(found) if found else None

    def lines(self) -> Iterator[Row]:
        """A run each: what it was, what it came to, on what machine, its spectra by epoch."""
        for (arm, seed), summary in self.setting.summaries.items():
            yield {
                "study": self.study.name,
                "arm": arm.label,
                "method": arm.method,
                "protocol": arm.protocol,
                "seed": seed,
                "learning_rate": self.rate(arm),
                **summary,
                "by_epoch": self.by_epoch(arm, seed),
            }

    def by_epoch(self, arm: Arm, seed: int) -> dict[str, dict[int, float]]:
        """Condition number, effective rank and smoothness: the geometric mean over an epoch's
        measurements (of the median over samples)."""
        median = QUANTILES.index(0.5)
        found: dict[str, dict[int, list[float]]] = {}
        for row in self.setting.measured(arm, "conditioning").get(seed, []):
            for name, (way, figure) in SPECTRA.items():
                value = float(row[way][figure]["quantiles"][median])
                found.setdefault(name, {}).setdefault(row["epoch"], []).append(value)
        for row in self.setting.measured(arm, "smoothness").get(seed, []):
            found.setdefault("smoothness", {}).setdefault(row["epoch"], []).append(
                float(row["smoothness"])
            )
        return {
            name: {epoch: geometric_mean(values) for epoch, values in own.items()}
            for name, own in found.items()
        }


def write_lines(outcome: Outcome, folder: Path) -> None:
    """Write runs.jsonl."""
    text = "".join(
        json.dumps(plain(line), allow_nan=False, ensure_ascii=False) + "\n"
        for line in outcome.lines()
    )
    replace_text(folder / RUN_LINES, text)


def make_sheet(outcome: Outcome, scale: str) -> Sheet:
    """The study's summary."""
    study, setting = outcome.study, outcome.setting
    claims = answers(outcome)
    tables = [
        Table(heading="Accuracies", **accuracy_table(outcome)),
        Table(heading="Cost", **cost_table(outcome)),
    ]
    if spectra := spectrum_rows(outcome):
        tables.append(Table(heading="Spectra and smoothness", **spectra))
    tables.append(
        Table(
            heading="Questions",
            columns=("question", "here", "from"),
            rows=[
                (question, claim.verdict, claim.describe().removeprefix(f"{claim.text}: "))
                for question, claim in claims
            ],
        )
    )
    reduced = [f"Reduced: {study.reduced}"] if study.reduced else []
    return Sheet(
        name="summary",
        title=study.title,
        scale=scale,
        paper_scale=False,
        tables=tables,
        data={
            "study": study.name,
            "rates": outcome.rates,
            "claims": [{"question": question, **claim.to_dict()} for question, claim in claims],
        },
        notes=[
            *reduced,
            "Top-1 accuracy on the test split, in percent: Final of the last epoch; Best of the "
            "best epoch on the test split itself, so it flatters. Mean ± standard deviation over "
            "seeds. Differences are paired by seed, with their 95% interval by Student's t, each "
            "for itself and not corrected for their number. An interval that holds zero does not "
            "show that two ways are equal.",
            "Rates were chosen by the accuracy of the last epoch on held-out training images, "
            f"from {', '.join(f'{rate:g}' for rate in study.rates)} for each arm alike; hybrid "
            "training has the rate of Newton-Schulz, whose training it is until the last decay. "
            "The test split was not used for it.",
            "Time a step is of one run with its share of the cores, evaluation left out, probes "
            "included. Peak memory without a GPU is of the whole process.",
        ],
        problems=setting.problems(setting.arms),
    )


def accuracy_table(outcome: Outcome) -> dict[str, Any]:
    """Final and Best, and Final's differences to the references."""
    study, setting = outcome.study, outcome.setting
    beside = PLACES.get(study.stands_for)
    rows = []
    for arm in outcome.arms:
        final = setting.accuracies(arm, "final")
        row = [arm.label, f"{outcome.rate(arm):g}", setting.spread(arm, final)]
        row.append(setting.spread(arm, setting.accuracies(arm, "best")))
        for reference in study.references:
            pairs = differences(final, setting.accuracies(reference, "final"))
            row.append("–" if arm == reference else _interval([*pairs.values()]))
        if beside:
            printed = accuracies(_paper_name(arm))
            row.append("–" if printed is None else printed[beside[arm.hybrid]])
        rows.append(row)
    columns = ["", "rate", "Final", "Best"]
    columns += [f"Final − {reference.label}" for reference in study.references]
    if beside:
        columns.append(
            "the paper, ImageNet, ResNet-50"
            if study.stands_for == "table4"
            else "the paper, Birds, Final / Best (standalone)"
        )
    return {"columns": columns, "rows": rows}


def _paper_name(arm: Arm) -> str | None:
    from covpool.linalg.methods import METHODS

    row = METHODS.get(arm.method)
    return row.paper_name if row else None


def cost_table(outcome: Outcome) -> dict[str, Any]:
    """Parameters, time a step, memory."""
    rows = []
    for arm in outcome.arms:
        seconds, memory = outcome.seconds_per_step(arm), outcome.peak_memory(arm)
        counts = {
            int(summary["parameters"])
            for (own, _), summary in outcome.setting.summaries.items()
            if own == arm and summary.get("parameters")
        }
        rows.append(
            (
                arm.label,
                ", ".join(f"{count / 1e6:.2f} M" for count in sorted(counts)) or "–",
                "–" if seconds is None else f"{1000 * seconds:.0f} ms",
                "–" if memory is None else f"{memory:.0f} MiB",
            )
        )
    return {"columns": ("", "parameters", "a step", "peak memory"), "rows": rows}


def spectrum_rows(outcome: Outcome) -> dict[str, Any] | None:
    """Median condition number and effective rank, and β, in the first and the last epoch."""
    rows = []
    for arm in outcome.arms:
        per_seed = [
            outcome.by_epoch(arm, seed) for own, seed in outcome.setting.cells if own == arm
        ]
        row = [arm.label]
        for name in (*SPECTRA, "smoothness"):
            ends = []
            for place in (min, max):
                values = [
                    series[name][place(series[name])] for series in per_seed if series.get(name)
                ]
                ends.append(f"{geometric_mean(values):.3g}" if values else "–")
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


def _interval(values: Sequence[float]) -> str:
    mean, low, high = mean_and_interval(values)
    if mean is None:
        return "–"
    return f"{mean:+.2f}" if low is None else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def answers(outcome: Outcome) -> list[tuple[str, Claim]]:
    """The questions that the arms can answer, each with a difference that is above zero for yes."""
    setting, arms = outcome.setting, outcome.arms
    final = {arm: setting.accuracies(arm, "final") for arm in arms}
    asked: list[tuple[str, Claim]] = []

    def ask(question: str, left: Mapping[int, float], right: Mapping[int, float]) -> None:
        pairs = differences(left, right)
        asked.append((question, Claim(text=question, pairs=pairs)))

    gap, exact, trunk = Arm("gap"), Arm("exact"), Arm(NEWTON_SCHULZ)
    alone = [arm for arm in arms if arm.method != "gap" and not arm.hybrid]
    for baseline in (gap, Arm("gap", matched=True)):
        for arm in alone if baseline in final else ():
            ask(f"does {arm.label} beat {baseline.label}?", final[arm], final[baseline])
    for arm in alone if exact in final else ():
        if arm != exact:
            ask(f"does exact beat {arm.label}, standalone?", final[exact], final[arm])
    for arm in (Arm(ACCURATE), exact):
        if arm in final and trunk in final:
            ask(f"is {trunk.label} better than {arm.label}?", final[trunk], final[arm])
    pairs = [(arm, Arm(arm.method)) for arm in arms if arm.hybrid and Arm(arm.method) in final]
    for both, standalone in pairs:
        ask(f"does hybrid training help {standalone.label}?", final[both], final[standalone])
    if len(pairs) > 1:
        ask(
            "does hybrid training help, in the mean over these methods?",
            mean_over([final[both] for both, _ in pairs]),
            mean_over([final[own] for _, own in pairs]),
        )
    return asked
