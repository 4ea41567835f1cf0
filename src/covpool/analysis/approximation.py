"""How well the kernels K fit 1/(λi − λj): the paper's Table 3."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from covpool.analysis.records import Record, check_dtype
from covpool.linalg.gradients.kernels import Kernel

TABLE3_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
"""Eigenvalue ratios λj/λi of the paper's Table 3."""


@dataclass(frozen=True, kw_only=True)
class ApproximationError(Record):
    """|K(1, x) − 1/(1 − x)| of one kernel at each ratio x = λj/λi, λi being 1.

    Attributes:
        kernel: the kernel's title.
        dtype: of the ratios, and of `computed`.
        ratios: x, as the dtype has them.
        exact: 1/(1 − x).
        formula: the error of the kernel's formula, in rational arithmetic: what the approximation
            costs. None for a kernel whose `rational` is not given.
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
    exact, of_formula, computed, nearest = [], [], [], []
    for ratio in x:
        rational = Fraction(ratio.item())
        right = 1 / (1 - rational)
        value = kernel.matrix(torch.stack([ratio, torch.ones_like(ratio)]))[1, 0].item()
        exact.append(float(right))
        computed.append(float(abs(Fraction(value) - right)))
        rounded = torch.tensor(float(right), dtype=dtype).item()
        nearest.append(float(abs(Fraction(rounded) - right)))
        formula = kernel.rational(rational)
        if formula is not None:
            of_formula.append(float(abs(formula - right)))
    return ApproximationError(
        kernel=kernel.title,
        dtype=dtype,
        ratios=tuple(x.tolist()),
        exact=tuple(exact),
        formula=tuple(of_formula) if len(of_formula) == len(exact) else None,
        computed=tuple(computed),
        nearest=tuple(nearest),
    )
