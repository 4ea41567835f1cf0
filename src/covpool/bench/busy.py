"""Times of the forward pass on a machine whose cores other processes keep busy."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import product

import torch
from torch import Tensor

from covpool.bench import tables
from covpool.bench.measurement import Record, TimedMeasurement, ratio
from covpool.bench.options import BusyOptions
from covpool.bench.tables import NAME, RATIO, Table, column
from covpool.bench.timing import Case, Report, Step
from covpool.linalg.api import matrix_sqrt
from covpool.pooling import cov_pool

OURS, TORCH = "covpool", "torch.linalg.eigh"


class Busy(TimedMeasurement[BusyOptions]):
    """Each shape beside each number of busy processes."""

    def check(self, options: BusyOptions) -> BusyOptions:
        for shape in options.shapes:
            _sizes(shape)
        if not options.busy or min(options.busy) < 0:
            raise ValueError(f"busy are numbers of processes from 0 on, got {options.busy}")
        return super().check(options)

    @cached_property
    def cases(self) -> list[Case]:
        return [
            Case(name=OURS, prepare=_ours),
            Case(name=TORCH, kind="peer", prepare=_torch),
        ]

    def inputs(self, shape: str, batch: int | None = None) -> tuple[Tensor, ...]:
        count, *sizes = _sizes(shape)
        generator = torch.Generator().manual_seed(self.options.seed)
        if len(sizes) == 2:
            return (torch.randn(batch or count, *sizes, generator=generator),)
        factor = torch.randn(batch or count, *sizes, 2 * sizes[0], generator=generator).double()
        return (factor @ factor.mT / (2 * sizes[0]),)

    def records(self, done: Mapping[str, Record], report: Report) -> Iterator[Record]:
        quiet: dict[str, float | None] = {}
        for shape, count in product(self.options.shapes, self.options.busy):
            name = f"{shape}, {count} busy"
            if (record := done.get(name)) is None:
                with _busy(count):
                    rows = self.rows(shape, partial(_say_at, report, name))
                record = {"shape": name, "cases": rows}
            ours, theirs = record["cases"]
            over = ratio(ours["median"], theirs["median"])
            quiet.setdefault(shape, over)
            ours["over_torch"], ours["over_first"] = over, ratio(over, quiet[shape])
            yield record

    @staticmethod
    def tables(record: Record) -> Iterator[Table]:
        columns = {
            "": NAME,
            **tables.TIMES,
            "over torch": column("over_torch", RATIO),
            "as many times as beside the first": column("over_first", RATIO),
        }
        yield tables.table(f"{record['shape']}: forward", columns, record["cases"])


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


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Processes that do nothing but compute, until the block ends."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _say_at(report: Report, name: str, text: str) -> None:
    report(f"{name}: {text}")


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            "shapes are BATCHxCHANNELSxPOSITIONS or BATCHxN with whole numbers from 1 on, got "
            f"{text!r}"
        )
    if len(parts) == 3 and parts[1] == parts[2]:
        raise ValueError(f"as many channels as positions are taken for matrices, got {text!r}")
    return tuple(map(int, parts))
