"""Inverse p-th roots beside those of optimisers: time, error and residual."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor

from covpool.bench import tables
from covpool.bench.accuracy import exact_inverse_root, worst
from covpool.bench.checkouts import as_published
from covpool.bench.layers import finite, require_condition
from covpool.bench.measurement import Record, Results, TimedMeasurement
from covpool.bench.options import DTYPES, RootsOptions
from covpool.bench.peers import OpenPeer, PeerRow
from covpool.bench.small import size_of
from covpool.bench.tables import Row, Table, column
from covpool.bench.timing import Case, Report, Step
from covpool.linalg.inverse_root import INVERSE_ROOTS, matrix_inv_root
from covpool.linalg.tables import choose
from covpool.machine import summary_line
from covpool.text import quantity

IN_FLOAT32 = ", in float32"
UPDATE = 1e-3
"""The share of a gradient's statistics in a moving average of them, 1 - beta2 of Shampoo."""


FIGURES = (
    column("median", "{:.3g}", 1e3),
    column("relative_error", "{:.0e}"),
    column("residual", "{:.0e}"),
)

Solver = Callable[["Problem"], Tensor]


@dataclass(frozen=True)
class Problem:
    """Matrices (B, n, n) of one condition number, and which root of them is wanted.

    Attributes:
        before: the eigenvectors that an optimiser has: of what the matrices were before the last
            gradient was added to them.
    """

    matrix: Tensor
    root: int
    before: Tensor

    @classmethod
    def make(
        cls, shape: str, dtype: str, root: int, condition: float, *, seed: int, device: str
    ) -> Self:
        count, size = size_of(shape)
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(count, size, size + 1, generator=generator, dtype=torch.float64)
        vectors = torch.linalg.qr(draw[..., :-1]).Q
        values = torch.logspace(0, -math.log10(condition), size, dtype=torch.float64)
        matrix = (vectors * values) @ vectors.mT
        gradient = vectors @ (values.sqrt()[:, None] * draw[..., -1:])
        before = torch.linalg.eigh(matrix - UPDATE * gradient @ gradient.mT).eigenvectors
        matrix, before = (part.to(device, getattr(torch, dtype)) for part in (matrix, before))
        return cls((matrix + matrix.mT) / 2, root, before)


class Roots(TimedMeasurement[RootsOptions]):
    """The rows of INVERSE_ROOTS and the peers' at each condition number."""

    tasks = ("inverse root",)
    by_processor = True

    def check(self, options: RootsOptions) -> RootsOptions:
        for shape in options.shapes:
            size_of(shape)
        for dtype in options.dtypes:
            choose("dtype", dtype, dict.fromkeys(DTYPES))
        for condition in options.conditions:
            require_condition(condition)
        if not options.roots or min(options.roots) < 1:
            raise ValueError(f"roots are whole numbers from 1 on, got {options.roots}")
        return super().check(options)

    @cached_property
    def _points(self) -> dict[str, tuple[str, str, int]]:
        axes = product(self.options.shapes, self.options.dtypes, self.options.roots)
        return {f"{shape} {dtype}, p = {root}": (shape, dtype, root) for shape, dtype, root in axes}

    @property
    def names(self) -> Iterable[str]:
        return self._points

    @cached_property
    def cases(self) -> list[Case]:
        return [
            Case(
                name=f"{name}, condition {condition:.0e}",
                kind=kind,
                prepare=partial(_prepared, load, condition),
                facts={
                    "case": name,
                    "condition": condition,
                    "at": f"{condition:.0e}",
                    "note": note,
                },
                context=context,
            )
            for condition in self.options.conditions
            for name, kind, load, note, context in self._solvers()
        ]

    def _solvers(self) -> Iterator[tuple[str, Any, Callable[[], Solver], str, Any]]:
        """Name, kind, what gives the solver, note and context of each."""
        for where, dtype in (("", None), (IN_FLOAT32, torch.float32)):
            for name in INVERSE_ROOTS:
                yield name + where, "covpool", partial(_own, name, dtype), "", nullcontext
        for opened in self.peers:
            for row in opened.peer.rows_of(*self.tasks):
                name, context = (
                    f"{opened.peer.name}/{row.name}",
                    partial(as_published, opened.device),
                )
                yield name, "peer", partial(_peers, opened, row), row.note, context

    def cases_of(self, shape: str) -> list[Case]:
        _, dtype, _ = self._points[shape]
        wide = dtype != "float32"  # which no one computes in float32
        return [c for c in self.cases if not (wide and c.facts["case"].endswith(IN_FLOAT32))]

    def inputs(self, shape: str, batch: int | None = None) -> tuple[Callable[[float], Problem]]:
        own = self.options
        make = partial(Problem.make, *self._points[shape], seed=own.seed, device=own.device)
        return (cache(make),)

    def measure(self, shape: str, report: Report) -> Record:
        rows, (problem_at,) = self.rows(shape, report), self.inputs(shape)
        exact = cache(lambda condition: _exact(problem_at(condition)))
        for row, case in zip(rows, self.cases_of(shape), strict=True):
            if row["error"] is None:
                report(f"errors of {case.name}")
                with case.context():
                    found = case.prepare(problem_at)().double().cpu()
                row["relative_error"] = finite(worst(found, exact(row["condition"])))
                row["residual"] = finite(_residual(found, problem_at(row["condition"])))
        return {"shape": shape, "cases": rows}

    @staticmethod
    def preamble(results: Results) -> str:
        return (
            f"{summary_line(results['environment'])}\nThe value alone, alternating, at each "
            "condition number: median of "
            f"{quantity(results['settings']['rounds'], 'round')} of the processor's time in ms / "
            "relative error / residual."
        )

    @staticmethod
    def tables(record: Record) -> Iterator[Table]:
        yield tables.pivot(record["shape"], "case", "at", _cell, record["cases"])


def _cell(row: Row) -> str:
    return " / ".join(show(row) for show in FIGURES)


def _exact(problem: Problem) -> Tensor:
    return exact_inverse_root(problem.matrix, problem.root)


def _residual(found: Tensor, problem: Problem) -> float:
    product = torch.linalg.matrix_power(found, problem.root) @ problem.matrix.double().cpu()
    identity = torch.eye(product.shape[-1], dtype=product.dtype)
    return torch.linalg.matrix_norm(product - identity).max().item()


def _prepared(
    load: Callable[[], Solver], condition: float, problem_at: Callable[[float], Problem]
) -> Step:
    return partial(load(), problem_at(condition))


def _own(method: str, dtype: torch.dtype | None) -> Solver:
    row = INVERSE_ROOTS[method]
    return lambda problem: matrix_inv_root(problem.matrix, problem.root, row, compute_dtype=dtype)


def _peers(opened: OpenPeer, row: PeerRow) -> Solver:
    solve = opened.function(row)

    def each(problem: Problem) -> Tensor:
        pairs = zip(problem.matrix, problem.before, strict=True)
        return torch.stack([solve(matrix, problem.root, before) for matrix, before in pairs])

    return each
