"""Coupled iterations for the square root and its inverse, with Newton's or minimax polynomials."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.autograd.product import multiplication
from covpool.linalg.checks import require_integer
from covpool.linalg.forwards.base import Iteration, RootIteration, Steps
from covpool.linalg.functions import INV_SQRT, SQRT, ScalarFunction
from covpool.linalg.gradients.base import Gradient, Loewner
from covpool.linalg.minimax_coefficients import SIGN_QUINTICS
from covpool.linalg.sign import NEWTON_SCHULZ_STEP, sign_steps
from covpool.linalg.spectrum import real_dtype, real_part
from covpool.linalg.transforms import refuse_onnx

RESOLVED_FLOAT32 = 3e-4
"""The smallest singular value of the features, relative to their norm, that float32 resolves."""

SHIFT_FLOAT32 = 3e-7
"""In float32 rounding makes eigenvalues negative, at which the minimax iteration grows; this
multiple of the trace, added to all, keeps them above zero."""


def iterate_coupled(
    y: Tensor,
    steps: Sequence[tuple[float, float, float]],
    inverse: bool,
    multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> tuple[Tensor, Tensor | None]:
    """Z₀ = I; T = a I + b Z Y + c (Z Y)², Y ← Y T, Z ← T Z for each step (a, b, c): Y and Z.

    Y → √Y₀ and Z → Y₀^(−1/2) (Higham, Functions of Matrices, SIAM 2008, chapter 6). The last Z is
    computed where it is asked for.
    """
    identity = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    z = None
    for index, (a, b, c) in enumerate(steps):
        zy = y if z is None else multiply(z, y)
        factor = a * identity + b * zy
        if c:
            factor = factor + c * multiply(zy, zy)
        y = multiply(y, factor)
        if inverse or index < len(steps) - 1:
            z = factor if z is None else multiply(factor, z)
    return y, z if inverse else None


def shift_above_zero(x: Tensor, harmless: float) -> Tensor:
    """The multiple (*, 1, 1) of I that keeps an iteration from growing at negative eigenvalues.

    Where a Cholesky factorisation of x (*, n, n), of norm 1, finds eigenvalues below −`harmless`
    (rounding errors of half-precision or float32 input), the smallest rung of a ladder of shifts
    that lifts them; above the ladder, NaN.
    """
    refuse_onnx("Cholesky factorisation")
    rungs = max(1, math.ceil(math.log(0.1 / harmless, 8)))
    ladder = [0.0, *(harmless * 8**k for k in range(rungs + 1))]
    shifts = torch.tensor(ladder, dtype=real_dtype(x.dtype), device=x.device)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    lifted = x[..., None, :, :] + (shifts + harmless)[:, None, None] * identity
    failed = torch.linalg.cholesky_ex(lifted).info != 0
    lowest = torch.where(failed, torch.inf, shifts).amin(-1)
    return torch.where(lowest.isfinite(), lowest, torch.nan)[..., None, None]


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

    Eigenvalues that rounding has made negative: see `shift_above_zero`.
    """

    condition: float = 1e8
    """κ: eigenvalues down to ‖A‖/κ are resolved."""

    functions: ClassVar[frozenset[str] | None] = frozenset({SQRT.name, INV_SQRT.name})
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

    def product_steps(self, dtype: torch.dtype) -> tuple[Steps, float]:
        if real_dtype(dtype) == torch.float64:
            return sign_steps(self.least_root(dtype), dtype), 0.0
        return sign_steps(RESOLVED_FLOAT32, dtype), SHIFT_FLOAT32

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
        # A polynomial step multiplies −ε as it multiplies ε, and below zero nothing bounds it. The
        # slope at 0 of all steps together is Π a, so −0.05/(Π a)² and above is harmless.
        harmless = 0.05 / math.prod([step[0] for step in steps]) ** 2
        y = x + shift_above_zero(x, harmless) * identity
        return iterate_coupled(y, steps, inverse)


@dataclass(frozen=True, kw_only=True)
class UnrolledIteration(Iteration, Gradient):
    """A coupled iteration for the root of A = Σ/tr(Σ) and its inverse, and its steps' derivative.

    Y and Z are functions of A, so on the spectrum the iteration is a scalar recursion f, and its
    gradient is f's divided difference, for which there is a recursion too: a few operations on n²
    numbers for each step, where the gradient in matrix products takes several of n³. The zero
    matrix gives zero, with zero gradient.
    """

    iterations: int = 5
    """Steps of the iteration; iSQRT-COV takes 5, SVD-Newton the gradient of 10."""

    least_dtype: ClassVar[torch.dtype] = torch.float32
    smooth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_integer("iterations", self.iterations, 1)

    def steps(self, dtype: torch.dtype) -> int:
        return self.iterations

    @abstractmethod
    def normalised(
        self, a: Tensor, inverse: bool, multiply: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The root of a matrix of trace 1 and, if asked, its inverse."""

    @abstractmethod
    def divided_difference(self, function: ScalarFunction, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and f[xᵢ, xⱼ] of x (*, m) with trace 1, to rounding, at ties too."""

    def iterate(self, matrix: Tensor, inverse: bool) -> tuple[Tensor, Tensor | None]:
        """F and, if asked, F⁻¹ in matrix products, differentiable by autograd: (*, n, n) each."""
        # √(c A) = √c √A for any constant c, so c takes the scale out of reach of overflow.
        scale = real_part(matrix.detach().diagonal(dim1=-2, dim2=-1)).sum(-1)[..., None, None]
        zero = scale <= 0
        scale = torch.where(zero, 1, scale)
        scaled = matrix / scale
        trace = real_part(scaled.diagonal(dim1=-2, dim2=-1)).sum(-1)[..., None, None]
        trace = torch.where(zero, 1, trace)
        y, z = self.normalised(scaled / trace, inverse, multiplication(matrix))
        norm = (trace * scale).sqrt()
        return torch.where(zero, 0, norm * y), None if z is None else torch.where(zero, 0, z / norm)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        normalised, trace, zero = self._normalise(eigenvalues)
        value, divided_difference = self.divided_difference(function, normalised)
        slope = divided_difference.diagonal(dim1=-2, dim2=-1)
        scale = torch.where(zero, 0, trace.rsqrt())
        if function.inverse_of is not None:
            # The range alone is where a decomposing forward pass puts a value, but the iteration's
            # own is (3/2)^iterations at zero, and this is its derivative.
            scale = scale / trace
            by_trace = -(0.5 * value + slope * normalised) * scale
        else:
            by_trace = (0.5 * value - slope * normalised) * scale
        return Loewner(divided_difference.mul_(scale[..., None]), by_trace)

    @staticmethod
    def _normalise(eigenvalues: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        trace = eigenvalues.sum(-1, keepdim=True)
        zero = trace <= 0
        trace = torch.where(zero, 1, trace)
        return eigenvalues / trace, trace, zero


@dataclass(frozen=True, kw_only=True)
class NewtonSchulz(UnrolledIteration):
    """The coupled Newton-Schulz iteration for the square root and its inverse, and its gradient.

    With A = Σ/tr(Σ), Y₀ = A, Z₀ = I: T = (3I − Z Y)/2, Y ← Y T, Z ← T Z; the root is √tr(Σ) · Y
    (Li, Xie, Wang, Gao, "Towards faster training of global covariance pooling networks by
    iterative matrix square root normalization", CVPR 2018), the inverse root Z/√tr(Σ).

    It approximates: eigenvalues far below the trace have not converged. After 5 iterations an
    eigenvalue of 1e-2 of the trace gives 0.659 of its root, one of 1e-4 gives 0.0758; after 10
    iterations 1 − 3e-11 and 0.529. The inverse root has the same relative errors. The zero matrix
    gives zero, with zero gradient.
    """

    functions: ClassVar[frozenset[str] | None] = frozenset({SQRT.name, INV_SQRT.name})
    iterated_channels: ClassVar[int] = 24
    """0.75 to 0.95 of the decomposition's time at 8 to 24 channels, 0.8 to 1.3 at 48."""

    @property
    def title(self) -> str:
        return "Newton-Schulz"

    def product_steps(self, dtype: torch.dtype) -> tuple[Steps, float] | None:
        return [NEWTON_SCHULZ_STEP] * self.iterations, 0.0

    def normalised(
        self, a: Tensor, inverse: bool, multiply: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        return iterate_coupled(a, [NEWTON_SCHULZ_STEP] * self.iterations, inverse, multiply)

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        normalised, trace, zero = self._normalise(eigenvalues)
        # x z² is carried along: it becomes x z² t², with t = (3 − x z²)/2.
        z, square = torch.ones_like(normalised), normalised.clone()
        for _ in range(self.iterations):
            t = torch.rsub(square, 1.5, alpha=0.5)
            z, square = z.mul_(t), square.mul_(t).mul_(t)
        if function.inverse_of is not None:
            return torch.where(zero, 0, trace.rsqrt() * z)
        return torch.where(zero, 0, trace.sqrt() * normalised * z)

    def divided_difference(self, function: ScalarFunction, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class.

        s = x z² becomes s t², whose divided difference is S times tᵢtⱼ − (sᵢtᵢ + sⱼtⱼ)/2; that of
        z t is Z tⱼ − zᵢS/2. As f = x z has the square x s, f[xᵢ, xⱼ] = (sᵢ + xⱼS)/(fᵢ + fⱼ).
        """
        inverse = function.inverse_of is not None
        s, z = x, torch.ones_like(x)
        of_s = torch.ones_like(x[..., :, None] * x[..., None, :])
        of_z = torch.zeros_like(of_s)
        # In place: on a CPU fresh memory for a temporary costs more than the arithmetic.
        for _ in range(self.iterations):
            t = torch.rsub(s, 1.5, alpha=0.5)
            if inverse:
                of_z.mul_(t[..., None, :]).sub_(of_s * (0.5 * z)[..., :, None])
            half = 0.5 * s * t
            step = t[..., :, None] * t[..., None, :]
            of_s.mul_(step.sub_(half[..., :, None]).sub_(half[..., None, :]))
            z, s = z * t, s * t * t
        if inverse:
            return z, of_z
        f = x * z
        total = f[..., :, None] + f[..., None, :]
        both_zero = total == 0
        quotient = of_s.mul_(x[..., None, :]).add_(s[..., :, None])
        quotient.div_(total.masked_fill_(both_zero, 1))
        return f, torch.where(both_zero, z[..., :, None], quotient)
