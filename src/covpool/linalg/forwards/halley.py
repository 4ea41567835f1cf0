"""Halley's iteration for the square root, which converges cubically."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.forwards.coupled import UnrolledIteration, shift_above_zero
from covpool.linalg.functions import SQRT, ScalarFunction
from covpool.linalg.gradients.base import Gradient
from covpool.linalg.spectrum import real_part, symmetric_part

STARTS = ("matrix", "identity")


@dataclass(frozen=True, kw_only=True)
class Halley(UnrolledIteration):
    """X ← X (X² + 3A) (3X² + A)⁻¹ for the square root of A = Σ/tr(Σ), and its gradient.

    In the coupled form P = Z Y, G = (3I + P)(I + 3P)⁻¹, Y ← Y G, Z ← G Z, from Y₀ = A, Z₀ = I:
    Y is the iterate from X₀ = A and Z⁻¹ the one from X₀ = I. The root is √tr(Σ) times either.

    It approximates: from A small eigenvalues grow by 3 a step (Newton-Schulz: by 1.5), so that
    after 5 steps 1e-2, 1e-4 and 1e-6 of the trace give 1.000, 0.985 and 0.238 of their root; from I
    they are too large instead, 1.016 and 4.2 times at 1e-4 and 1e-6, and zero gives 3⁻⁵ √tr(Σ).
    The zero matrix gives zero, with zero gradient.

    Its own gradient is that of its steps; the Lyapunov equation's is that of an exact root, at the
    approximate F, resolved down to 3⁻⁵ √tr(Σ), from A down to five times that. Measured, from
    A and from I:

        κ                                     1e1    1e2    1e4    1e6    1e8
        value, to √A, from A                  7e-15  2e-7   0.0026 0.0044 0.0039
        its own gradient, to the exact one    2e-13  7e-6   0.12   0.55   0.93
        Lyapunov equation, to the exact one   1e-14  7e-7   0.039  0.68   0.95
        value, to √A, from I                  7e-15  2e-7   0.0032 0.013  0.019
        its own gradient, to the exact one    2e-13  7e-6   0.21   0.80   0.97
        Lyapunov equation, to the exact one   1e-14  7e-7   0.11   0.73   0.96
    """

    start: str = "matrix"
    """X₀: "matrix", A, or "identity", I."""

    functions: ClassVar[frozenset[str] | None] = frozenset({SQRT.name})
    least_dtype: ClassVar[torch.dtype] = torch.float64
    """Roundings at small eigenvalues are multiplied by 3ᵏ in the root and by as much again in the
    gradient: in float32 the Lyapunov equation was off by 14 % where κ is 1e8."""
    accurate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise ValueError(f"start must be {' or '.join(STARTS)}, got {self.start!r}")

    @property
    def title(self) -> str:
        return "Halley"

    def differentiated_by(self, gradient: Gradient) -> bool:
        return gradient.solved_at == self or super().differentiated_by(gradient)

    def norm(self, eigenvalues: Tensor) -> Tensor:
        return eigenvalues.sum(-1, keepdim=True).clamp_min(0)

    def least_root(self, dtype: torch.dtype) -> float:
        # From I no root is below; from A roots r are right by tanh(3ᵏ r).
        return (1 if self.start == "identity" else 5) * 3.0**-self.iterations

    def roots(self, matrix: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        trace = self.norm(real_part(matrix.diagonal(dim1=-2, dim2=-1)))
        return self.iterate(matrix, inverse)[0], trace.sqrt()[..., None]

    def normalised(
        self, a: Tensor, inverse: bool, multiply: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        # P has a pole at −1/3, and grows by 9 a step.
        y, z = a + shift_above_zero(a.detach(), 9.0**-self.iterations) * identity, identity
        for _ in range(self.iterations):
            p = symmetric_part(multiply(z, y))
            factor = torch.linalg.cholesky_ex(identity + 3 * p)[0]
            step = symmetric_part(torch.cholesky_solve(3 * identity + p, factor))
            y, z = multiply(y, step), multiply(step, z)
        if self.start == "identity":
            # torch.cholesky_inverse has a wrong derivative in forward mode (2.15).
            factor = torch.linalg.cholesky_ex(symmetric_part(z))[0]
            y = torch.cholesky_solve(identity.expand_as(z), factor)
        return symmetric_part(y), None

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        normalised, trace, zero = self._normalise(eigenvalues)
        return torch.where(zero, 0, trace.sqrt() * self.scalar_root(normalised))

    def scalar_root(self, x: Tensor) -> Tensor:
        z, p = torch.ones_like(x), x
        for _ in range(self.iterations):
            g = (3 + p) / (1 + 3 * p)
            z, p = z * g, p * g * g
        return 1 / z if self.start == "identity" else x * z

    def scalar_inverse(self, x: Tensor) -> Tensor:
        return 1 / self.scalar_root(x)

    def divided_difference(self, function: ScalarFunction, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class.

        g[a, b] = −8 p[a, b]/((1 + 3pₐ)(1 + 3p_b)); z g and p g² by the product rule.
        """
        p, z = x, torch.ones_like(x)
        of_p = torch.ones_like(x[..., :, None] * x[..., None, :])
        of_z = torch.zeros_like(of_p)
        for _ in range(self.iterations):
            below = 1 / (1 + 3 * p)
            g = (3 + p) * below
            of_g = -8 * of_p * below[..., :, None] * below[..., None, :]
            of_z = z[..., :, None] * of_g + of_z * g[..., None, :]
            sums = g[..., :, None] + g[..., None, :]
            of_p = p[..., :, None] * of_g * sums + of_p * (g * g)[..., None, :]
            z, p = z * g, p * g * g
        if self.start == "identity":
            return 1 / z, -of_z / (z[..., :, None] * z[..., None, :])
        f = x * z
        total = f[..., :, None] + f[..., None, :]
        both_zero = total == 0
        quotient = (of_p * x[..., None, :] + p[..., :, None]) / torch.where(both_zero, 1, total)
        return f, torch.where(both_zero, z[..., :, None], quotient)
