"""Scalar functions f that are lifted to symmetric matrices, f(A) = V f(Λ) Vᵀ.

Everything is evaluated on eigenvalues λ ≥ 0, exactly zero where they are rounding errors, without
the cancellation of the raw quotients, at ties too. With u = log(a/b), which log1p gives to full
precision where a ≈ b,

    log[a, b] = u / (a − b),    power[a, b] = a^p (1 − e^(−pu)) / (a − b).

At zero: where f(0) is not finite, f is applied on the range of A alone, so that f(0) counts as 0
(the pseudo-inverse's convention). The derivative is the one along changes that keep the rank. Those
leave a zero eigenvalue zero, so it is that of a function that vanishes near 0: f[0, 0] = 0,
f[a, 0] = f(a)/a and f[a, 0, 0] = f(a)/a². Where the ordinary derivative at 0 is finite, it is
taken: λ^1 has f[0, 0] = 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.tables import table

NEAR_TIE = 1 / 32
"""Relative spread of three eigenvalues below which their divided difference is a Taylor series.

The quotient of first differences loses the digits of 1/spread, 1.5 of 16 here; the series of
`TAYLOR_TERMS` terms has converged to 1e-17 there."""

TAYLOR_TERMS = 12

THIRD_DERIVATIVE = (
    "the third derivative of an inverse root, power or logarithm of a matrix is not implemented: "
    "differentiate at most twice (matrix_sqrt, method 'exact', has derivatives of every order at "
    "full rank)"
)


class ScalarFunction(ABC):
    """A scalar function on [0, ∞) with what its lift to matrices needs, elementwise."""

    name: ClassVar[str]
    """Its name in messages and in `FUNCTIONS`."""

    needs_exponent: ClassVar[bool] = False
    """Whether it has a parameter, which `bind` gives it."""

    rate: ClassVar["ScalarFunction | None"] = None
    """∂f/∂p for a function with an exponent p."""

    def bind(self, exponent: Tensor | None) -> "ScalarFunction":
        """The function with its exponent, one for each matrix: (*) beside eigenvalues (*, m)."""
        if exponent is not None:
            raise TypeError(f"{self.name} has no exponent")
        return self

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """f(x), and 0 for x = 0."""

    @abstractmethod
    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        """f[a, b] = (f(a) − f(b)) / (a − b) for a ≥ b ≥ 0 and a > 0; f[a, a] = f′(a)."""

    def divided_difference_at_zero(self, like: Tensor) -> Tensor:
        """f[0, 0], in the shape of `like`, a tensor of pairs."""
        return torch.zeros_like(like)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Tensor | None = None) -> Tensor:
        """f(u A) from f(A) (*, n, n), for powers of four u (*, 1, 1).

        Args:
            projector: the projector on the range of A, which the logarithm needs.
        """
        raise NotImplementedError(f"{self.name} is not offered as a function of matrices")

    def loewner(self, x: Tensor) -> Tensor:
        """f[xᵢ, xⱼ] for all pairs: (*, m) → (*, m, m)."""
        larger = torch.maximum(x[..., :, None], x[..., None, :])
        smaller = torch.minimum(x[..., :, None], x[..., None, :])
        zero, larger = _guarded(larger)
        exact = self.divided_difference(larger, smaller)
        return torch.where(zero, self.divided_difference_at_zero(exact), exact)

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """f[a, b, c] = (f[a, b] − f[b, c]) / (a − c) for a ≥ b ≥ c ≥ 0."""
        raise RuntimeError(THIRD_DERIVATIVE)

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _guarded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where x is zero, and x with 1 put there. NaN is not zero: it stays."""
    zero = x == 0
    return zero, torch.where(zero, 1, x)


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """log(a/b) for a ≥ b > 0."""
    relative_gap = (a - b) / a
    near = relative_gap < 0.5
    return torch.where(near, -torch.log1p(-torch.where(near, relative_gap, 0)), torch.log(a / b))


class _Sqrt(ScalarFunction):
    name = "sqrt"

    def value(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Tensor | None = None) -> Tensor:
        return lifted * unit.sqrt()

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        return 1 / (torch.sqrt(a) + torch.sqrt(b))

    def loewner(self, x: Tensor) -> Tensor:
        roots = x.sqrt()
        total = roots[..., :, None] + roots[..., None, :]
        # In place: on a CPU fresh memory for a temporary costs more than the arithmetic.
        return total.masked_fill_(total == 0, torch.inf).reciprocal_()


class _InvSqrt(ScalarFunction):
    name = "inv_sqrt"

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, x.rsqrt())

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Tensor | None = None) -> Tensor:
        return lifted / unit.sqrt()

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        zero, b = _guarded(b)
        u, v = a.sqrt(), b.sqrt()
        return torch.where(zero, 1 / u / a, -1 / u / v / (u + v))

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        no_a, a = _guarded(a)
        no_b, b = _guarded(b)
        no_c, c = _guarded(c)
        u, v, w = a.sqrt(), b.sqrt(), c.sqrt()
        full = (u + v + w) / (u + v) / u / v / w / (v + w) / (u + w)
        rank_two = -(1 / b + 1 / (u * v) + 1 / a) / u / v / (u + v)
        rank_one = 1 / u / a / a
        return _by_rank(no_a, no_b, no_c, full, rank_two, rank_one)


def _by_rank(
    no_a: Tensor, no_b: Tensor, no_c: Tensor, full: Tensor, two: Tensor, one: Tensor
) -> Tensor:
    return torch.where(no_a, 0, torch.where(no_b, one, torch.where(no_c, two, full)))


def _log_difference(a: Tensor, b: Tensor) -> Tensor:
    """log[a, b] for a ≥ b > 0."""
    gap = a - b
    tied, gap = _guarded(gap)
    return torch.where(tied, 1 / a, _log_ratio(a, b) / gap)


def _series(a: Tensor, b: Tensor, c: Tensor, mean: Tensor, coefficients: list[Tensor]) -> Tensor:
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


class _Log(ScalarFunction):
    name = "log"

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, torch.log(x))

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Tensor | None = None) -> Tensor:
        assert projector is not None
        return lifted + unit.log() * projector

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        zero, b = b == 0, torch.where(b == 0, a, b)
        return torch.where(zero, torch.log(a) / a, _log_difference(a, b))

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        no_a, a = _guarded(a)
        no_b, b = b == 0, torch.where(b == 0, a, b)
        no_c, c = c == 0, torch.where(c == 0, b, c)
        spread = a - c
        near = spread < NEAR_TIE * a
        quotient = (_log_difference(a, b) - _log_difference(b, c)) / torch.where(near, 1, spread)
        mean = a / 3 + b / 3 + c / 3
        signs = [torch.full_like(a, (-1) ** (m + 1) / (m + 2)) for m in range(TAYLOR_TERMS)]
        series = _series(a, b, c, mean, signs) / mean / mean
        # (log λ / λ)[a, b], as log counts as 0 at 0.
        rank_two = (_log_difference(a, b) - torch.log(a) / a) / b
        rank_one = torch.log(a) / a / a
        full = torch.where(near, series, quotient)
        return _by_rank(no_a, no_b, no_c, full, rank_two, rank_one)


def _power(x: Tensor, p: Tensor, divisor: Tensor) -> Tensor:
    """x^p / divisor for a divisor of the size of x, neither overflowing nor losing digits of p."""
    low = p < 0.5
    # p − 1 is exact from 0.5 to 2; below, digits of p would be lost.
    return x ** torch.where(low, p, p - 1) / torch.where(low, divisor, divisor / x)


def _power_difference(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
    """(a^p − b^p) / (a − b) for a ≥ b > 0."""
    tied, relative_gap = _guarded((a - b) / a)
    magnitude = p.abs()
    quotient = -torch.expm1(-magnitude * _log_ratio(a, b)) / relative_gap
    quotient = torch.where(tied, magnitude, quotient)
    return torch.where(p < 0, -quotient, quotient) * _power(torch.where(p < 0, b, a), p, a)


class _WithExponent(ScalarFunction):
    needs_exponent = True

    def __init__(self, exponent: Tensor | None = None) -> None:
        self._exponent = exponent

    def bind(self, exponent: Tensor | None) -> ScalarFunction:
        if exponent is None:
            raise TypeError(f"{self.name} needs an exponent")
        return type(self)(exponent)

    def exponent(self, like: Tensor) -> Tensor:
        """The exponent beside eigenvalues or pairs of them, of which `like` is a tensor."""
        p = self._exponent
        if p is None:
            raise TypeError(f"{self.name} needs an exponent")
        return p.reshape(p.shape + (1,) * (like.ndim - p.ndim))


class _PowerRateRate(_WithExponent):
    """λ^p log² λ, the second derivative of λ^p with respect to p."""

    name = "power · log²"

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, x ** self.exponent(x) * torch.log(x) ** 2)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError(THIRD_DERIVATIVE)


class _PowerRate(_WithExponent):
    """λ^p log λ, the derivative of λ^p with respect to p."""

    name = "power · log"
    rate = _PowerRateRate()

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, x ** self.exponent(x) * torch.log(x))

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        p = self.exponent(a)
        zero, b = b == 0, torch.where(b == 0, a, b)
        # (fg)[a, b] = f[a, b] g(a) + f(b) g[a, b]
        regular = _power_difference(a, b, p) * torch.log(a) + b**p * _log_difference(a, b)
        return torch.where(zero, _power(a, p, a) * torch.log(a), regular)


class _Power(_WithExponent):
    name = "power"
    rate = _PowerRate()

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, x ** self.exponent(x))

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Tensor | None = None) -> Tensor:
        # In two steps, as u^p alone may leave the range.
        half = unit ** (0.5 * self.exponent(unit))
        return lifted * half * half

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        p = self.exponent(a)
        zero, b = b == 0, torch.where(b == 0, a, b)
        return torch.where(zero, _power(a, p, a), _power_difference(a, b, p))

    def divided_difference_at_zero(self, like: Tensor) -> Tensor:
        return torch.where(self.exponent(like) == 1, torch.ones_like(like), 0)

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        p = self.exponent(a)
        no_a, a = _guarded(a)
        no_b, b = b == 0, torch.where(b == 0, a, b)
        no_c, c = c == 0, torch.where(c == 0, b, c)
        spread = a - c
        near = spread * (1 + p.abs()) < NEAR_TIE * a
        # Around p = 1 the difference of first differences cancels to p − 1: there the function is
        # taken as λ · λ^(p−1), and (λ g)[a, b, c] = g[a, b] + c g[a, b, c].
        linear = (p - 1).abs() < 0.5
        q = torch.where(linear, p - 1, p)
        first = _power_difference(a, b, q)
        quotient = (first - _power_difference(b, c, q)) / torch.where(near, 1, spread)
        quotient = torch.where(linear, first + c * quotient, quotient)
        mean = a / 3 + b / 3 + c / 3
        coefficients = [p * (p - 1) / 2]
        for m in range(1, TAYLOR_TERMS):
            coefficients.append(coefficients[-1] * (p - m - 1) / (m + 2))
        series = _series(a, b, c, mean, coefficients) * _power(mean, p, mean) / mean
        full = torch.where(near, series, quotient)
        # As λ^p counts as 0 at 0, the differences with zeros are those of λ^(p−1).
        rank_two = _power_difference(a, b, p - 1)
        rank_one = torch.where(p == 1, 0, _power(a, p, a) / a)
        at_zero = torch.where(p == 2, torch.ones_like(a), 0)
        return torch.where(no_a, at_zero, _by_rank(no_a, no_b, no_c, full, rank_two, rank_one))


SQRT = _Sqrt()
INV_SQRT = _InvSqrt()
LOG = _Log()
POWER = _Power()

FUNCTIONS: Mapping[str, ScalarFunction] = table(
    {function.name: function for function in (SQRT, INV_SQRT, POWER, LOG)}, kind="function"
)
