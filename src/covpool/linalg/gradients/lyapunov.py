"""The gradient of an exact root F: P with F P + P F = G, on the spectrum or by matrix products.

The gradient of a matrix function F with F² = A solves this Lyapunov equation. It is the derivative
of the forward pass where F is the exact root (Song, Sebe, Wang, "Fast differentiable matrix square
root", ICLR 2022, and "Fast differentiable matrix square root and inverse square root", IEEE TPAMI
2023).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from covpool.linalg.functions import INV_SQRT, SQRT, ScalarFunction
from covpool.linalg.gradients.base import Gradient, Loewner
from covpool.linalg.sign import sign_quotient, sign_steps
from covpool.linalg.spectrum import symmetric_part

CUSHION = 1024
"""How many roundings per row the largest eigenvalue is kept below 1 by, a sixteenth at most. Of 126
nearly rank-one matrices of n = 2 to 64 in float32, 17 had a gradient of NaN without it, 1 with 64
on one of two processors, none with 256 on either."""


def solve_lyapunov(
    root: Tensor, right: Tensor, scale: Tensor, least: float, singular: bool
) -> Tensor:
    """P with F P + P F = G, in matrix products.

    sign([[F, G], [0, −F]]) = [[I, 2P], [0, −I]] (Roberts, "Linear model reduction and solution of
    the algebraic Riccati equation by use of the sign function", Int. J. Control 32, 1980). The
    composition p of `sign_steps` takes the place of the sign, so with F = V diag(f) Vᵀ

        P = V ( (pᵢ + pⱼ)/2 · 1/(fᵢ + fⱼ) ∘ VᵀGV ) Vᵀ,   pᵢ = p(fᵢ/scale),

    where pᵢ is 1 down to fᵢ = least · scale, and 0 at 0. 7 products a step.

    In a singular F, pairs (1, 0) of p need 1/fᵢ, and pairs (0, 0) get 0 by the convention of
    `DividedDifferences`. Both come of P ← 2 (S P + P S) − 3 S P S with S = p(F/scale), 2 products,
    which multiplies the entries by `null_factor`.

    Args:
        root: (*, n, n) symmetric, F, eigenvalues in [0, scale].
        right: (*, n, n) symmetric, G.
        scale: (*, 1, 1), positive.
        least: the least eigenvalue of F/scale that is resolved.
        singular: whether F may have lower ones.
    """
    # Above 1 the polynomials grow, early ones by 24 for a step: no rounding may lead there.
    inside = 1 + min(CUSHION * root.shape[-1] * torch.finfo(root.dtype).eps, 1 / 16)
    block, corner = root / (inside * scale), right
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    for a, b, c in sign_steps(least, root.dtype):
        square = block @ block
        commutator = block @ corner
        commutator = commutator - commutator.mH
        if c:
            # Antisymmetric times symmetric: the transpose differs in sign.
            quartic = square @ commutator
            slope = b * commutator + c * (quartic - quartic.mH)
            factor = a * identity + b * square + c * (square @ square)
        else:
            slope, factor = b * commutator, a * identity + b * square
        corner = symmetric_part(block @ slope + corner @ factor)
        block = symmetric_part(block @ factor)
    if singular:
        product = block @ corner
        corner = 2 * (product + product.mH) - 3 * symmetric_part(product @ block)
    return corner / (2 * inside * scale)


def null_factor(signs: Tensor) -> Tensor:
    """2 (pᵢ + pⱼ) − 3 pᵢ pⱼ of every pair: 1 at (1, 1), 2 at (1, 0), 0 at (0, 0)."""
    row, column = signs[..., :, None], signs[..., None, :]
    return 2 * (row + column) - 3 * row * column


class ApproximateRoot(Protocol):
    """What the rule needs of a root F = √s · r(A/s), r a scalar function on [0, 1].

    s is a norm of A ≥ 0 that no eigenvalue exceeds: the Frobenius norm, or the trace.
    """

    accurate: ClassVar[bool]
    """Whether r is the square root to rounding, so that the Lyapunov equation differentiates it."""

    def norm(self, eigenvalues: Tensor) -> Tensor:
        """s of (*, m) eigenvalues: (*, 1)."""
        ...

    def least_root(self, dtype: torch.dtype) -> float:
        """The least r that the Lyapunov equation has to resolve when computing in `dtype`."""
        ...

    def scalar_root(self, x: Tensor) -> Tensor:
        """r(x), elementwise."""
        ...

    def scalar_inverse(self, x: Tensor) -> Tensor:
        """1/r(x), elementwise."""
        ...

    def roots(self, matrix: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        """F (*, n, n), √s (*, 1, 1) and, if asked, F⁻¹, of matrices; without a gradient."""
        ...


@dataclass(frozen=True, kw_only=True)
class Lyapunov(Gradient):
    """P with F P + P F = G: the gradient of an exact root, at the F that `forward` gives."""

    forward: ApproximateRoot
    """The forward algorithm."""

    functions: ClassVar[frozenset[str] | None] = frozenset({SQRT.name, INV_SQRT.name})

    @property
    def title(self) -> str:
        return "Lyapunov equation"

    @property
    def exact(self) -> bool:
        """Whether it is the derivative of the forward pass."""
        return self.forward.accurate

    @property
    def solved_at(self) -> ApproximateRoot:
        return self.forward

    def solve(self, right: Tensor, root: Tensor, scale: Tensor) -> Tensor:
        """P of symmetric G and F, by matrix products; 0 where the scale √s is."""
        zero = scale == 0
        least = self.forward.least_root(root.dtype)
        singular = self.forward.accurate
        solution = solve_lyapunov(root, right, torch.where(zero, 1, scale), least, singular)
        return torch.where(zero, 0, solution)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        norm = self.forward.norm(eigenvalues)
        divisor = torch.where(norm == 0, 1, norm)
        roots = self.forward.scalar_root(eigenvalues / divisor)
        least = self.forward.least_root(eigenvalues.dtype)
        quotient = sign_quotient(roots, sign_steps(least, eigenvalues.dtype))
        signs = roots * quotient
        total = roots[..., :, None] + roots[..., None, :]
        both_zero = total == 0
        mean = torch.where(
            both_zero,
            quotient[..., :, None],
            (signs[..., :, None] + signs[..., None, :]) / torch.where(both_zero, 1, total),
        )
        if self.forward.accurate:
            mean = mean * null_factor(signs)
        loewner = 0.5 * mean * divisor[..., None].rsqrt()
        if function.inverse_of is not None:
            inverse = self.forward.scalar_inverse(eigenvalues / divisor) * divisor.rsqrt()
            loewner = -inverse[..., :, None] * inverse[..., None, :] * loewner
        return Loewner(torch.where(norm[..., None] == 0, 0, loewner))
