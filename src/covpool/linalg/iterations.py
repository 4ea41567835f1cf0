"""Forward algorithms that take the root of a matrix by matrix products, and their gradient rule.

Each is a scalar function r of the eigenvalues: with s the Frobenius norm of A, F = √s · r(A/s). So
it is written twice, on the spectrum (`values`) and in matrix products (`root`), and both give the
same F to rounding. The gradient P of a matrix function of this kind solves the Lyapunov equation
F P + P F = G, which is exact where F is the exact root (Song, Sebe, Wang, "Fast differentiable
matrix square root", ICLR 2022, and "Fast differentiable matrix square root and inverse square
root", IEEE TPAMI 2023).

Errors below are relative, in the Frobenius norm, for n = 64 and eigenvalues spaced evenly in
logarithm from 1 to 1/κ; gradients for a random G.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.algorithms import Loewner
from covpool.linalg.kernels import require_integer
from covpool.linalg.minimax_coefficients import SIGN_QUINTICS
from covpool.linalg.scalar import INV_SQRT, SQRT, ScalarFunction
from covpool.linalg.spectrum import (
    name_samples,
    symmetric_part,
    unreadable,
    without_autocast,
)

if TYPE_CHECKING:
    from covpool.linalg.methods import Method

NEWTON_SCHULZ_STEP = (1.5, -0.5, 0.0)
"""The cubic (3x − x³)/2, which squares what is left of 1 − x."""


def sign_steps(least: float, dtype: torch.dtype) -> list[tuple[float, float, float]]:
    """Odd quintics (a, b, c) whose composition p is 1 to rounding on [least, 1].

    p maps [0, 1] into [0, 1]; at 0 it is 0 and has the slope Π a.
    """
    steps = [row[1:] for row in SIGN_QUINTICS[_first_row(least) :]]
    if torch.finfo(dtype).eps < 1e-9:  # the last row leaves 2.7e-10
        steps.append(NEWTON_SCHULZ_STEP)
    return steps


def _first_row(least: float) -> int:
    return max(k for k, row in enumerate(SIGN_QUINTICS) if row[0] <= least)


def sign_quotient(x: Tensor, steps: Sequence[tuple[float, float, float]]) -> Tensor:
    """p(x)/x elementwise, with p the composition of the steps; finite at 0."""
    quotient = torch.ones_like(x)
    for a, b, c in steps:
        square = (x * quotient) ** 2
        quotient = quotient * (a + square * (b + square * c))
    return quotient


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
    block, corner = root / scale, right
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    for a, b, c in sign_steps(least, root.dtype):
        square = block @ block
        commutator = block @ corner
        commutator = commutator - commutator.mT
        if c:
            quartic = (
                square @ commutator
            )  # antisymmetric times symmetric: transposes differ in sign
            slope = b * commutator + c * (quartic - quartic.mT)
            factor = a * identity + b * square + c * (square @ square)
        else:
            slope, factor = b * commutator, a * identity + b * square
        corner = symmetric_part(block @ slope + corner @ factor)
        block = symmetric_part(block @ factor)
    if singular:
        product = block @ corner
        corner = 2 * (product + product.mT) - 3 * symmetric_part(product @ block)
    return corner / (2 * scale)


def null_factor(signs: Tensor) -> Tensor:
    """2 (pᵢ + pⱼ) − 3 pᵢ pⱼ of every pair: 1 at (1, 1), 2 at (1, 0), 0 at (0, 0)."""
    row, column = signs[..., :, None], signs[..., None, :]
    return 2 * (row + column) - 3 * row * column


class IterativeRoot(Function):
    """(A, iteration, rule, name, inverse) → F, √‖A‖ (not differentiable) and, if asked, Z = F⁻¹.

    The Lyapunov equation F dF + dF F = dA gives dF, and dZ = −Z dF Z. Forward mode is in a
    subclass, as torch.compile takes no function with a `jvp`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        matrix: Tensor, iteration: "RootIteration", rule: "Lyapunov", name: str, inverse: bool
    ) -> tuple[Tensor, ...]:
        return iteration.roots(matrix, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, ctx.rule, ctx.name, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        root, scale, *inverse = ctx.saved_tensors
        gradient = symmetric_part(grad_outputs[0])
        if inverse:
            with without_autocast(root):
                gradient = gradient - inverse[0] @ symmetric_part(grad_outputs[2]) @ inverse[0]
        return _solution(gradient, root, scale, ctx.rule, ctx.name), None, None, None, None


class _IterativeRootBothModes(IterativeRoot):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        root, scale, *inverse = ctx.saved_tensors
        change = _solution(symmetric_part(tangents[0]), root, scale, ctx.rule, ctx.name)
        if not inverse:
            return change, None
        with without_autocast(root):
            return change, None, -inverse[0] @ change @ inverse[0]


def _solution(gradient: Tensor, root: Tensor, scale: Tensor, rule: "Lyapunov", name: str) -> Tensor:
    compiling = torch.compiler.is_compiling()
    solution = LyapunovSolution if compiling else _LyapunovSolutionBothModes
    return solution.apply(gradient, root, scale, rule, name)


class LyapunovSolution(Function):
    """(G, F, √‖A‖, rule, name) → P with F P + P F = G; 0 where A is zero.

    With the cotangent H and Q the solution for H, G receives Q and F receives −(QP + PQ). That is
    the second derivative where F is the exact root; elsewhere it is refused.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor, root: Tensor, scale: Tensor, rule: "Lyapunov", name: str
    ) -> Tensor:
        with without_autocast(root):
            return rule.solve(gradient, root, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, root, scale, ctx.rule, ctx.name = inputs
        ctx.save_for_backward(root, scale, output)
        ctx.save_for_forward(root, scale, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        root, scale, solution = ctx.saved_tensors
        adjoint = _solution(symmetric_part(grad_outputs[0]), root, scale, ctx.rule, ctx.name)
        change = None
        if ctx.needs_input_grad[1]:
            with without_autocast(root):
                product = adjoint @ solution
            change = -(product + product.mT)
            change = _refuse_unless_exact(change, root, scale, ctx.rule, ctx.name)
        return adjoint, change, None, None, None


class _LyapunovSolutionBothModes(LyapunovSolution):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        root, scale, solution = ctx.saved_tensors
        turn, change = tangents[:2]
        right = None if turn is None else symmetric_part(turn)
        if change is not None:
            with without_autocast(root):
                product = change @ solution
            drift = -(product + product.mT)
            drift = _refuse_unless_exact(drift, root, scale, ctx.rule, ctx.name)
            right = drift if right is None else right + drift
        return _solution(right, root, scale, ctx.rule, ctx.name)  # pyright: ignore[reportArgumentType]


def _refuse_unless_exact(
    derivative: Tensor, root: Tensor, scale: Tensor, rule: "Lyapunov", name: str
) -> Tensor:
    """The second derivative; where it is refused by sample, inside torch.func, NaN."""
    if not rule.exact:
        raise RuntimeError(
            f"method {name!r} has no second derivative: its gradient is not the derivative of its "
            "forward pass; use method='exact' or 'isqrt-cov'"
        )
    with torch.no_grad():
        least = torch.linalg.eigvalsh(root)[..., :1, None]
        # The zero matrix has a zero derivative by convention.
        unresolved = (least < rule.forward.least_root(root.dtype) * scale)[..., 0, 0]
    if not unreadable(unresolved) and bool(unresolved.any()):
        raise RuntimeError(
            f"method {name!r} has no second derivative where eigenvalues are below its resolution, "
            f"‖A‖/condition; use method='exact'{name_samples(unresolved)}"
        )
    return torch.where(unresolved[..., None, None], torch.nan, derivative)


def _frobenius(entries: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The Frobenius norm over `dims`, kept, without overflow of the squares."""
    largest = entries.abs().amax(dims, keepdim=True)
    divisor = torch.where(largest == 0, 1, largest)
    return largest * torch.linalg.vector_norm(entries / divisor, dim=dims, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class RootIteration(ABC):
    """F = √s · r(A/s), s = ‖A‖ in the Frobenius norm, for a scalar function r on [0, 1]."""

    functions: ClassVar[frozenset[str]]
    """The names of the scalar functions that it computes."""

    least_dtype: ClassVar[torch.dtype]
    """The dtype to compute in at least, unless another is asked for."""

    accurate: ClassVar[bool]
    """Whether r is the square root to rounding, so that the Lyapunov equation differentiates it."""

    @property
    @abstractmethod
    def title(self) -> str: ...

    @abstractmethod
    def least_root(self, dtype: torch.dtype) -> float:
        """The least r that the Lyapunov equation has to resolve when computing in `dtype`."""

    @abstractmethod
    def scalar_root(self, x: Tensor) -> Tensor:
        """r(x), elementwise."""

    def scalar_inverse(self, x: Tensor) -> Tensor:
        """1/r(x), finite at 0, where it offers the inverse root."""
        raise NotImplementedError

    @abstractmethod
    def normalised_roots(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor | None]:
        """r(X) of symmetric matrices (*, n, n) with eigenvalues in [0, 1], and r(X)⁻¹ if asked."""

    def steps(self, dtype: torch.dtype) -> int | None:
        return None

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        if eigenvalues.shape[-1] == 0:
            return eigenvalues
        norm = _frobenius(eigenvalues, (-1,))
        divisor = torch.where(norm == 0, 1, norm)
        if function is INV_SQRT:
            result = self.scalar_inverse(eigenvalues / divisor) * divisor.rsqrt()
        else:
            result = self.scalar_root(eigenvalues / divisor) * divisor.sqrt()
        return torch.where(norm == 0, 0, result)

    def roots(self, matrix: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        """F (*, n, n), √s (*, 1, 1) and, if asked, F⁻¹; without a gradient."""
        with without_autocast(matrix):
            norm = _frobenius(matrix, (-2, -1))
            zero = norm == 0
            divisor = torch.where(zero, 1, norm)
            root, reciprocal = self.normalised_roots(matrix / divisor, inverse)
        result = torch.where(zero, 0, divisor.sqrt() * symmetric_part(root)), norm.sqrt()
        if reciprocal is None:
            return result
        return *result, torch.where(zero, 0, divisor.rsqrt() * symmetric_part(reciprocal))

    def matrix(self, covariance: Tensor, function: ScalarFunction, method: "Method") -> Tensor:
        """F or F⁻¹ with the gradient of the Lyapunov equation. (*, n, n) → (*, n, n)."""
        if not isinstance(method.gradient, Lyapunov):
            raise ValueError(
                f"method {method.name!r}: the forward algorithm {self.title!r} goes with the "
                f"gradient of the Lyapunov equation alone, got {method.gradient.title!r}"
            )
        inverse = function is INV_SQRT
        compiling = torch.compiler.is_compiling()
        roots = IterativeRoot if compiling else _IterativeRootBothModes
        result = roots.apply(covariance, self, method.gradient, method.name, inverse)
        return result[2] if inverse else result[0]


@dataclass(frozen=True, kw_only=True)
class MatrixTaylor(RootIteration):
    """The Taylor polynomial of √(1 − z) at z = 0, z = 1 − A/‖A‖: "MTP" of Song et al. (2022).

    It approximates: the smaller an eigenvalue, the more its root is overestimated, and zero gives
    0.176 √‖A‖ (degree 10). The gradient is that of an exact root, at the approximate F, and so not
    the derivative of this one. Both are smooth functions of A, at ties and zero eigenvalues too;
    the zero matrix gives zero, with zero gradient. Measured at degree 10:

        κ                                     1e1    1e2    1e4    1e6    1e8
        value, to √A                          0.087  0.23   0.48   0.62   0.72
        gradient, to the exact one of √A      0.12   0.41   0.88   0.98   1.0
        gradient, to the derivative of F      0.19   0.34   0.47   0.52   0.54
    """

    degree: int = 10
    """K; the paper's 10."""

    functions: ClassVar[frozenset[str]] = frozenset({SQRT.name})
    least_dtype: ClassVar[torch.dtype] = torch.float32
    accurate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_integer("degree", self.degree, 1)

    @property
    def title(self) -> str:
        return "matrix Taylor polynomial"

    def coefficients(self) -> list[float]:
        """(−1)ᵏ binomial(1/2, k), lowest power of z first."""
        found = [1.0]
        for k in range(1, self.degree + 1):
            found.append(found[-1] * (k - 1.5) / k)
        return found

    def least_root(self, dtype: torch.dtype) -> float:
        return sum(self.coefficients())

    def scalar_root(self, x: Tensor) -> Tensor:
        value = torch.zeros_like(x)
        for coefficient in reversed(self.coefficients()):
            value = value * (1 - x) + coefficient
        return value

    def normalised_roots(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor | None]:
        """By Paterson and Stockmeyer's scheme (1973): about 2√K products."""
        coefficients = self.coefficients()
        width = max(1, math.isqrt(self.degree))
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        powers = _powers(identity - x, width)
        starts = range(0, self.degree + 1, width)
        blocks = [_combination(coefficients[start : start + width], powers) for start in starts]
        value = blocks.pop()
        while blocks:
            value = value @ powers[width] + blocks.pop()
        return value, None


@dataclass(frozen=True, kw_only=True)
class MatrixPade(RootIteration):
    """The diagonal Padé approximant of √(1 − z) at z = 0, z = 1 − A/‖A‖: "MPA" of Song et al.

    With N = 2m + 1 and x = 1 − z it is Σ binomial(N, 2k) xᵏ / Σ binomial(N, 2k + 1) xᵏ, k = 0..m,
    which is √x · ((1 + √x)ᴺ + (1 − √x)ᴺ) / ((1 + √x)ᴺ − (1 − √x)ᴺ): all terms positive, where the
    usual form in powers of z cancels (Lu, "A Padé approximation method for square roots of
    symmetric positive definite matrices", SIAM J. Matrix Anal. Appl. 19, 1998; Kenney, Laub,
    "Rational iterative methods for the matrix sign function", ibid. 12, 1991).

    It approximates: the smaller an eigenvalue, the more its root is overestimated, and zero gives
    √‖A‖/N. The gradient is that of an exact root, at the approximate F, and so not the derivative
    of this one. Both are smooth functions of A, at ties and zero eigenvalues too; the zero matrix
    gives zero, with zero gradient. Measured at degree 5:

        κ                                     1e1    1e2    1e4    1e6    1e8
        value, to √A                          0.010  0.064  0.21   0.30   0.35
        gradient, to the exact one of √A      0.016  0.18   0.78   0.97   1.0
        gradient, to the derivative of F      0.039  0.18   0.36   0.42   0.45

    The inverse root is F⁻¹, the approximant upside down, with the gradient P of
    F⁻¹ P + P F⁻¹ = −F⁻² G F⁻² (Song et al., TPAMI 2023); zero gives N/√‖A‖.
    """

    degree: int = 5
    """m, of numerator and denominator each; the paper's 5."""

    functions: ClassVar[frozenset[str]] = frozenset({SQRT.name, INV_SQRT.name})
    least_dtype: ClassVar[torch.dtype] = torch.float32
    accurate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_integer("degree", self.degree, 1)

    @property
    def title(self) -> str:
        return "matrix Padé approximant"

    def coefficients(self) -> tuple[list[float], list[float]]:
        """Numerator and denominator in powers of x = 1 − z, lowest first, over 4ᵐ."""
        order = 2 * self.degree + 1
        scaled = [math.comb(order, k) / 4**self.degree for k in range(order + 1)]
        return scaled[0::2], scaled[1::2]

    def least_root(self, dtype: torch.dtype) -> float:
        return 1 / (2 * self.degree + 1)

    def scalar_root(self, x: Tensor) -> Tensor:
        numerator, denominator = torch.zeros_like(x), torch.zeros_like(x)
        for p, q in zip(*map(reversed, self.coefficients()), strict=True):
            numerator, denominator = numerator * x + p, denominator * x + q
        return numerator / denominator

    def scalar_inverse(self, x: Tensor) -> Tensor:
        return 1 / self.scalar_root(x)

    def normalised_roots(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor | None]:
        powers = _powers(x, self.degree)
        numerator, denominator = (_combination(c, powers) for c in self.coefficients())
        root = _quotient(numerator, denominator)
        return root, _quotient(denominator, numerator) if inverse else None


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """D⁻¹ N of commuting symmetric matrices, D positive definite; NaN where it is not."""
    factor, failed = torch.linalg.cholesky_ex(denominator)
    quotient = torch.cholesky_solve(numerator, factor)
    return torch.where(failed[..., None, None] == 0, quotient, torch.nan)


def _powers(x: Tensor, highest: int) -> list[Tensor]:
    """[I, X, X², …]."""
    powers = [torch.eye(x.shape[-1], dtype=x.dtype, device=x.device), x]
    while len(powers) <= highest:
        powers.append(powers[-1] @ x)
    return powers


def _combination(coefficients: Sequence[float], powers: Sequence[Tensor]) -> Tensor:
    total = coefficients[0] * powers[0]
    for coefficient, power in zip(coefficients[1:], powers[1:], strict=False):
        total = total + coefficient * power
    return total


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
    gets 0. Measured in float64, the default, and float32:

        κ(A)                                  1e1      1e2      1e4      1e6      1e8
        value                                 5.6e-15  1.1e-14  2.4e-14  5.7e-14  2.2e-13
        gradient                              1.4e-14  1.7e-14  5.1e-14  5.2e-12  4.4e-10
        value, float32                        1.5e-6   3.0e-6   4.5e-6   1.4e-5   5.2e-5
        gradient, float32                     2.5e-6   3.0e-6   1.4e-5   8.0e-4   0.18

    So float32 arithmetic does not reach 1e-6 at any condition number; it is for devices without
    float64 (`compute_dtype=torch.float32`), and resolves eigenvalues down to 1e-6 ‖A‖ at best.

    The gradient is exact at ties. At singular matrices it is finite and, along changes that keep
    the rank, right to 1e-7 (roundings times κ). Pairs of two zero eigenvalues get 0, as in
    `DividedDifferences`, but for roundings: up to 0.1/√‖A‖. Where eigenvalues are small and not
    zero, no entry of the Loewner matrix exceeds 6e4/√‖A‖. Second derivatives are right where no
    eigenvalue lies below ‖A‖/κ, and refused elsewhere (NaN inside torch.func). The zero matrix
    gives zero, with zero gradient.

    The inverse root is Z/√‖A‖: 1/√λ to 2e-11 at κ(A) = 1e6 (gradient 3e-11), at most 9.7e4/√‖A‖,
    which is what zero gives where singular matrices are not refused.

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
        harmless = 0.05 / math.prod([step[0] for step in steps]) ** 2
        rungs = max(1, math.ceil(math.log(0.1 / harmless, 8)))
        ladder = [0.0, *(harmless * 8**k for k in range(rungs + 1))]
        shifts = torch.tensor(ladder, dtype=x.dtype, device=x.device)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        lifted = x[..., None, :, :] + (shifts + harmless)[:, None, None] * identity
        failed = torch.linalg.cholesky_ex(lifted).info != 0
        lowest = torch.where(failed, torch.inf, shifts).amin(-1)
        return torch.where(lowest.isfinite(), lowest, torch.nan)


@dataclass(frozen=True, kw_only=True)
class Lyapunov:
    """P with F P + P F = G: the gradient of an exact root, at the F that `forward` gives."""

    forward: RootIteration
    """The forward algorithm."""

    functions: ClassVar[frozenset[str]] = frozenset({SQRT.name, INV_SQRT.name})

    @property
    def title(self) -> str:
        return "Lyapunov equation"

    @property
    def exact(self) -> bool:
        """Whether it is the derivative of the forward pass."""
        return self.forward.accurate

    def solve(self, right: Tensor, root: Tensor, scale: Tensor) -> Tensor:
        """P of symmetric G and F, by matrix products; 0 where the scale √‖A‖ is."""
        zero = scale == 0
        least = self.forward.least_root(root.dtype)
        singular = self.forward.accurate
        solution = solve_lyapunov(root, right, torch.where(zero, 1, scale), least, singular)
        return torch.where(zero, 0, solution)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        norm = _frobenius(eigenvalues, (-1,))
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
        if function is INV_SQRT:
            inverse = self.forward.scalar_inverse(eigenvalues / divisor) * divisor.rsqrt()
            loewner = -inverse[..., :, None] * inverse[..., None, :] * loewner
        return Loewner(torch.where(norm[..., None] == 0, 0, loewner))
