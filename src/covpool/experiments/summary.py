"""A study's summary: answers with their intervals, and the tables behind them."""

import math
from statistics import fmean

from covpool.experiments.arms import ACCURATE, BASELINES, TRUNK, Arm
from covpool.experiments.figures import accuracy_dots, by_epoch
from covpool.experiments.inference import BySeed, differences, holm, mean_over, p_value
from covpool.experiments.observations import Claim
from covpool.experiments.outcome import Outcome
from covpool.experiments.sheet import Sheet, Table, notes
from covpool.experiments.study_tables import (
    accuracy_table,
    cost_table,
    doubtful_rates,
    rates_table,
    seeds_table,
    spectrum_table,
)


def make_sheet(outcome: Outcome) -> Sheet:
    """The study's summary."""
    study, runs = outcome.study, outcome.runs
    at_edge, alone, different_rates = doubtful_rates(outcome)
    claims = answers(outcome)
    adjusted = holm([p_value([*claim.pairs.values()]) for _, claim in claims])
    questions = [
        (question, claim.verdict, claim.told(), "–" if p is None else f"{p:.2g}")
        for (question, claim), p in zip(claims, adjusted, strict=True)
    ]
    asked = ("question", "here", "difference of Final [95%]", "p, by Holm of all questions")
    tables = [
        Table(heading="Questions", columns=asked, rows=questions),
        accuracy_table(outcome),
        rates_table(outcome),
        spectrum_table(outcome),
        cost_table(outcome),
        seeds_table(outcome),
    ]
    return Sheet(
        name="summary",
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
            "rates": outcome.rates,
            "the_same": list(outcome.groups.values()),
            "claims": [
                {"question": question, **claim.to_dict(), "p_by_holm": p}
                for (question, claim), p in zip(claims, adjusted, strict=True)
            ],
        },
        notes=notes("summary", questions=len(claims), errors=_standard_errors(outcome)),
        problems=runs.problems(runs.arms),
        figure=accuracy_dots(outcome),
        more_figures={"epochs": by_epoch(outcome)},
    )


def answers(outcome: Outcome) -> list[tuple[str, Claim]]:
    """The questions that the arms can answer, each with a difference that is above zero for yes."""
    names = outcome.groups
    final = {arm: outcome.final(arm) for arm in names}
    asked: list[tuple[str, Claim]] = []

    def ask(question: str, left: BySeed, right: BySeed) -> None:
        asked.append((question, Claim(text=question, pairs=differences(left, right))))

    exact, trunk, accurate = map(outcome.representative, (Arm("exact"), TRUNK, Arm(ACCURATE)))
    gap = Arm("gap")
    alone = [arm for arm in names if arm.method != "gap" and not arm.hybrid]
    for baseline in BASELINES:
        for arm in alone if baseline in final else ():
            ask(f"does {names[arm]} beat {names[baseline]}?", final[arm], final[baseline])
    for arm in BASELINES[1:]:
        if arm in final and gap in final:
            ask(f"does {names[arm]} beat gap?", final[arm], final[gap])
    if exact is not None:
        for arm in alone:
            if arm not in (exact, trunk):  # whose difference is told with the paper's sign below
                question = f"does {names[exact]} beat {names[arm]}, standalone?"
                ask(question, final[exact], final[arm])
    for arm in dict.fromkeys((accurate, exact)):
        if arm is not None and trunk is not None and arm != trunk:
            ask(f"is {names[trunk]} better than {names[arm]}?", final[trunk], final[arm])
    pairs = [
        (arm, own)
        for arm in names
        if arm.hybrid and (own := outcome.representative(Arm(arm.method))) is not None
    ]
    for both, own in pairs:
        rates = outcome.rate(both), outcome.rate(own)
        at = "" if rates[0] == rates[1] else f" (rate {rates[0]:g} for {rates[1]:g})"
        ask(f"does hybrid training help {names[own]}?{at}", final[both], final[own])
    if len(pairs) > 1:
        ask(
            f"does hybrid training help, in the mean over {', '.join(names[o] for _, o in pairs)}?",
            mean_over([final[both] for both, _ in pairs]),
            mean_over([final[own] for _, own in pairs]),
        )
    return asked


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
