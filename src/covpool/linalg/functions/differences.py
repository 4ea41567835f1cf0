"""What divided differences are made of, elementwise: guarded quotients, logarithms, mixtures.

The numbers are eigenvalues a ≥ b ≥ c.
"""

import torch
from torch import Tensor

NEAR_TIE = 1 / 32
"""Relative spread of three eigenvalues below which their divided difference is a Taylor series.

The quotient of first differences loses the digits of 1/spread, 1.5 of 16 here; the series of
`TAYLOR_TERMS` terms has converged to 1e-17 there."""

TAYLOR_TERMS = 12


def guarded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where x is zero, and x with 1 put there. NaN is not zero: it stays."""
    zero = x == 0
    return zero, x.masked_fill(zero, 1)


def mix(a: Tensor, b: Tensor, c: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """f[a, b, c] of f[b, b, a] and f[b, b, c], a ≥ b ≥ c."""
    tied, spread = guarded(a - c)
    return torch.where(tied, above, (a - b) / spread * above + (b - c) / spread * below)


def log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """log(a/b) for a ≥ b > 0."""
    relative_gap = (a - b) / a
    near = relative_gap < 0.5
    return torch.where(near, -torch.log1p(-torch.where(near, relative_gap, 0)), torch.log(a / b))


def log_difference(a: Tensor, b: Tensor) -> Tensor:
    """log[a, b] for a ≥ b > 0."""
    gap = a - b
    tied, gap = guarded(gap)
    return torch.where(tied, 1 / a, log_ratio(a, b) / gap)


def by_rank(
    no_a: Tensor, no_b: Tensor, no_c: Tensor, full: Tensor, two: Tensor, one: Tensor
) -> Tensor:
    """The difference of three numbers by how many of them are zero."""
    return torch.where(no_a, 0, torch.where(no_b, one, torch.where(no_c, two, full)))


def taylor(a: Tensor, b: Tensor, c: Tensor, mean: Tensor, coefficients: list[Tensor]) -> Tensor:
    """Σ f⁽ᵐ⁺²⁾(μ)/(m+2)! μᵐ⁺² · h_m, h_m the complete homogeneous symmetric polynomial of degree m.

    The arguments of h_m are the relative distances from the mean μ, whose sum is zero.
    """
    x, y, z = a / mean - 1, b / mean - 1, c / mean - 1
    second, third = -(x * y + y * z + z * x), x * y * z
    previous, current, following = torch.zeros_like(x), torch.ones_like(x), torch.zeros_like(x)
    total = coefficients[0] * current
    for coefficient in coefficients[1:]:
        total = total + coefficient * following
        previous, current, following = (
            current,
            following,
            second * current + third * previous,
        )
    return total
