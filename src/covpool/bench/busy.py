"""Times of the forward pass on a machine whose cores other processes keep busy."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from covpool.bench import tables
from covpool.bench.features import positive_definite, sizes_of
from covpool.bench.measurement import Record, TimedMeasurement
from covpool.bench.options import BusyOptions
from covpool.bench.tables import NAME, RATIO, column, ratio
from covpool.bench.timing import Case, Step
from covpool.linalg.api import matrix_sqrt
from covpool.pooling import cov_pool


def _ours(values: Tensor) -> Step:
    features = values.shape[-1] != values.shape[-2]
    return partial(cov_pool, values) if features else partial(matrix_sqrt, values)


def _torch(values: Tensor) -> Step:
    """Of the smaller of covariance and Gram matrix, or of the matrices themselves."""
    if values.shape[-1] != values.shape[-2]:
        wide = values.double()
        tall = wide.shape[-2] > wide.shape[-1]
        values = wide.mT @ wide if tall else wide @ wide.mT
    return partial(torch.linalg.eigh, values)


class Busy(TimedMeasurement[BusyOptions]):
    """Each shape beside each number of busy processes."""

    title = "{shape}: forward"
    columns: ClassVar = {
        "": NAME,
        **tables.TIMES,
        "over torch": column("over_torch", RATIO),
        "as many times as beside the first": column("over_first", RATIO),
    }

    def __init__(self, options: BusyOptions) -> None:
        super().__init__(options)
        self.first: dict[str, float | None] = {}

    @staticmethod
    def read_shape(text: str) -> tuple[int, ...]:
        sizes = sizes_of(text, "BATCHxCHANNELSxPOSITIONS", "BATCHxN")
        if len(sizes) == 3 and sizes[1] == sizes[2]:
            what = "as many channels as positions are taken for matrices"
            raise ValueError(f"shape {text!r}: {what}")
        return sizes

    def points(self) -> Iterator[tuple[str, Any]]:
        for shape, count in product(self.options.shapes, self.options.busy):
            yield f"{shape}, {count} busy", (shape, count)

    def cases(self, point: Any) -> list[Case]:
        return [
            Case(name="covpool", prepare=_ours),
            Case(name="torch.linalg.eigh", kind="peer", prepare=_torch),
        ]

    def inputs(self, point: Any, batch: int | None = None) -> tuple[Tensor]:
        count, *sizes = self.read_shape(point[0])
        seed = self.options.seed
        if len(sizes) == 2:
            generator = torch.Generator().manual_seed(seed)
            return (torch.randn(batch or count, *sizes, generator=generator),)
        return (positive_definite(batch or count, *sizes, seed=seed),)

    @contextmanager
    def around(self, point: Any) -> Iterator[None]:
        """Processes that do nothing but compute, until the block ends."""
        command = [sys.executable, "-c", "while True: pass"]
        processes = [subprocess.Popen(command) for _ in range(point[1])]
        try:
            yield
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def complete(self, point: Any, rows: list[Record]) -> Record:
        ours, theirs = rows
        over = ratio(ours["median"], theirs["median"])
        first = self.first.setdefault(point[0], over)
        ours["over_torch"], ours["over_first"] = over, ratio(over, first)
        return {}
