"""Commands that train a grid, with its runs in this process, one after the other."""

import pickle
from concurrent.futures import Executor, Future

import pytest

from covpool.cli import main
from covpool.experiments import grid


class Inline(Executor):
    """Runs cells at once and here: a process of its own spends ten seconds on its imports, and that
    cells run in one is tested by compare."""

    def submit(self, function, cell):
        future = Future()
        function(pickle.loads(pickle.dumps(cell)))
        future.set_result(None)
        return future


def command(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_pool", lambda jobs: Inline())
        return main([*arguments])
