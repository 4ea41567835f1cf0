"""Halley's iteration for the square root, which converges cubically."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.forwards.coupled import NewtonSchulz
from covpool.linalg.functions import SQRT, ScalarFunction
from covpool.linalg.spectrum import symmetric_part
from covpool.linalg.transforms import refuse_onnx

STARTS = ("matrix", "identity")


@dataclass(frozen=True, kw_only=True)
class Halley(NewtonSchulz):
    """X ← X (X² + 3A) (3X² + A)⁻¹ for the square root of A = Σ/tr(Σ), and its gradient.

    In the coupled form P = Z Y, G = (3I + P)(I + 3P)⁻¹, Y ← Y G, Z ← G Z, from Y₀ = A, Z₀ = I:
    Y is the iterate from X₀ = A and Z⁻¹ the one from X₀ = I. The root is √tr(Σ) times either.

    It approximates: from A small eigenvalues grow by 3 a step (Newton-Schulz: by 1.5), so that
    after 5 steps 1e-2, 1e-4 and 1e-6 of the trace give 1.000, 0.985 and 0.238 of their root; from I
    they are too large instead, 1.016 and 4.2 times at 1e-4 and 1e-6, and zero gives 3⁻⁵ √tr(Σ).
    The zero matrix gives zero, with zero gradient.
    """

    start: str = "matrix"
    """X₀: "matrix", A, or "identity", I."""

    functions: ClassVar[frozenset[str] | None] = frozenset({SQRT.name})
    iterated_channels: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise ValueError(f"start must be {' or '.join(STARTS)}, got {self.start!r}")

    @property
    def title(self) -> str:
        return "Halley"

    def product_steps(self, dtype: torch.dtype) -> None:
        return None

    def normalised(
        self, a: Tensor, inverse: bool, multiply: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        refuse_onnx("Cholesky factorisation")
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        y, z = a, identity
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
        z, p = torch.ones_like(normalised), normalised
        for _ in range(self.iterations):
            g = (3 + p) / (1 + 3 * p)
            z, p = z * g, p * g * g
        root = 1 / z if self.start == "identity" else normalised * z
        return torch.where(zero, 0, trace.sqrt() * root)

    def _divided_difference(self, function: ScalarFunction, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and f[xᵢ, xⱼ] of x (*, m) with trace 1.

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
