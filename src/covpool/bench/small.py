"""Functions of small matrices, forward and backward, beside what else computes them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import covpool
from covpool.bench import tables
from covpool.bench.features import matrix_sizes, positive_definite
from covpool.bench.measurement import Record, TimedMeasurement, named
from covpool.bench.options import SmallOptions
from covpool.bench.peers import installed_peers
from covpool.bench.tables import Row, Table, compare
from covpool.bench.timing import Case, Step

AnyFunction = Callable[..., Any]
Elementwise = Callable[[Tensor], Tensor]
Differences = Callable[[Tensor, Tensor], Tensor]

EXPONENT = 0.3
OURS = "covpool"


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of matrices that is measured.

    Attributes:
        ours: takes the matrix and the arguments.
        value: f of the eigenvalues; None for a decomposition, which is the plain way itself.
        differences: of eigenvalues x and f(x), (*, n) each, the divided differences (*, n, n).
        arguments: ours and the peers' take them after the matrix.
        torch: the name in `torch.linalg` of what computes the same.
    """

    ours: AnyFunction
    value: Elementwise | None = None
    differences: Differences | None = None
    arguments: tuple[float, ...] = ()
    torch: str | None = None


def _pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, None], y[..., None, :]


def _of_roots(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(*_pairs(y, y)).reciprocal_()


def _of_inverse_roots(x: Tensor, y: Tensor) -> Tensor:
    one, other = _pairs(y, y)
    return -(one * other).square_() / (one + other)


def _by_slopes(slope: Elementwise) -> Differences:
    """Quotients, and the slope between where the eigenvalues are close."""

    def differences(x: Tensor, y: Tensor) -> Tensor:
        one, other = _pairs(x, x)
        gap, above = one - other, torch.sub(*_pairs(y, y))
        close = gap.abs() <= torch.finfo(x.dtype).eps ** 0.5 * one.abs()
        return torch.where(close, slope((one + other) / 2), above / gap)

    return differences


FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {
        "sqrt": Function(
            ours=covpool.matrix_sqrt,
            value=torch.sqrt,
            differences=_of_roots,
            torch="matrix_sqrth",
        ),
        "inv_sqrt": Function(
            ours=covpool.matrix_inv_sqrt, value=torch.rsqrt, differences=_of_inverse_roots
        ),
        "power": Function(
            ours=covpool.matrix_power,
            value=lambda x: x**EXPONENT,
            differences=_by_slopes(lambda x: EXPONENT * x ** (EXPONENT - 1)),
            arguments=(EXPONENT,),
        ),
        "log": Function(
            ours=covpool.matrix_log, value=torch.log, differences=_by_slopes(torch.reciprocal)
        ),
        "exp": Function(
            ours=covpool.matrix_exp,
            value=torch.exp,
            differences=_by_slopes(torch.exp),
            torch="matrix_exp",
        ),
        "eigh": Function(ours=covpool.eigh, torch="eigh"),
        "svd": Function(ours=covpool.svd, torch="svd"),
    }
)
"""The functions, each with its task's name in PEERS."""


class Loewner(torch.autograd.Function):
    """The function of 30 lines."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, value: Elementwise, differences: Differences) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        values = value(eigenvalues)
        ctx.save_for_backward(eigenvalues, values, vectors)
        ctx.differences = differences
        return (vectors * values[..., None, :]) @ vectors.mH

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        eigenvalues, values, vectors = ctx.saved_tensors
        weights = ctx.differences(eigenvalues, values)
        inner = weights * (vectors.mH @ gradients[0] @ vectors)
        return vectors @ inner @ vectors.mH, None, None


def _by_autograd(value: Elementwise, matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * value(eigenvalues)[..., None, :]) @ vectors.mH


def plain_ways(function: Function, dtype: str) -> Iterator[tuple[str, AnyFunction]]:
    """Ours, what anyone would write, and torch's, by the name of the column."""
    ours, value = partial(_call, function.ours, function.arguments), function.value
    yield OURS, ours
    if value is not None:
        yield f"{OURS}, unchecked", partial(ours, check=False)
        if dtype == "float32":
            narrow = partial(ours, compute_dtype=torch.float32)
            yield f"{OURS} in float32", narrow
            yield f"{OURS} in float32, unchecked", partial(narrow, check=False)
        yield "30 lines", lambda matrix: Loewner.apply(matrix, value, function.differences)
        yield "eigh with autograd", partial(_by_autograd, value)
    if hasattr(torch.linalg, function.torch or ""):
        yield "torch.linalg", getattr(torch.linalg, str(function.torch))


def _call(function: AnyFunction, arguments: tuple[float, ...], matrix: Tensor, **more: Any) -> Any:
    return function(matrix, *arguments, **more)


class Small(TimedMeasurement[SmallOptions]):
    """Functions of batches of small matrices."""

    tasks = FUNCTIONS
    by_processor = True
    read_shape = staticmethod(matrix_sizes)
    figures = (
        "{dtype} matrices; forward + backward, alternating; median of {rounds} of {clock} in ms, "
        f"and over {OURS}'s."
    )

    def check(self, options: SmallOptions) -> SmallOptions:
        functions = named("function", options.functions, FUNCTIONS)
        return super().check(
            replace(options, functions=functions, peers=installed_peers(*functions))
        )

    def cases(self, point: str) -> list[Case]:
        return [case for name in self.options.functions for case in self._cases(name)]

    def _cases(self, name: str) -> Iterator[Case]:
        function = FUNCTIONS[name]
        for way, call in plain_ways(function, self.options.dtype):
            yield Case(
                name=f"{name}: {way}",
                kind="covpool" if way.startswith(OURS) else "peer",
                prepare=partial(_step, call),
                facts={"function": name, "case": way},
            )
        for opened in self.peers:
            for row in opened.peer.rows_of(name):
                yield opened.case(
                    row,
                    lambda call, matrix: _step(partial(_call, call, function.arguments), matrix),
                    name=f"{name}: {opened.peer.name}",
                    facts={"function": name, "case": opened.peer.name},
                )

    def inputs(self, point: str, batch: int | None = None) -> tuple[Tensor]:
        (count, size), own = matrix_sizes(point), self.options
        matrix = positive_definite(batch or count, size, seed=own.seed)
        return (matrix.to(own.device, getattr(torch, own.dtype)),)

    def complete(self, point: str, rows: list[Record]) -> Record:
        for name in self.options.functions:
            same = [row for row in rows if row["function"] == name]
            compare(same, next(row for row in same if row["case"] == OURS), "over_ours")
        return {}

    @classmethod
    def tables(cls, record: Record) -> Iterator[Table]:
        yield tables.pivot(record["shape"], "function", "case", _cell, record["cases"])


def _cell(row: Row) -> str:
    own = row["case"] == OURS
    return f"{1e3 * row['median']:.3g}" + ("" if own else f" ({row['over_ours']:.2f})")


def _step(function: AnyFunction, matrix: Tensor) -> Step:
    """The gradient of the sum of all that the function gives."""

    def step() -> Tensor:
        leaf = matrix.detach().requires_grad_()
        found = function(leaf)
        parts = (found,) if isinstance(found, Tensor) else found
        loss = reduce(torch.add, (part.sum() for part in parts))
        return torch.autograd.grad(loss, leaf)[0]

    return step
