"""matrix_sqrt of small matrices, forward and backward, beside what else computes it."""

import importlib
import importlib.util
import re
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from covpool.bench import tables
from covpool.bench.measurement import Record, TimedMeasurement, ratio
from covpool.bench.options import DTYPES, SmallOptions
from covpool.bench.tables import NAME, RATIO, Table, column
from covpool.bench.timing import Case, Report, Step
from covpool.linalg.api import matrix_sqrt
from covpool.linalg.tables import choose

Root = Callable[[Tensor], Tensor]
OURS = ("covpool", "covpool, unchecked")


class Loewner(torch.autograd.Function):
    """The function of 30 lines."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        roots = eigenvalues.sqrt()
        ctx.save_for_backward(roots, vectors)
        return (vectors * roots[..., None, :]) @ vectors.mH

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        roots, vectors = ctx.saved_tensors
        weights = (roots[..., :, None] + roots[..., None, :]).reciprocal_()
        return vectors @ (weights * (vectors.mH @ gradients[0] @ vectors)) @ vectors.mH


def _by_autograd(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.sqrt()[..., None, :]) @ vectors.mH


INSTALLED: dict[str, tuple[str, Callable[[Any], Root]]] = {
    "spd-learn": ("spd_learn.functional", lambda module: module.matrix_sqrt.apply),
    "pyRiemann": ("pyriemann.utils.base", lambda module: module.sqrtm),
    "geoopt": ("geoopt.linalg", lambda module: module.sym_sqrtm),
}
"""The module of each peer that may be installed, and its root."""


def roots() -> dict[str, Root]:
    """What is there to be measured, ours first."""
    found: dict[str, Root] = {
        OURS[0]: matrix_sqrt,
        OURS[1]: partial(matrix_sqrt, check=False),
        "30 lines": Loewner.apply,
        "eigh with autograd": _by_autograd,
    }
    if hasattr(torch.linalg, "matrix_sqrth"):
        found["matrix_sqrth"] = torch.linalg.matrix_sqrth
    for name, (module, root) in INSTALLED.items():
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            found[name] = root(importlib.import_module(module))
    return found


class Small(TimedMeasurement[SmallOptions]):
    """Roots of batches of small matrices."""

    def __init__(self, options: SmallOptions) -> None:
        super().__init__(options)
        if torch.device(options.device).type == "cpu":
            self.clock = time.process_time  # of which other programs take nothing

    def check(self, options: SmallOptions) -> SmallOptions:
        for shape in options.shapes:
            _size(shape)
        choose("dtype", options.dtype, dict.fromkeys(DTYPES))
        return super().check(options)

    @cached_property
    def cases(self) -> list[Case]:
        return [
            Case(
                name=name, kind="covpool" if name in OURS else "peer", prepare=partial(_step, root)
            )
            for name, root in roots().items()
        ]

    def inputs(self, shape: str, batch: int | None = None) -> tuple[Tensor, ...]:
        (count, size), own = _size(shape), self.options
        generator = torch.Generator().manual_seed(own.seed)
        factor = torch.randn(batch or count, size, 2 * size + 2, generator=generator).double()
        matrix = factor @ factor.mT / (2 * size + 2)
        return (matrix.to(own.device, getattr(torch, own.dtype)),)

    def measure(self, shape: str, report: Report) -> Record:
        rows = self.rows(shape, report)
        for row in rows:
            row["over_ours"] = ratio(row["median"], rows[0]["median"])
        return {"shape": shape, "cases": rows}

    @staticmethod
    def tables(record: Record) -> Iterator[Table]:
        columns = {"root": NAME, **tables.TIMES, "over ours": column("over_ours", RATIO)}
        title = f"{record['shape']}: forward + backward"
        yield tables.table(title, columns, record["cases"])


def _step(root: Root, matrix: Tensor) -> Step:
    def step() -> Tensor:
        leaf = matrix.detach().requires_grad_()
        return torch.autograd.grad(root(leaf).sum(), leaf)[0]

    return step


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d*[1-9]\d*)x(\d*[1-9]\d*)", text)
    if found is None:
        raise ValueError(f"shapes are BATCHxN with whole numbers from 1 on, got {text!r}")
    return int(found[1]), int(found[2])
