"""The square root to rounding by matrix products alone; errors are measured as in `iterations`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.iterations import RootIteration
from covpool.linalg.lyapunov import sign_steps
from covpool.linalg.minimax_coefficients import SIGN_QUINTICS
from covpool.linalg.scalar import INV_SQRT, SQRT
from covpool.linalg.spectrum import refuse_onnx


@dataclass(frozen=True, kw_only=True)
class MinimaxNewtonSchulz(RootIteration):
    """The coupled Newton-Schulz iteration with minimax polynomials in place of (3I − Z Y)/2.

    Y₀ = A/‖A‖, Z₀ = I; T = a I + b Z Y + c (Z Y)², Y ← Y T, Z ← T Z; the result is √‖A‖ · Y
    (Higham, Functions of Matrices, SIAM 2008, chapter 6, for the coupling). Where Newton and Schulz
    take (a, b, c) = (3/2, −1/2, 0) in every step, which multiplies a small root by 1.5, the
    quintics of `minimax_coefficients` multiply it by 4.26, and each is the best for what the steps
    before have left (Chen, Chow, "A stable scaling of Newton-Schulz for improving
    the sign function computation of a Hermitian matrix", 2014; Amsel, Persson, Musco, Gower, "The
    Polar Express", 2025). Their number follows from κ and the precision alone: 10 for 1e8 in
    float64, 36 products of n × n matrices; the Newton-Schulz iteration takes 27 steps, 80 products.

    The error is that of rounding where all eigenvalues lie above ‖A‖_F/κ. ‖A‖_F ≤ √n ‖A‖₂, so the
    default 1e8 is enough for any matrix of condition number up to 1e6 and n up to 10,000. Smaller
    eigenvalues get something between 0 and their root, too little by at most 2.8e-6 √‖A‖, and zero
    gets 0. Medians over random matrices, in float64, the default, and float32; a single one, which
    another processor sums in another order, may be off several times as much:

        κ(A)                                  1e1      1e2      1e4      1e6      1e8
        value                                 7e-15    1e-14    3e-14    5e-14    2e-13
        gradient                              1e-14    1e-14    6e-14    5e-12    4e-10
        value, float32                        1.5e-6   2.5e-6   5e-6     1.5e-5   5e-5
        gradient, float32                     2.5e-6   3e-6     1e-5     8e-4     0.1

    So float32 arithmetic does not reach 1e-6 at any condition number; it is for devices without
    float64 (`compute_dtype=torch.float32`), and resolves eigenvalues down to 1e-6 ‖A‖ at best.

    The gradient is exact at ties. At singular matrices it is finite and, along changes that keep
    the rank, right to about 5 eps κ, 1e-7 at the default. Pairs of two zero eigenvalues get 0, as
    in `DividedDifferences`, but for roundings of the order of 0.05/√‖A‖. Where eigenvalues are
    small and not zero, no entry of the Loewner matrix exceeds 6e4/√‖A‖. Second derivatives are
    right where no eigenvalue lies below ‖A‖/κ, and refused elsewhere (NaN inside torch.func). The
    zero matrix gives zero, with zero gradient.

    The inverse root is Z/√‖A‖: 1/√λ to about 1e-11 at κ(A) = 1e6 (gradient 2e-11), at most
    9.7e4/√‖A‖, which is what zero gives where singular matrices are not refused.

    Eigenvalues that rounding has made negative: see `_shift`.
    """

    condition: float = 1e8
    """κ: eigenvalues down to ‖A‖/κ are resolved."""

    functions: ClassVar[frozenset[str]] = frozenset({SQRT.name, INV_SQRT.name})
    least_dtype: ClassVar[torch.dtype] = torch.float64
    accurate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        largest = SIGN_QUINTICS[0][0] ** -2
        if isinstance(self.condition, bool | str) or not 1 <= self.condition <= largest:
            raise ValueError(
                f"condition must be a number from 1 to {largest:.0e}, got {self.condition!r}"
            )

    @property
    def title(self) -> str:
        return "Newton-Schulz, minimax"

    def least_root(self, dtype: torch.dtype) -> float:
        # Below the rounding errors of the iteration itself there is nothing to resolve.
        return max(1 / self.condition, 8 * torch.finfo(dtype).eps) ** 0.5

    def steps(self, dtype: torch.dtype) -> int:
        return len(sign_steps(self.least_root(dtype), dtype))

    def scalar_root(self, x: Tensor) -> Tensor:
        return x * self.scalar_inverse(x)

    def scalar_inverse(self, x: Tensor) -> Tensor:
        inverse = torch.ones_like(x)
        for a, b, c in sign_steps(self.least_root(x.dtype), x.dtype):
            product = x * inverse**2
            inverse = inverse * (a + product * (b + product * c))
        return inverse

    def normalised_roots(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor | None]:
        steps = sign_steps(self.least_root(x.dtype), x.dtype)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        y = x + self._shift(x, steps)[..., None, None] * identity
        z = None
        for index, (a, b, c) in enumerate(steps):
            product = y if z is None else z @ y
            factor = a * identity + b * product
            if c:
                factor = factor + c * (product @ product)
            y = y @ factor
            if inverse or index < len(steps) - 1:
                z = factor if z is None else factor @ z
        return y, z if inverse else None

    @staticmethod
    def _shift(x: Tensor, steps: Sequence[tuple[float, float, float]]) -> Tensor:
        """The multiple of I that keeps the iteration from growing at negative eigenvalues.

        A polynomial step multiplies −ε as it multiplies ε, and below zero nothing bounds it. The
        slope at 0 of all steps together is Π a, so −0.05/(Π a)² and above is harmless. Where a
        Cholesky factorisation finds lower ones (rounding errors of float32 input), the smallest
        rung of a ladder of shifts that lifts them is added; above the ladder, NaN.
        """
        refuse_onnx("Cholesky factorisation")
        harmless = 0.05 / math.prod([step[0] for step in steps]) ** 2
        rungs = max(1, math.ceil(math.log(0.1 / harmless, 8)))
        ladder = [0.0, *(harmless * 8**k for k in range(rungs + 1))]
        shifts = torch.tensor(ladder, dtype=x.dtype, device=x.device)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        lifted = x[..., None, :, :] + (shifts + harmless)[:, None, None] * identity
        failed = torch.linalg.cholesky_ex(lifted).info != 0
        lowest = torch.where(failed, torch.inf, shifts).amin(-1)
        return torch.where(lowest.isfinite(), lowest, torch.nan)
