"""Inverse p-th roots beside those of optimisers: time, error and residual."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from covpool.bench import tables
from covpool.bench.features import matrix_sizes, worst
from covpool.bench.measurement import Record, TimedMeasurement
from covpool.bench.options import RootsOptions
from covpool.bench.tables import Row, Table, column, finite
from covpool.bench.timing import Case, Step
from covpool.linalg.inverse_root import INVERSE_ROOTS, InverseRootMethod, matrix_inv_root

IN_FLOAT32 = ", in float32"
UPDATE = 1e-3
"""The share of a gradient's statistics in a moving average of them, 1 - beta2 of Shampoo."""


FIGURES = (
    column("median", "{:.3g}", 1e3),
    column("relative_error", "{:.0e}"),
    column("residual", "{:.0e}"),
)


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
        count, size = matrix_sizes(shape)
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(count, size, size + 1, generator=generator, dtype=torch.float64)
        vectors = torch.linalg.qr(draw[..., :-1]).Q
        values = torch.logspace(0, -math.log10(condition), size, dtype=torch.float64)
        matrix = (vectors * values) @ vectors.mT
        gradient = vectors @ (values.sqrt()[:, None] * draw[..., -1:])
        before = torch.linalg.eigh(matrix - UPDATE * gradient @ gradient.mT).eigenvectors
        matrix, before = (part.to(device, getattr(torch, dtype)) for part in (matrix, before))
        return cls((matrix + matrix.mT) / 2, root, before)


def exact_inverse_root(matrix: Tensor, root: int) -> Tensor:
    """A^(−1/p) of symmetric positive definite matrices (*, n, n) without ties, in float64.

    The eigenvectors V of float64 leave VᵀAV diagonal but for rounding. In the processor's extended
    precision that rest is counted in by the divided differences: what is left of it is quadratic,
    about (finfo(float64).eps · κ)² at condition number κ.
    """
    vectors = torch.linalg.eigh(matrix.double().cpu()).eigenvectors.numpy().astype(np.longdouble)
    turned = vectors.swapaxes(-1, -2)
    vectors = vectors @ (3 * np.eye(vectors.shape[-1]) - turned @ vectors) / 2  # to orthonormal
    turned = vectors.swapaxes(-1, -2)
    inner = turned @ matrix.double().cpu().numpy() @ vectors
    values = np.diagonal(inner, axis1=-2, axis2=-1)
    roots = values ** (np.longdouble(-1) / root)
    gaps = values[..., :, None] - values[..., None, :]
    own = np.eye(values.shape[-1], dtype=bool)
    slopes = (roots[..., :, None] - roots[..., None, :]) / np.where(own, 1, gaps)
    inner = np.where(own, roots[..., None, :], slopes * inner)
    return torch.from_numpy((vectors @ inner @ turned).astype(np.float64))


class Roots(TimedMeasurement[RootsOptions]):
    """The rows of INVERSE_ROOTS and the peers' at each condition number."""

    tasks = ("inverse root",)
    by_processor = True
    read_shape = staticmethod(matrix_sizes)
    figures = (
        "The value alone, alternating, at each condition number: median of {rounds} of the "
        "processor's time in ms / relative error / residual."
    )

    def points(self) -> Iterator[tuple[str, Any]]:
        own = self.options
        for shape, dtype, root in product(own.shapes, own.dtypes, own.roots):
            yield f"{shape} {dtype}, p = {root}", (shape, dtype, root)

    def cases(self, point: Any) -> list[Case]:
        return [
            replace(
                case,
                name=f"{case.name}, condition {condition:.0e}",
                prepare=partial(_prepared, case, condition),
                facts={
                    "case": case.name,
                    "condition": condition,
                    "at": f"{condition:.0e}",
                    **case.facts,
                },
            )
            for condition in self.options.conditions
            for case in self._solvers(point)
        ]

    def _solvers(self, point: Any) -> Iterator[Case]:
        """What steps are prepared by, each from a `Problem`."""
        narrow = {IN_FLOAT32: torch.float32} if "float32" in point else {}
        for where, dtype in {"": None, **narrow}.items():
            for name, row in INVERSE_ROOTS.items():
                step = partial(_own, row, dtype)
                yield Case(name=name + where, prepare=step, facts={"note": ""})
        for opened in self.peers:
            for row in opened.peer.rows_of(*self.tasks):
                name = f"{opened.peer.name}/{row.name}"
                yield opened.case(row, _one_by_one, name=name, facts={"note": row.note})

    def inputs(self, point: Any, batch: int | None = None) -> tuple[Callable[[float], Problem]]:
        own = self.options
        return (cache(partial(Problem.make, *point, seed=own.seed, device=own.device)),)

    def complete(self, point: Any, rows: list[Record]) -> Record:
        (problem_at,) = self.inputs(point)
        exact = cache(lambda condition: _exact(problem_at(condition)))
        for row, case in zip(rows, self.cases(point), strict=True):
            if row["error"] is None:
                self.say(f"errors of {case.name}")
                found = case.once(problem_at)
                row["relative_error"] = finite(worst(found, exact(row["condition"])))
                row["residual"] = finite(_residual(found, problem_at(row["condition"])))
        return {}

    @classmethod
    def tables(cls, record: Record) -> Iterator[Table]:
        yield tables.pivot(record["shape"], "case", "at", _cell, record["cases"])


def _cell(row: Row) -> str:
    return " / ".join(show(row) for show in FIGURES)


def _prepared(case: Case, condition: float, problem_at: Callable[[float], Problem]) -> Step:
    return case.prepare(problem_at(condition))


def _own(row: InverseRootMethod, dtype: torch.dtype | None, problem: Problem) -> Step:
    return partial(matrix_inv_root, problem.matrix, problem.root, row, compute_dtype=dtype)


def _one_by_one(solve: Callable[..., Tensor], problem: Problem) -> Step:
    """A peer's, of one matrix after the other."""

    def step() -> Tensor:
        pairs = zip(problem.matrix, problem.before, strict=True)
        return torch.stack([solve(matrix, problem.root, before) for matrix, before in pairs])

    return step


def _exact(problem: Problem) -> Tensor:
    return exact_inverse_root(problem.matrix, problem.root)


def _residual(found: Tensor, problem: Problem) -> float:
    power = torch.linalg.matrix_power(found.double().cpu(), problem.root)
    product = power @ problem.matrix.double().cpu()
    product.diagonal(dim1=-2, dim2=-1).sub_(1)
    return torch.linalg.matrix_norm(product).max().item()
