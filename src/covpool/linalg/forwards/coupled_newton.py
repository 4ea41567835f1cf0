"""The coupled Newton iteration for inverse p-th roots, with a minimax step where it gains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from covpool.linalg.spectrum import frobenius_norm, real_dtype, symmetric_part

LEAST_PLANNED = 0.1
"""A step serves eigenvalues from this share of the largest on. Serving lower ones too takes fewer
steps, but makes the largest ones so small in between that the rounding errors, as the residual
shows, are 20 to 100 times those of an eigendecomposition. With 0.1 they are as small as those of
Newton's iteration, and a condition number of 1e12 takes 21 steps (p = 4) where it takes 39."""

SQUARINGS = 3
"""‖A^(2^k)‖_F^(1/2^k) bounds the largest eigenvalue: it is too large by n^(1/2^(k+1)) at most."""


def largest_eigenvalue_bound(matrix: Tensor) -> Tensor:
    """An upper bound of the largest |λ| by matrix products: (*, n, n) → (*, 1, 1).

    ‖A⁸‖_F^(1/8), so that it exceeds the largest |λ| by the factor n^(1/16) at most: 1.30 at n = 64,
    1.54 at n = 1024. It is 0 for the zero matrix.
    """
    bound, power = torch.ones_like(matrix[..., :1, :1]).real, matrix
    for index in range(SQUARINGS + 1):
        norm = frobenius_norm(power, (-2, -1))
        bound = bound * norm**0.5**index
        power = power / torch.where(norm == 0, 1, norm)
        if index < SQUARINGS:
            power = power @ power
    return bound


def power(factor: list[Tensor], exponent: int) -> list[Tensor]:
    """The power of a matrix by squaring, with its derivatives, see `_times`."""
    found = None
    while True:
        if exponent & 1:
            found = factor if found is None else _times(found, factor)
        exponent >>= 1
        if not exponent:
            return factor if found is None else found
        factor = _times(factor, factor)


def _times(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """A B of matrices with their derivatives along k directions, by the product rule.

    Of the 2ᵏ matrices, the one at index s is the mixed derivative along the directions whose bits
    are set in s, so that index 0 has the matrix itself.
    """
    products = []
    for mask in range(len(left)):
        parts = [part for part in range(mask + 1) if part & mask == part]
        products.append(sum(left[part] @ right[mask - part] for part in parts))
    return products


@dataclass(frozen=True)
class InverseRootIteration:
    """M₀ = A, X₀ = I; T = α I − β M, X ← X T, M ← Tᵖ M for each step: X → A^(−1/p).

    Newton's iteration has α = 1 + 1/p and β = 1/p (Guo, Higham, "A Schur-Newton method for the
    matrix pth root and its inverse", SIAM J. Matrix Anal. Appl. 28, 2006; Iannazzo, "On the Newton
    method for the matrix pth root", ibid., for the coupled form).
    """

    root: int
    """p."""

    steps: tuple[tuple[float, float], ...]
    """(α, β) of each."""

    def derivative(self, matrix: Tensor, directions: Sequence[Tensor]) -> Tensor:
        """The k-th derivative of X along k directions, and X itself where there are none.

        A step is a polynomial, so the product rule gives its derivative, and that converges as X
        does: the first one to the solution of Σₖ Xᵏ dX X^(p−1−k) = −Xᵖ H Xᵖ. It takes 3ᵏ times the
        products of X.

        Args:
            matrix: A, (*, n, n), Hermitian, its spectrum in (0, 1].
            directions: Hermitian matrices H (*, n, n).
        """
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        m = [torch.zeros_like(matrix) for _ in range(1 << len(directions))]
        m[0] = matrix
        for index, direction in enumerate(directions):
            m[1 << index] = direction
        x = [identity.expand_as(matrix), *(torch.zeros_like(matrix) for _ in m[1:])]
        for index, (alpha, beta) in enumerate(self.steps):
            factor = [alpha * identity - beta * m[0], *(-beta * part for part in m[1:])]
            product = _times(x, factor) if index else factor
            x = [symmetric_part(part) for part in product]
            if index < len(self.steps) - 1:
                raised = power(factor, self.root)
                m = [symmetric_part(part) for part in _times(raised, m)]
        return x[-1]


def plan_inverse_root(
    root: int, size: int, condition: float | None, dtype: torch.dtype
) -> InverseRootIteration:
    """The iteration for p = `root`, n × n matrices, n = `size`, over `largest_eigenvalue_bound`.

    Newton's step multiplies a small eigenvalue by (1 + 1/p)ᵖ, about e. A step here takes the (α, β)
    that bring [ℓ, 1], ℓ being the least eigenvalue or `LEAST_PLANNED`, nearest to 1: they are
    Newton's in the end, and multiply it by 5.7 (p = 4) in the beginning.

    Args:
        condition: eigenvalues down to this part of the largest converge; None: eps^(−3/4).
    """
    eps = torch.finfo(real_dtype(dtype)).eps
    condition = eps**-0.75 if condition is None else condition
    least = size ** -(0.5 ** (SQUARINGS + 1)) / condition
    steps: list[tuple[float, float]] = []
    # What a step of Newton's makes of the last deviation d is (p + 1) d²/2.
    while 1 - least > math.sqrt(2 * eps / (root + 1)):
        alpha, beta = _minimax_step(root, max(least, LEAST_PLANNED))
        steps.append((alpha, beta))
        least = min(x * (alpha - beta * x) ** root for x in (least, 1.0))
    return InverseRootIteration(root, (*steps, (1 + 1 / root, 1 / root)))


def _minimax_step(root: int, least: float) -> tuple[float, float]:
    """(α, β) with x (α − β x)ᵖ between 1 and the same value at both ends, on [least, 1].

    That is least · (α − β least)ᵖ = (α − β)ᵖ, and 1 at the maximum x = α/(β (p + 1)).
    """
    logarithm = math.log(least)
    # β/α = (1 − end)/(1 − least end), end = least^(1/p); nothing cancels where least is close to 1.
    slope = math.expm1(logarithm / root) / math.expm1(logarithm * (1 + 1 / root))
    alpha = ((root + 1) * slope) ** (1 / root) * (1 + 1 / root)
    return alpha, alpha * slope
