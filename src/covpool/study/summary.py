"""A study's summary: its tables, and answers with their intervals."""

from collections.abc import Mapping

from covpool.reproduce.arms import ACCURATE, NEWTON_SCHULZ, Arm
from covpool.reproduce.observations import Claim
from covpool.reproduce.results import differences, mean_over
from covpool.reproduce.sheet import Sheet, Table
from covpool.study.outcome import Outcome
from covpool.study.tables import (
    accuracy_table,
    cost_table,
    rate_warnings,
    rates_table,
    seeds_table,
    spectrum_table,
)


def make_sheet(outcome: Outcome, scale: str) -> Sheet:
    """The study's summary."""
    study, setting = outcome.study, outcome.setting
    claims = answers(outcome)
    tables = [
        Table(heading="Accuracies", **accuracy_table(outcome)),
        Table(heading="Seeds", **seeds_table(outcome)),
        Table(heading="Rates", **rates_table(outcome)),
        Table(heading="Cost", **cost_table(outcome)),
    ]
    if spectra := spectrum_table(outcome):
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
            "seeds; runs that diverged are in no mean, which flatters ways to train that diverge.",
            "Differences are paired by seed, over the seeds that both have, with their 95% "
            "interval by Student's t. An interval is of the seeds alone: the test images and the "
            "chosen rates are the same for all of them, and another choice of either is not in "
            "it. One that holds zero does not show that two ways are equal. Intervals are each for "
            "themselves: of twenty, about one lacks zero where there is no difference at all, and "
            f"{len(claims)} questions are asked. The numbers of seeds that a narrower interval "
            "would need are rough, as is a standard deviation from a few seeds.",
            "Rates were chosen by the accuracy of the last epoch on held-out training images; "
            "hybrid training has the rate of Newton-Schulz, whose training it is until the last "
            "decay. The test split was not used for it. All other options are the same for all.",
            *rate_warnings(outcome),
            "Time a step is of one run with its share of the cores, evaluation left out, probes "
            "included. Peak memory without a GPU is of the whole process, which may have trained "
            "other runs before.",
        ],
        problems=setting.problems(setting.arms),
    )


def answers(outcome: Outcome) -> list[tuple[str, Claim]]:
    """The questions that the arms can answer, each with a difference that is above zero for yes."""
    setting, arms = outcome.setting, outcome.arms
    final = {arm: setting.accuracies(arm, "final") for arm in arms}
    asked: list[tuple[str, Claim]] = []

    def ask(question: str, left: Mapping[int, float], right: Mapping[int, float]) -> None:
        pairs = differences(left, right)
        asked.append((question, Claim(text=question, pairs=pairs)))

    gap, matched = Arm("gap"), Arm("gap", matched=True)
    exact, trunk = Arm("exact"), Arm(NEWTON_SCHULZ)
    alone = [arm for arm in arms if arm.method != "gap" and not arm.hybrid]
    for baseline in (gap, matched):
        for arm in alone if baseline in final else ():
            ask(f"does {arm.label} beat {baseline.label}?", final[arm], final[baseline])
    if matched in final and gap in final:
        ask("does gap-matched beat gap?", final[matched], final[gap])
    for arm in alone if exact in final else ():
        if arm not in (exact, trunk):  # whose difference is told with the paper's sign below
            ask(f"does exact beat {arm.label}, standalone?", final[exact], final[arm])
    for arm in (Arm(ACCURATE), exact):
        if arm in final and trunk in final:
            ask(f"is {trunk.label} better than {arm.label}?", final[trunk], final[arm])
    pairs = [(arm, Arm(arm.method)) for arm in arms if arm.hybrid and Arm(arm.method) in final]
    for both, standalone in pairs:
        ask(f"does hybrid training help {standalone.label}?", final[both], final[standalone])
    if len(pairs) > 1:
        names = ", ".join(own.label for _, own in pairs)
        ask(
            f"does hybrid training help, in the mean over {names}?",
            mean_over([final[both] for both, _ in pairs]),
            mean_over([final[own] for _, own in pairs]),
        )
    return asked
