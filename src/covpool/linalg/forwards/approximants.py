"""The matrix Taylor polynomial and the matrix Padé approximant of the square root.

Errors are measured as `forwards.base` says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.checks import require_integer
from covpool.linalg.forwards.base import RootIteration
from covpool.linalg.functions import INV_SQRT, SQRT
from covpool.linalg.transforms import refuse_onnx


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

    functions: ClassVar[frozenset[str] | None] = frozenset({SQRT.name})
    least_dtype: ClassVar[torch.dtype] = torch.float32
    smooth: ClassVar[bool] = True
    iterated_channels: ClassVar[int] = 24
    """0.75 to 1.0 of the decomposition's time at 8 to 24 channels, 0.9 to 1.7 at 48."""
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
    which is √x · ((1 + √x)ᴺ + (1 − √x)ᴺ) / ((1 + √x)ᴺ − (1 − √x)ᴺ), and in partial fractions
    1/N + 2/N Σ x/(sin² + cos² x) at jπ/N, j = 1..m: all terms positive, where the usual form in
    powers of z cancels (Lu, "A Padé approximation method for square roots of symmetric positive
    definite matrices", SIAM J. Matrix Anal. Appl. 19, 1998; Kenney, Laub, "Rational iterative
    methods for the matrix sign function", ibid. 12, 1991). Of a matrix it is summed up from two
    fractions; rounding in float32 then costs a few eps, of the order of 5e-7.

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

    functions: ClassVar[frozenset[str] | None] = frozenset({SQRT.name, INV_SQRT.name})
    least_dtype: ClassVar[torch.dtype] = torch.float32
    smooth: ClassVar[bool] = True
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

    def normalised_roots(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor | None]:
        powers = _powers(x, max(1, self.degree - 1))
        root = self._sum_of_fractions(powers, inverse=False)
        return root, self._sum_of_fractions(powers, inverse=True) if inverse else None

    def _sum_of_fractions(self, powers: Sequence[Tensor], *, inverse: bool) -> Tensor:
        """r(X) = I/N + 2/N Σ (s I + c X)⁻¹ X over the m pairs of sin² and cos² of jπ/N.

        1/r is the same without the factor X and with (j − 1/2)π/N. As one fraction the denominator
        has condition 93 at degree 5 (that of the inverse 1024), and float32 lost up to 6e-6 (1e-5).
        Here the first is by itself, with condition 13 (49), and the others are one, with 7 (20), in
        1.5 times the time, and of the order of 5e-7 is lost (in both); with each by itself it would
        be 1e-7 (4e-7), in 3 times the time.
        """
        order = 2 * self.degree + 1
        first = 0.5 if inverse else 1.0
        angles = [(first + j) * math.pi / order for j in range(self.degree)]
        terms = [(math.sin(angle) ** 2, math.cos(angle) ** 2) for angle in angles]
        total = powers[0] / order
        for together in (terms[:1], terms[1:]):
            if together:
                numerator, denominator = _sum_of_reciprocals(together)
                numerator = [2 / order * coefficient for coefficient in numerator]
                shifted = _combination(numerator, powers[0 if inverse else 1 :])
                total = total + _quotient(shifted, _combination(denominator, powers))
        return total


def _sum_of_reciprocals(terms: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Numerator and denominator of Σ 1/(s + c x), coefficients of the lowest power first."""
    numerator: list[float] = []
    denominator = [1.0]
    for s, c in terms:
        raised = _times_linear(numerator, s, c)
        numerator = [p + q for p, q in zip(raised, denominator, strict=True)]
        denominator = _times_linear(denominator, s, c)
    return numerator, denominator


def _times_linear(polynomial: Sequence[float], s: float, c: float) -> list[float]:
    pairs = zip([*polynomial, 0.0], [0.0, *polynomial], strict=True)
    return [s * low + c * high for low, high in pairs]


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """D⁻¹ N of commuting symmetric matrices, D positive definite; NaN where it is not."""
    refuse_onnx("Cholesky factorisation")
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
