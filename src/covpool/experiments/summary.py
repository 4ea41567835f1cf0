"""A study's summary: answers with their intervals, and the tables behind them."""

import math
from statistics import fmean

from covpool.experiments.arms import ACCURATE, BASELINES, TRUNK, Arm
from covpool.experiments.figures import accuracy_dots, by_epoch
from covpool.experiments.inference import BySeed, differences, holm, mean_over, p_value
from covpool.experiments.observations import Claim
from covpool.experiments.outcome import Outcome
from covpool.experiments.sheet import Sheet, Table
from covpool.experiments.study_tables import (
    accuracy_table,
    cost_table,
    rate_warnings,
    rates_table,
    seeds_table,
    spectrum_table,
)


def make_sheet(outcome: Outcome) -> Sheet:
    """The study's summary."""
    study, runs = outcome.study, outcome.runs
    claims = answers(outcome)
    adjusted = holm([p_value([*claim.pairs.values()]) for _, claim in claims])
    questions = [
        (question, claim.verdict, _told(claim), "–" if p is None else f"{p:.2g}")
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
        lead=[*_reservations(outcome), *rate_warnings(outcome)],
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
        notes=_notes(outcome, len(claims)),
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


def _told(claim: Claim) -> str:
    return claim.describe().removeprefix(f"{claim.text}: ")


def _reservations(outcome: Outcome) -> list[str]:
    """What has to be known before the figures are read."""
    study = outcome.study
    told = []
    if study.reduced:
        told.append(f"**Reduced:** {study.reduced}.")
    if outcome.not_run:
        told.append(f"**Not run, or not yet:** {', '.join(outcome.not_run)}.")
    if study.history:
        told.append(f"**How it came about:** {study.history}")
    same = [name for name in outcome.groups.values() if " / " in name]
    if same:
        told.append(
            f"**The same runs: {'; '.join(same)}.** Their losses are equal in every epoch, to the "
            "last digit: the kernels that tell these methods apart never came to bear, and "
            "nothing here says which is better. They are one line of every table."
        )
    return told


def _notes(outcome: Outcome, questions: int) -> list[str]:
    means = [fmean(values.values()) for arm in outcome.arms if (values := outcome.final(arm))]
    errors = ""
    if means:
        share = sum(means) / len(means) / 100
        held_out = outcome.study.config.data.validation_fraction * outcome.train_images
        test, validation = (
            100 * math.sqrt(share * (1 - share) / images)
            for images in (outcome.test_images, held_out)
        )
        errors = (
            f" By their number alone the test images leave a standard error of {test:.1f} points "
            f"to an accuracy (less to a difference, as all meet the same images), and the "
            f"{held_out:.0f} held-out ones {validation:.1f}: rates that are nearer to each other "
            "than that are not told apart by their trials."
        )
    return [
        "Top-1 accuracy on the test split, in percent: Final of the last epoch; Best of the best "
        "epoch on the test split itself, so it flatters. Deviation over seeds; runs that diverged "
        "are in no mean, which flatters ways to train that diverge.",
        "`hybrid-` is Newton-Schulz until the last decay of the rate and the method after it; "
        "`gap` average pooling of the backbone's features, `gap-matched` with a hidden layer and "
        "as many parameters in the head as covariance pooling, `gap-reduced` after the channel "
        "reduction that covariance pooling has.",
        "Differences are paired by seed, over the seeds that both have, with their 95% interval by "
        "Student's t. An interval is of the seeds alone: the test images and the chosen rates are "
        "the same for all of them, and another choice of either is not in it. One that holds zero "
        f"does not show that two ways are equal. Intervals are each for themselves: of {questions} "
        "questions about one in twenty would be answered by chance; p is adjusted for that. Seeds "
        "are few, so deviations, and the numbers of seeds that a narrower interval would need, "
        "are rough." + errors,
        "Rates were chosen by the accuracy of the last epoch on held-out training images; hybrid "
        "training has the rate of Newton-Schulz, whose training it is until the last decay, so "
        "that its difference to a standalone arm may be one of rates. The test split was not used "
        "for it. All options but rate, pooling and the head's layers are the same.",
        "β-smoothness is measured along steps of the arm's own rate and falls as that rises: "
        "between arms of different rates it tells the rates. The first measurement is of the "
        "weights as they were drawn or loaded.",
        "Time a step is of runs with their share of the cores, evaluation left out, probes "
        "included, on a machine that may have done other work: equal computations above differ by "
        "as much. Peak memory without a GPU is of the whole process, which may have trained other "
        "runs before.",
    ]
