"""What a probe came to: every pooling beside the averages, with paired intervals."""

from collections.abc import Sequence

from covpool.experiments.arms import Arm
from covpool.experiments.figures import forest
from covpool.experiments.frozen.features import stage_name
from covpool.experiments.frozen.heads import LENGTH
from covpool.experiments.frozen.plan import MATCHED, REDUCED, REDUCED_MATCHED, Frozen
from covpool.experiments.inference import differences
from covpool.experiments.observations import Claim
from covpool.experiments.outcome import Outcome
from covpool.experiments.sheet import Sheet, Table, notes
from covpool.experiments.study_tables import (
    accuracy_table,
    differences_table,
    doubtful_rates,
    rates_table,
)

AVERAGES = (MATCHED, REDUCED, REDUCED_MATCHED)
"""With as many parameters as a covariance's head, with its reduction, and with both."""


def make_sheet(outcome: Outcome, frozen: Frozen) -> Sheet:
    """The summary: is each pooling above the references, accuracies, trials, costs, and a forest of
    the differences."""
    study, runs, names = outcome.study, outcome.runs, outcome.groups
    references = list(dict.fromkeys(outcome.representative(arm) or arm for arm in study.references))
    averages = [outcome.representative(arm) or arm for arm in AVERAGES]
    claims = [
        Claim(
            text=f"{names[arm]} − {names[other]}",
            pairs=differences(outcome.final(arm), outcome.final(other)),
        )
        for other in references
        for arm in names
        if arm not in (*averages, other) and other in names
    ]
    differences_found, numbers = differences_table(claims)
    tables = [
        differences_found,
        accuracy_table(outcome),
        rates_table(outcome),
        cost_table(outcome),
    ]
    at_edge, alone, _ = doubtful_rates(outcome)
    trials = {len(outcome.rates[arm.label]["trials"]) for arm in outcome.arms}
    return Sheet(
        name="summary",
        title=study.title,
        scale=runs.about,
        lead=notes(
            "probe_reservations",
            at_edge=at_edge,
            alone=alone,
            same=[name for name in names.values() if " / " in name],
        ),
        tables=[table for table in tables if table.rows],
        data={
            "study": study.name,
            "rates": outcome.rates,
            "the_same": list(names.values()),
            "claims": numbers,
        },
        notes=notes(
            "probe",
            stage=stage_name(frozen.features.stage),
            shared=frozen.reduction is not None,
            length=f"{LENGTH:g}",
            trials=" or ".join(map(str, sorted(trials)))
            + (" trial" if trials == {1} else " trials"),
            questions=len(claims),
        ),
        problems=runs.problems(runs.arms),
        figure=forest(outcome),
    )


def cost_table(outcome: Outcome) -> Table:
    """Parameters of the head, and seconds of a run."""
    rows = []
    for arm, name in outcome.groups.items():
        found = list(outcome.runs.finished(arm).values())
        if found:
            seconds = sum(summary["seconds"] for summary in found) / len(found)
            rows.append((name, f"{found[0]['parameters']:,}", f"{seconds:.1f} s"))
    return Table(heading="Cost", columns=("", "parameters of the head", "a run"), rows=rows)


def reference_arms(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """What every pooling is compared with: averages, and the best known covariance."""
    root = Arm("isqrt-cov")
    return (*AVERAGES, *([root] if root in arms else []))
