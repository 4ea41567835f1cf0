"""The summary of a study or a comparison: every difference with its interval, and the tables."""

import math
from statistics import fmean

from covpool.experiments.arms import Arm
from covpool.experiments.figures import forest
from covpool.experiments.inference import differences, mean_over
from covpool.experiments.observations import Claim
from covpool.experiments.outcome import Outcome
from covpool.experiments.sheet import Sheet, notes
from covpool.experiments.study_tables import (
    accuracy_table,
    cost_table,
    differences_table,
    doubtful_rates,
    rates_table,
    spectrum_table,
)


def make_sheet(outcome: Outcome, name: str = "summary") -> Sheet:
    """The summary, in files of that name."""
    study, runs, arms = outcome.study, outcome.runs, outcome.arms
    at_edge, alone, different_rates = doubtful_rates(outcome)
    differences_found, claims = differences_table(compared(outcome))
    tables = [
        accuracy_table(outcome),
        differences_found,
        rates_table(outcome),
        spectrum_table(outcome),
        cost_table(outcome),
    ]
    return Sheet(
        name=name,
        title=study.title,
        scale=runs.about,
        lead=notes(
            "reservations",
            study=study,
            not_run=outcome.not_run,
            same=[name for name in outcome.groups.values() if " / " in name],
            at_edge=at_edge,
            alone=alone,
            different_rates=different_rates,
        ),
        tables=[table for table in tables if table.rows],
        data={
            "study": study.name,
            "config": study.config.to_dict(),
            "rates": outcome.rates,
            "the_same": list(outcome.groups.values()),
            "claims": claims,
            "runs": [
                {"arm": run.arm.label, "seed": run.seed, "path": run.path.name}
                for run in runs.runs.values()
            ],
        },
        notes=notes(
            "summary",
            split=study.config.data.evaluated_split,
            questions=len(claims),
            errors=_standard_errors(outcome),
            tuned=bool(study.rates),
            hybrid=any(arm.hybrid for arm in arms),
            averages=any(arm.matched or arm.reduced for arm in arms),
            probes=tables[3].rows,
        ),
        problems=runs.problems(runs.arms),
        figure=forest(outcome),
    )


def compared(outcome: Outcome) -> list[Claim]:
    """Each way to train beside each reference, and hybrid training beside standalone, each pair
    once."""
    names = outcome.groups
    final = {arm: outcome.final(arm) for arm in names}
    pairs: dict[frozenset[Arm], tuple[Arm, Arm]] = {}
    for reference in map(outcome.representative, outcome.study.references):
        if reference is not None:
            for arm in names:
                pairs.setdefault(frozenset((arm, reference)), (arm, reference))
    hybrids = [
        (arm, alone)
        for arm in names
        if arm.hybrid and (alone := outcome.representative(Arm(arm.method))) is not None
    ]
    for both in hybrids:
        pairs.setdefault(frozenset(both), both)
    claims = [
        Claim(text=f"{names[one]} − {names[other]}", pairs=differences(final[one], final[other]))
        for one, other in pairs.values()
        if one != other
    ]
    if len(hybrids) > 1:
        means = (mean_over([final[arm] for arm in own]) for own in zip(*hybrids, strict=True))
        methods = ", ".join(names[alone] for _, alone in hybrids)
        text = f"hybrid − standalone, mean over {methods}"
        claims.append(Claim(text=text, pairs=differences(*means)))
    return claims


def _standard_errors(outcome: Outcome) -> dict[str, float]:
    """What the number of test and of held-out images alone leaves of an accuracy, in points; empty
    where no run has finished."""
    means = [fmean(values.values()) for arm in outcome.arms if (values := outcome.final(arm))]
    if not means:
        return {}
    share = fmean(means) / 100
    held_out = outcome.study.config.data.validation_fraction * outcome.train_images
    test, validation = (
        100 * math.sqrt(share * (1 - share) / images) for images in (outcome.test_images, held_out)
    )
    return {"test": test, "validation": validation, "held_out": held_out}
