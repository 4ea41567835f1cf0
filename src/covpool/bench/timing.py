"""Times of steps that alternate in one process, so that a change of the machine's pace hits all."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

Context = Callable[[], AbstractContextManager[None]]

LEAST_TURN = 0.05
"""Seconds that a turn takes at least: below it, a first call after another case would show most."""

MOST_CALLS = 50


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


def time_steps(
    steps: Mapping[str, Callable[[], Any]],
    contexts: Mapping[str, Context],
    *,
    rounds: int,
    warm_up: int = 2,
    device: torch.device,
    report: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Each step's times over the rounds, after a warm-up; one that fails is left out from then on.

    A step that is quicker than `LEAST_TURN` is repeated in its turn, and its time is the mean.

    Args:
        steps: by name.
        contexts: what the step of that name runs in, entered outside the clock.
        rounds: every step has one turn in each.
        warm_up: untimed calls of each step before the first round.
        device: where there is something to wait for.
        report: told what goes on.
        clock: what tells the seconds.
    """
    timings = {name: Timing() for name in steps}

    def run(name: str, calls: int) -> float | None:
        try:
            return timed(steps[name], contexts[name], device, calls, clock)
        except Exception as error:
            timings[name].error = describe(error)
            return None

    for name, timing in timings.items():
        report(f"warming up {name}")
        for _ in range(warm_up):
            seconds = run(name, 1)
            if seconds is None:
                break
            timing.calls = max(1, min(MOST_CALLS, round(LEAST_TURN / seconds)))
    with _collecting_between_rounds() as collect:
        for number in range(rounds):
            collect()
            for name in turn(list(timings), number):
                if timings[name].error is None:
                    report(f"round {number + 1} of {rounds}: {name}")
                    seconds = run(name, timings[name].calls)
                    if seconds is not None:
                        timings[name].seconds.append(seconds)
    return timings


def timed(
    step: Callable[[], Any],
    context: Context,
    device: torch.device,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one of so many calls, waiting for the device before the first and at the end."""
    with context():
        _synchronise(device)
        start = clock()
        for _ in range(calls):
            step()
        _synchronise(device)
        return (clock() - start) / calls


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _collecting_between_rounds() -> Iterator[Callable[[], object]]:
    """Python's garbage collector runs where it is told to, not within a step."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield gc.collect
    finally:
        if enabled:
            gc.enable()


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """torch computes with that many threads within it, and as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
