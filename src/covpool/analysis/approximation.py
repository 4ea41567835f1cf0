"""How well the kernels K fit 1/(λi − λj): the paper's Table 3."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import torch

from covpool.analysis.records import Record, check_dtype
from covpool.linalg.gradients.kernels import (
    Difference,
    Kernel,
    Lorentzian,
    Pade,
    PowerIteration,
    Taylor,
    Truncated,
)
from covpool.linalg.gradients.pade_coefficients import DENOMINATOR, NUMERATOR, SUM_RATIO

TABLE3_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
"""Eigenvalue ratios λj/λi of the paper's Table 3."""


def _geometric(ratio: Fraction, terms: int) -> Fraction:
    return (1 - ratio**terms) / (1 - ratio)


def _polynomial(coefficients: Sequence[str], x: Fraction) -> Fraction:
    value = Fraction(0)
    for coefficient in reversed(coefficients):
        value = value * x + Fraction(coefficient)
    return value


def _pade(kernel: Pade, x: Fraction) -> Fraction:
    if kernel.evaluation == "closed-form":
        return min(1 / (1 - x), Fraction(SUM_RATIO))
    return _polynomial(NUMERATOR, x) / _polynomial(DENOMINATOR, x)


def _lorentzian(kernel: Lorentzian, x: Fraction) -> Fraction:
    return (1 - x) / ((1 - x) ** 2 + Fraction(kernel.epsilon) ** 2)


FORMULAS: Mapping[type[Kernel], Callable[[Any, Fraction], Fraction]] = MappingProxyType(
    {
        Difference: lambda kernel, x: 1 / (1 - x),
        Truncated: lambda kernel, x: min(1 / (1 - x), Fraction(kernel.limit)),
        Taylor: lambda kernel, x: _geometric(x, kernel.degree + 1),
        Pade: _pade,
        PowerIteration: lambda kernel, x: _geometric(x, kernel.steps),
        Lorentzian: _lorentzian,
    }
)
"""K(1, x) of each kernel in rational arithmetic, for x below 1: its formula without rounding. For
power iteration, that of the larger eigenvalue's vector."""


@dataclass(frozen=True, kw_only=True)
class ApproximationError(Record):
    """|K(1, x) − 1/(1 − x)| of one kernel at each ratio x = λj/λi, λi being 1.

    Attributes:
        kernel: the kernel's title.
        dtype: of the ratios, and of `computed`.
        ratios: x, as the dtype has them.
        exact: 1/(1 − x).
        formula: the error of the kernel's formula, in rational arithmetic: what the approximation
            costs. None for a kernel that has no row in `FORMULAS`.
        computed: the error of the kernel as it is computed in the dtype: that of the formula, and
            of rounding.
        nearest: the error of the dtype's number nearest to 1/(1 − x): where `computed` equals it,
            no other number of the dtype would be better.
    """

    kernel: str
    dtype: torch.dtype
    ratios: tuple[float, ...]
    exact: tuple[float, ...]
    formula: tuple[float, ...] | None
    computed: tuple[float, ...]
    nearest: tuple[float, ...]


def approximation_error(
    kernel: Kernel, ratios: Sequence[float] = TABLE3_RATIOS, *, dtype: torch.dtype = torch.float64
) -> ApproximationError:
    """How far a kernel is from 1/(λi − λj), over ratios of eigenvalues: the paper's Table 3.

    The error is absolute, for λi = 1, against 1/(1 − x) in rational arithmetic; divided by
    1/(1 − x) it is relative. The paper's cells for small ratios (9e-19) are below what float64 can
    hold beside a value near 1: there they are errors of the formula at a higher precision, with
    which `formula` is to be compared, and the cells near x = 1 (8e-13, 3e-10) are rounding.

    Args:
        kernel: with its constants: `Taylor(degree=100)`; `Pade(evaluation="coefficients")` is P/Q
            as the paper has it, `Pade()` the closed form that `svd-pade` uses.
        ratios: x, from 0 to below 1.
        dtype: float32 or float64.

    What it is not: the error of a gradient, see `covpool.analysis.fidelity`.

    Raises:
        ValueError: a ratio that is not in [0, 1) in the dtype, or another dtype.

    Source: Song, Sebe, Wang, ICCV 2021, Table 3.
    """
    check_dtype("approximation_error", dtype)
    x = torch.tensor(list(ratios), dtype=dtype)
    if not ((x >= 0) & (x < 1)).all():
        raise ValueError(f"approximation_error needs ratios in [0, 1) in {dtype}, got {ratios}")
    formula = FORMULAS.get(type(kernel))
    exact, of_formula, computed, nearest = [], [], [], []
    for ratio in x:
        rational = Fraction(ratio.item())
        right = 1 / (1 - rational)
        value = kernel.matrix(torch.stack([ratio, torch.ones_like(ratio)]))[1, 0].item()
        exact.append(float(right))
        computed.append(float(abs(Fraction(value) - right)))
        rounded = torch.tensor(float(right), dtype=dtype).item()
        nearest.append(float(abs(Fraction(rounded) - right)))
        if formula is not None:
            of_formula.append(float(abs(formula(kernel, rational) - right)))
    return ApproximationError(
        kernel=kernel.title,
        dtype=dtype,
        ratios=tuple(x.tolist()),
        exact=tuple(exact),
        formula=tuple(of_formula) if formula is not None else None,
        computed=tuple(computed),
        nearest=tuple(nearest),
    )
