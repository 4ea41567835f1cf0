"""Whether threads should wait for each other, by how late those of the last teams were.

On a machine whose cores are shared, with data loaders or with other people, a thread that is not
running holds up all that wait for it: for milliseconds, which small work is not worth. So each team
for small work is timed, and after a late one small work is done by one thread for a while.
"""

from collections.abc import Callable
from time import perf_counter, thread_time

from torch import Tensor

SMALL_WORK = 2**24
"""Entries times columns, about, of what a core does in some 10 ms, as long as a thread may wait for
a core that another process has. Larger work gains from its team even there."""

SHORTEST, LONGEST = 0.02, 2.0
"""Seconds without teams after a late one: after the first, and after many in a row. A late team
takes some 0.04 s: where the machine stays busy, a fiftieth of the time at most."""


class Stopwatch:
    """Times the threads of one team, on the clock and on their cores."""

    def __init__(self) -> None:
        self._begun = perf_counter()
        self._spent: list[tuple[float, float]] = []

    def timed(self, work: Callable[[], None]) -> None:
        """Do a thread's work, and take its time."""
        clock, core = perf_counter(), thread_time()
        try:
            work()
        finally:
            self._spent.append((perf_counter() - clock, thread_time() - core))

    def late(self) -> bool:
        """Whether one thread alone would have been ready by now.

        It would have needed the time of all threads on their cores, times the share of a core that
        the luckiest of them was given. No judgement where work is shorter than the clock's steps.
        """
        taken = perf_counter() - self._begun
        luckiest = min((clock / core for clock, core in self._spent if core > 0), default=0)
        return taken > sum(core for _, core in self._spent) * luckiest > 0


class BackOff:
    """The pause without teams: until `until`, on the clock of `perf_counter`."""

    def __init__(self) -> None:
        self.until, self._next = 0.0, SHORTEST

    def heed(self, late: bool) -> None:
        """Learn from a team: the longer late ones follow each other, the longer the pause."""
        if late:
            self.until = perf_counter() + self._next
            self._next = min(2 * self._next, LONGEST)
        else:
            self._next = SHORTEST


BACK_OFF = BackOff()
"""Of this process: its threads share the machine."""


def is_small(tensor: Tensor) -> bool:
    """Whether decompositions and products of these matrices (*, m, n) are small work."""
    return tensor.numel() * tensor.shape[-1] <= SMALL_WORK if tensor.ndim else True
