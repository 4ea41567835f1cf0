"""Which of the paper's observations the runs show, by rule, from differences paired by seed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import stdev
from typing import Any, Literal

from covpool.experiments.arms import ACCURATE, METHODS_OF_PAPER, NEWTON_SCHULZ, SMOOTHED, Arm
from covpool.experiments.inference import (
    BySeed,
    Spread,
    differences,
    mean_over,
)
from covpool.experiments.results import CONDITION_NUMBERS, PAPERS_WAY, Results, RunSet
from covpool.experiments.sheet import Sheet, Table, notes
from covpool.text import quantity

Verdict = Literal["shown", "not shown", "the opposite", "not measured"]

VERDICTS: Mapping[int, Verdict] = {1: "shown", 0: "not shown", -1: "the opposite"}
"""By the sign of the interval."""

VARIANTS = tuple(name for name in METHODS_OF_PAPER if name not in ("exact", NEWTON_SCHULZ))
"""The paper's methods that decompose, each of which it trains by both protocols."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A quantity by seed that is above zero where the paper is right.

    Attributes:
        text: what is above zero.
        pairs: by seed.
        factor: whether it is a decimal logarithm, to be told as a factor.
        decides: whether the observation's verdict rests on it.
    """

    text: str
    pairs: BySeed
    factor: bool = False
    decides: bool = True

    @cached_property
    def spread(self) -> Spread:
        """Mean and 95% interval by Student's t; None where there are too few seeds, or a quantity
        is infinite."""
        finite = all(map(math.isfinite, self.pairs.values()))
        return Spread.of(self.pairs if finite else {})

    @property
    def interval(self) -> tuple[float | None, float | None, float | None]:
        """The mean and the ends of its interval."""
        return self.spread.mean, self.spread.low, self.spread.high

    @property
    def verdict(self) -> Verdict:
        """shown: the interval is above zero; the opposite: below; one seed shows nothing."""
        if self.spread.mean is None:
            return "not measured"
        return VERDICTS[self.spread.sign or 0]

    def told(self) -> str:
        """The numbers."""
        if self.spread.mean is None:
            return "not measured"
        mean, *ends = (self._number(value) for value in self.interval if value is not None)
        interval = f" [{', '.join(ends)}]" if ends else ""
        return f"{mean}{interval}, {quantity(len(self.pairs), 'seed')}"

    def describe(self) -> str:
        """The claim with its numbers."""
        return f"{self.text}: {self.told()}"

    def _number(self, value: float) -> str:
        if not self.factor:
            return f"{value:+.2f}"
        return f"×{10**value:.3g}" if abs(value) < 300 else f"×1e{value:.0f}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "claim": self.text,
            "described": self.describe(),
            "by_seed": dict(self.pairs),
            "log10": self.factor,
            **dict(zip(("mean", "low", "high"), self.interval, strict=True)),
            "decides": self.decides,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One of the paper's, and what our runs say to it."""

    number: int
    statement: str
    claims: Sequence[Claim]

    @property
    def verdict(self) -> Verdict:
        """That of the deciding claims where they agree; else it is not shown."""
        verdicts: list[Verdict] = [claim.verdict for claim in self.claims if claim.decides]
        if not verdicts or "not measured" in verdicts:
            return "not measured"
        return verdicts[0] if len(set(verdicts)) == 1 else "not shown"


def worse_standalone(runs: RunSet) -> Iterator[Claim]:
    """Accurate SVD against Newton-Schulz."""
    reference = runs.errors(Arm(NEWTON_SCHULZ))
    for method in (ACCURATE, "exact"):
        yield Claim(
            text=f"top-1 error of {method} − {NEWTON_SCHULZ}",
            pairs=differences(runs.errors(Arm(method)), reference),
            decides=method == ACCURATE,
        )


def less_smooth(runs: RunSet) -> Iterator[Claim]:
    """β of accurate SVD over that of Newton-Schulz, over the whole training and by stage."""
    whole = (1, runs.config.train.epochs)
    for stage in (whole, *runs.stages):
        ratios = runs.smoothness_ratio(Arm(ACCURATE), Arm(NEWTON_SCHULZ), stage)
        yield Claim(
            text=f"β of {ACCURATE} over {NEWTON_SCHULZ}, epochs {stage[0]} to {stage[1]}",
            pairs=_log10(ratios),
            factor=True,
            decides=stage == whole,
        )


def smoothing_helps(runs: RunSet) -> Iterator[Claim]:
    """Accurate SVD against the variants with smooth gradients, standalone."""
    accurate = runs.errors(Arm(ACCURATE))
    errors = {method: runs.errors(Arm(method)) for method in SMOOTHED}
    gains = {method: differences(accurate, own) for method, own in errors.items() if own}
    yield from _gains(f"top-1 error of {ACCURATE} − ", gains)


def _gains(text: str, gains: Mapping[str, BySeed]) -> Iterator[Claim]:
    """By method a difference: first the mean of all, which decides, then each."""
    mean = mean_over([*gains.values()])
    yield Claim(text=f"{text}mean of {', '.join(gains) or 'variants'}", pairs=mean)
    for method, gain in gains.items():
        yield Claim(text=f"{text}{method}", pairs=gain, decides=False)


def better_conditioned(runs: RunSet) -> Iterator[Claim]:
    """Condition number at the first epoch over that at the first epoch of the last stage."""
    first, last = runs.first_epochs[0], runs.first_epochs[-1]
    for arm in (Arm(ACCURATE), Arm(NEWTON_SCHULZ)):
        for title, *place in CONDITION_NUMBERS:
            early, late = (_log10(runs.at_epoch(arm, epoch, *place)) for epoch in (first, last))
            yield Claim(
                text=f"{arm.method}, condition number at epoch {first} over epoch {last}, {title}",
                pairs=differences(early, late) if last > first else {},
                factor=True,
                decides=arm.method == ACCURATE and tuple(place) == PAPERS_WAY,
            )


def hybrid_helps(runs: RunSet) -> Iterator[Claim]:
    """Standalone against hybrid training: the mean of the variants, and how far they lie apart."""
    errors = {m: [runs.errors(Arm(m, hybrid=hybrid)) for hybrid in (False, True)] for m in VARIANTS}
    both = {method: pair for method, pair in errors.items() if all(pair)}
    gains = {method: differences(*pair) for method, pair in both.items()}
    mean, *each = _gains("top-1 error standalone − hybrid, ", gains)
    yield mean
    yield Claim(
        text="deviation of top-1 error over these methods, standalone − hybrid",
        pairs=differences(*(_deviation([pair[i] for pair in both.values()]) for i in (0, 1))),
    )
    yield from each


def _log10(values: BySeed) -> dict[int, float]:
    """Decimal logarithms, in which ratios are differences."""
    return {
        seed: math.log10(value) if 0 < value < math.inf else math.nan
        for seed, value in values.items()
    }


def _deviation(series: Sequence[BySeed]) -> dict[int, float]:
    """By seed the standard deviation over the series, for the seeds that all have."""
    if len(series) < 2:
        return {}
    return {seed: stdev(each[seed] for each in series) for seed in mean_over(series)}


OBSERVATIONS: Sequence[tuple[str, Callable[[RunSet], Iterator[Claim]]]] = (
    ("accurate SVD trains worse than Newton-Schulz, standalone", worse_standalone),
    ("the gradients of accurate SVD are less smooth", less_smooth),
    ("smoothing the gradient helps standalone SVD", smoothing_helps),
    ("conditioning improves as the learning rate decays", better_conditioned),
    ("the hybrid protocol helps, and evens out the variants", hybrid_helps),
)
"""The paper's observations in its order, and what decides each."""


def observe(runs: RunSet) -> list[Observation]:
    """What the runs say to each observation."""
    return [
        Observation(number=number, statement=statement, claims=[*claims(runs)])
        for number, (statement, claims) in enumerate(OBSERVATIONS, start=1)
    ]


def observations(results: Results) -> Sheet:
    """All of them, of each recipe whose runs measured any."""
    tables, data = [], {}
    for runs in results.values():
        found = observe(runs)
        if all(each.verdict == "not measured" for each in found):
            continue
        rows = [
            (
                f"({each.number}) {each.statement}",
                each.verdict,
                "; ".join(claim.describe() for claim in each.claims if claim.decides),
            )
            for each in found
        ]
        further = [
            (f"({each.number})", claim.describe())
            for each in found
            for claim in each.claims
            if not claim.decides and claim.verdict != "not measured"
        ]
        columns = ("observation of the paper", "here", "from")
        tables.append(Table(heading=f"Recipe {runs.name}", columns=columns, rows=rows))
        if further:
            tables.append(Table(heading="Beside them", columns=("to", "measured"), rows=further))
        data[runs.name] = [
            {"number": each.number, "statement": each.statement, "verdict": each.verdict}
            | {"claims": [claim.to_dict() for claim in each.claims]}
            for each in found
        ]
    return Sheet(
        name="observations",
        title="The paper's five observations, and what is seen here",
        scale=" ".join(runs.about for runs in results.values()),
        paper_scale=bool(results) and all(runs.paper_scale for runs in results.values()),
        tables=tables,
        data={"settings": data},
        notes=notes("observations"),
    )
