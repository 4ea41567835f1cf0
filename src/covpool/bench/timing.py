"""Times of cases that alternate in one process, so that a change of the machine's pace hits all."""

import gc
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Step = Callable[[], Any]
Report = Callable[[str], None]

LEAST_TURN = 0.05
"""Seconds that a turn takes at least: shorter turns show how slow a first call after others is."""

MOST_CALLS = 50


def silent(text: str) -> None:
    """A report to nobody."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of a measurement.

    Attributes:
        name: unique among the cases.
        kind: whose it is; "floor" is the least work.
        prepare: from the measurement's inputs to a step, which is then repeated.
        facts: what stands in its row beside the figures.
        context: what `prepare` and the steps are to run in; entered outside the clock.
    """

    name: str
    kind: Literal["covpool", "peer", "floor"] = "covpool"
    prepare: Callable[..., Step]
    facts: Mapping[str, Any] = field(default_factory=dict)
    context: Callable[[], AbstractContextManager[None]] = nullcontext

    def once(self, *inputs: Any) -> Any:
        """What its step gives."""
        with self.context():
            return self.prepare(*inputs)()


@dataclass
class Timing:
    """A case's times.

    Attributes:
        seconds: of each round, of one call.
        calls: of the step in each turn.
        error: what it failed with; None where it did not.
    """

    seconds: list[float] = field(default_factory=list)
    calls: int = 1
    error: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds and not self.error else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        if self.median is None or len(self.seconds) < 2:
            return None
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper

    def figures(self) -> dict[str, Any]:
        """What stands in the case's row."""
        low, high = self.quartiles or (None, None)
        return {
            "error": self.error,
            "median": self.median,
            "lower_quartile": low,
            "upper_quartile": high,
            "rounds": self.seconds,
            "calls": self.calls,
        }

    @contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Within it an exception is the case's error, and ends the block alone."""
        try:
            yield
        except Exception as error:
            self.error = describe(error)


def turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each starts one further, so that none is always after the same."""
    start = number % len(names) if names else 0
    # Every other round runs backwards: a rotation alone never changes who follows whom.
    order = [*names[start:], *names[:start]]
    return order if number % 2 == 0 else order[::-1]


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def time_cases(
    cases: Sequence[Case],
    *inputs: Any,
    rounds: int,
    warm_up: int = 2,
    device: torch.device,
    report: Report = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Each case's times over the rounds, after a warm-up; one that fails is left out from then on.

    A step that is quicker than `LEAST_TURN` is repeated in its turn, and its time is the mean.

    Args:
        cases: what takes turns.
        *inputs: what they prepare their steps from.
        rounds: every step has one turn in each.
        warm_up: untimed calls of each step before the first round.
        device: where there is something to wait for.
        report: told what goes on.
        clock: what tells the seconds.
    """
    timings = {case.name: Timing() for case in cases}
    contexts = {case.name: case.context for case in cases}
    steps: dict[str, Step] = {}

    def now() -> float:
        """The time when the device has done all that it was given."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    def taken(name: str) -> float:
        """Seconds of one of the turn's calls, in which no garbage is collected."""
        calls = timings[name].calls
        return timeit.timeit(steps[name], timer=now, number=calls) / calls

    for case in cases:
        report(f"warming up {case.name}")
        timing = timings[case.name]
        with timing.noting_errors(), case.context():
            steps[case.name] = case.prepare(*inputs)
            seconds = [taken(case.name) for _ in range(warm_up)]
            if seconds:
                timing.calls = max(1, min(MOST_CALLS, round(LEAST_TURN / seconds[-1])))
    for number in range(rounds):
        gc.collect()
        for name in turn(list(timings), number):
            timing = timings[name]
            if timing.error is None:
                report(f"round {number + 1} of {rounds}: {name}")
                with timing.noting_errors(), contexts[name]():
                    timing.seconds.append(taken(name))
    return timings


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """torch computes with that many threads within it, and as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
