"""What a probe came to: every pooling beside the averages, with paired intervals."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from covpool.experiments.arms import Arm
from covpool.experiments.frozen.features import stage_name
from covpool.experiments.frozen.heads import LENGTH
from covpool.experiments.frozen.plan import MATCHED, Frozen
from covpool.experiments.inference import Spread, differences, holm, p_value
from covpool.experiments.outcome import Outcome
from covpool.experiments.sheet import Sheet, Table
from covpool.experiments.study_tables import accuracy_table, rate_warnings, seeds_table


def make_sheet(outcome: Outcome, frozen: Frozen) -> Sheet:
    """The summary: questions of each reference, accuracies, rates, costs, a forest of
    differences."""
    study, runs = outcome.study, outcome.runs
    asked = [
        (arm, reference)
        for reference in study.references
        for arm in outcome.groups
        if arm not in study.references and outcome.final(arm) and outcome.final(reference)
    ]
    pairs = [differences(outcome.final(arm), outcome.final(other)) for arm, other in asked]
    adjusted = holm([p_value([*own.values()]) for own in pairs])
    rows, claims = [], []
    for (arm, reference), own, p in zip(asked, pairs, adjusted, strict=True):
        spread = Spread.of(own)
        question = f"is {outcome.groups[arm]} above {reference.label}?"
        verdict = _verdict(spread)
        told = "–" if p is None else f"{p:.2g}"
        rows.append((question, verdict, spread.interval_text(), told))
        claims.append(
            {
                "question": question,
                "verdict": verdict,
                "pairs": own,
                "difference": spread.mean,
                "low": spread.low,
                "high": spread.high,
                "p_by_holm": p,
            }
        )
    header = ("question", "here", "difference of Final [95%]", "p, by Holm of all questions")
    tables = [
        Table(heading="Questions", columns=header, rows=rows),
        accuracy_table(outcome),
        trials_table(outcome),
        cost_table(outcome),
        seeds_table(outcome),
    ]
    same = [name for name in outcome.groups.values() if " / " in name]
    lead = list(rate_warnings(outcome))
    if same:
        lead.append(
            f"**The same runs: {'; '.join(same)}.** They differ in their gradient alone, which "
            "nothing before the classifier takes here."
        )
    return Sheet(
        name="summary",
        title=study.title,
        scale=runs.about,
        lead=lead,
        tables=[table for table in tables if table.rows],
        data={
            "study": study.name,
            "rates": outcome.rates,
            "the_same": list(outcome.groups.values()),
            "claims": claims,
        },
        notes=notes(outcome, frozen, len(claims)),
        problems=runs.problems(runs.arms),
        figure=forest(outcome, study.references[0]),
    )


def _verdict(spread: Spread) -> str:
    if spread.low is None or spread.high is None:
        return "not measured" if spread.mean is None else "one seed says nothing"
    if spread.low > 0:
        return "yes"
    return "no, below" if spread.high < 0 else "not shown"


def trials_table(outcome: Outcome) -> Table:
    """Accuracy on the held-out images by rate and weight decay, and what was taken."""
    labels = [arm.label for arm in outcome.arms]
    tried = {
        (trial["rate"], trial["weight_decay"]): None
        for label in labels
        for trial in outcome.rates[label]["trials"]
    }
    rows = []
    for label in labels:
        chosen = outcome.rates[label]
        tops = {
            (trial["rate"], trial["weight_decay"]): trial["validation_top1"]
            for trial in chosen["trials"]
        }
        cells = ["diverged" if tops.get(pair) is None else f"{tops[pair]:.2f}" for pair in tried]
        rows.append([label, *cells, f"{chosen['rate']:g}", f"{chosen['weight_decay']:g}"])
    columns = [
        "validation top-1 at rate, decay",
        *(f"{rate:g}, {decay:g}" for rate, decay in tried),
        "rate taken",
        "decay taken",
    ]
    return Table(heading="Rates", columns=columns, rows=rows)


def cost_table(outcome: Outcome) -> Table:
    """Parameters of the head, and seconds of a run."""
    rows = []
    for arm, name in outcome.groups.items():
        found = list(outcome.runs.finished(arm).values())
        if found:
            seconds = sum(summary["seconds"] for summary in found) / len(found)
            rows.append((name, f"{found[0]['parameters']:,}", f"{seconds:.1f} s"))
    return Table(heading="Cost", columns=("", "parameters of the head", "a run"), rows=rows)


def forest(outcome: Outcome, reference: Arm) -> Figure:
    """Paired differences to the reference, the largest on top, with their 95% intervals."""
    base = outcome.final(reference)
    spreads = {
        name: Spread.of(differences(outcome.final(arm), base))
        for arm, name in outcome.groups.items()
        if arm != reference
    }
    drawn = sorted(
        (spread.mean, name) for name, spread in spreads.items() if spread.mean is not None
    )
    figure = Figure(figsize=(7, 0.9 + 0.26 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for place, (mean, name) in enumerate(drawn):
        spread = spreads[name]
        axes.plot([mean], [place], "o", color="C0", markersize=4)
        if spread.low is not None and spread.high is not None:
            axes.plot([spread.low, spread.high], [place] * 2, color="C0")
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(drawn)), [name for _, name in drawn], fontsize=8)
    axes.set_xlabel(f"top-1 accuracy above {reference.label}, points [95%]")
    axes.grid(axis="x", alpha=0.3)
    return figure


def notes(outcome: Outcome, frozen: Frozen, questions: int) -> Sequence[str]:
    """What has to be known beside the tables."""
    trials = {len(outcome.rates[arm.label]["trials"]) for arm in outcome.arms}
    reduction = (
        "All poolings but gap and gap-matched take the maps after one channel reduction, learned "
        "once from the training images with a classifier of mean and covariance, then held fixed: "
        "its choice is not in the intervals."
        if frozen.reduction is not None
        else "Each pooling learns its channel reduction, where it has one, with its head."
    )
    return [
        f"Heads on the features of a frozen backbone ({stage_name(frozen.features.stage)}); top-1 "
        "accuracy on the test split in percent: Final of the last epoch; Best of the best epoch on "
        "the test split itself, so it flatters.",
        f"{reduction} Vectors are centred and divided by one number, so that their root mean "
        f"square length is {LENGTH:g}: a pooling's scale decides nothing here.",
        f"Rate and weight decay of each were chosen by {' or '.join(map(str, sorted(trials)))} "
        "trials on held-out training images; the test split was not used for it.",
        "`gap` averages the backbone's features, `gap-matched` has a hidden layer and as many "
        "parameters as the head of a covariance, `gap-reduced` averages the reduced maps.",
        "Differences are paired by seed (initial weights, order and mirror images), with their 95% "
        "interval by Student's t; an interval is of the seeds alone. One that holds zero does not "
        f"show that two are equal. p is adjusted for the {questions} questions.",
        "A pooling that is best on frozen features need not be best where the backbone is trained "
        "with it.",
    ]


def reference_arms(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """What every pooling is compared with: the matched average, and the best known covariance."""
    root = Arm("isqrt-cov")
    return (MATCHED, Arm("gap", reduced=True), *([root] if root in arms else []))
