"""Scalar functions f that are lifted to symmetric matrices, f(A) = V f(Λ) Vᵀ.

A function is a class here and a row of the table at the end; `Elementwise` (elementwise.py) makes
one of any torch function. What the rest of the package has to know about a function is a member of
it. Everything is evaluated without the cancellation of the raw quotients, at ties too. With
u = log(a/b), which log1p gives to full precision where a ≈ b,

    log[a, b] = u / (a − b),    power[a, b] = a^p (1 − e^(−pu)) / (a − b),

and, with φ(d) = (1 − e^(−d)) / d and σ the logistic function, for a ≥ b

    exp[a, b] = e^a φ(a − b),    σ[a, b] = σ(a) σ(−b) φ(a − b).

Second differences are a mean of two that depend on two numbers each,

    f[a, b, c] = ((a − b) f[b, b, a] + (b − c) f[b, b, c]) / (a − c),    a ≥ b ≥ c,

where nothing cancels as long as f″ does not change its sign. Where the difference itself has a
zero, errors are relative to the mean of |f′| or |f″| over the interval.

At zero: where f(0) or f′(0) is not finite, f is applied on the range of A alone, so that f(0)
counts as 0 (the pseudo-inverse's convention). The derivative is the one along changes that keep the
rank. Those leave a zero eigenvalue zero, so it is that of a function that vanishes near 0:
f[0, 0] = 0, f[a, 0] = f(a)/a and f[a, 0, 0] = f(a)/a². Where the ordinary derivative at 0 is
finite, it is taken: λ^1 has f[0, 0] = 1.

Overflow: a value beyond the largest number is infinite (exp beyond 709.78), and so are the
differences that it enters; entries of the matrix are then infinite or NaN. Those too small for a
number are zero.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import ClassVar, Self

import torch
from torch import Tensor

from covpool.linalg.quadrature import mean
from covpool.linalg.spectrum import rank_tolerance
from covpool.linalg.tables import table

NEAR_TIE = 1 / 32
"""Relative spread of three eigenvalues below which their divided difference is a Taylor series.

The quotient of first differences loses the digits of 1/spread, 1.5 of 16 here; the series of
`TAYLOR_TERMS` terms has converged to 1e-17 there."""

TAYLOR_TERMS = 12

THIRD_DERIVATIVE = (
    "the third derivative of a function of a matrix is not implemented: it is a sum of n⁴ terms; "
    "differentiate at most twice (matrix_sqrt, method 'exact', has derivatives of every order at "
    "full rank)"
)


class Domain(Enum):
    """Which eigenvalues a function accepts."""

    REAL = "any"
    NONNEGATIVE = "λ ≥ 0"
    POSITIVE = "λ > 0"
    NONZERO = "λ ≠ 0"

    @property
    def has_negative(self) -> bool:
        return self in (Domain.REAL, Domain.NONZERO)

    @property
    def has_zero(self) -> bool:
        return self in (Domain.REAL, Domain.NONNEGATIVE)


class ScalarFunction(ABC):
    """A scalar function with what its lift to matrices needs, elementwise."""

    name: str
    """Its name in messages and in `FUNCTIONS`."""

    domain: Domain
    """The eigenvalues that it accepts. Where it is asked for others regardless, negative ones count
    as zero and a zero as the module says."""

    smooth_at_zero: bool = False
    """Whether an eigenvalue near zero is like any other. If not, those that may be zero but for
    rounding are set to it: a kink, a jump or a pole there must not depend on the rounding."""

    scales: ClassVar[bool] = False
    """Whether f(u A) follows from f(A), by `rescale`: a matrix whose powers leave the range of its
    dtype is then divided by a number first."""

    parameter: ClassVar[str | None] = None
    """What its parameter is called, which `bind` gives it, or None."""

    rate: ClassVar["ScalarFunction | None"] = None
    """∂f/∂p for a function with a parameter p."""

    inverse_of: ClassVar["ScalarFunction | None"] = None
    """The function g with f = 1/g, where an algorithm for g gives f too."""

    def bind(self, parameter: Tensor | None) -> "ScalarFunction":
        """The function with its parameter, one for each matrix: (*) beside eigenvalues (*, m)."""
        if parameter is not None:
            raise TypeError(f"{self.name} has no parameter, got {parameter!r}")
        return self

    def canonical(self, parameter: Tensor | None) -> tuple["ScalarFunction", Tensor | None]:
        """The same function as one whose `rate` is known, and its parameter, differentiably."""
        return self, parameter

    def defined_at_zero(self, parameter: Tensor | None = None) -> bool | Tensor:
        """Whether singular matrices have it; (*) where that depends on the parameter."""
        return self.domain.has_zero

    def clip(self, eigenvalues: Tensor, size: int) -> Tensor:
        """Eigenvalues (*, m) of n × n matrices, n = `size`, as `value` and `loewner` take them.

        Those below zero are zero where the domain has none, and where the function is not smooth at
        zero, so are those of at most n · finfo(dtype).eps of the largest, which are rounding.
        """
        if self.smooth_at_zero:
            return eigenvalues if self.domain.has_negative else eigenvalues.clamp_min(0)
        size_of = eigenvalues.abs() if self.domain.has_negative else eigenvalues
        threshold = rank_tolerance(size, eigenvalues.dtype) * size_of.amax(-1, keepdim=True)
        # The comparison is this way round so that NaN, where it was not looked for, stays NaN.
        return torch.where(size_of <= threshold.clamp_min(0), 0, eigenvalues)

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """f(x), and 0 for x = 0 where f(0) is not finite."""

    @abstractmethod
    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        """f[a, b] = (f(a) − f(b)) / (a − b) for a ≥ b, f[a, a] = f′(a)."""

    def loewner(self, x: Tensor) -> Tensor:
        """f[xᵢ, xⱼ] for all pairs: (*, m) → (*, m, m)."""
        larger = torch.maximum(x[..., :, None], x[..., None, :])
        smaller = torch.minimum(x[..., :, None], x[..., None, :])
        return self.divided_difference(larger, smaller)

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        """f[x, x, y] = (f′(x) − f[x, y]) / (x − y) for x and y in any order; f″(x)/2 at a tie."""
        raise RuntimeError(THIRD_DERIVATIVE)

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """f[a, b, c] = (f[a, b] − f[b, c]) / (a − c) for a ≥ b ≥ c."""
        return _mix(a, b, c, self.confluent_difference(b, a), self.confluent_difference(b, c))

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        """f[xᵢ, xₗ, xⱼ] of ascending x (*, m), as (*, m, m) for one l after the other."""
        # What is made of two numbers alone is made once, not for every l.
        confluent = self.confluent_difference(x[..., :, None], x[..., None, :])
        order = torch.arange(x.shape[-1], device=x.device)
        larger = torch.maximum(order[:, None], order)
        smaller = torch.minimum(order[:, None], order)
        for index in order:
            a, c = torch.maximum(larger, index), torch.minimum(smaller, index)
            b = larger + smaller + index - a - c
            yield _mix(x[..., a], x[..., b], x[..., c], confluent[..., b, a], confluent[..., b, c])

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        """f(u A) from f(A) (*, n, n), for powers of four u (*, 1, 1), of functions that `scale`.

        Args:
            projector: gives the projector on the range of A, which the logarithm needs.
        """
        raise TypeError(f"{self.name} of a multiple of A does not follow from that of A")

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Two matrices that are equal where the result is f(A), None where none are defined.

        Args:
            matrix, result: (*, n, n), A and what was computed for f(A).
            projector: (*, n, n), on the range of A.
            scale: (*, 1, 1), the size of A's entries: norms of A itself could overflow.
        """
        return None

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _by_triples(function: ScalarFunction, x: Tensor) -> Iterator[Tensor]:
    """`second_differences` of a function whose difference of three numbers is a formula."""
    larger = torch.maximum(x[..., :, None], x[..., None, :])
    smaller = torch.minimum(x[..., :, None], x[..., None, :])
    for middle in x[..., None, None].unbind(-3):
        yield function.second_divided_difference(
            torch.maximum(larger, middle),
            torch.maximum(smaller, torch.minimum(larger, middle)),
            torch.minimum(smaller, middle),
        )


class _OnTheRange(ScalarFunction):
    """A function of λ ≥ 0 that is not differentiable at zero, see the module."""

    domain = Domain.NONNEGATIVE

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        return _by_triples(self, x)

    @abstractmethod
    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        """f[a, b] for a ≥ b ≥ 0 and a > 0."""

    def divided_difference_at_zero(self, like: Tensor) -> Tensor:
        """f[0, 0], in the shape of `like`, a tensor of pairs."""
        return torch.zeros_like(like)

    def loewner(self, x: Tensor) -> Tensor:
        larger = torch.maximum(x[..., :, None], x[..., None, :])
        smaller = torch.minimum(x[..., :, None], x[..., None, :])
        zero, larger = _guarded(larger)
        exact = self.divided_difference(larger, smaller)
        return torch.where(zero, self.divided_difference_at_zero(exact), exact)


def _guarded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where x is zero, and x with 1 put there. NaN is not zero: it stays."""
    zero = x == 0
    return zero, torch.where(zero, 1, x)


def _mix(a: Tensor, b: Tensor, c: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """f[a, b, c] of f[b, b, a] and f[b, b, c], a ≥ b ≥ c."""
    tied, spread = _guarded(a - c)
    return torch.where(tied, above, (a - b) / spread * above + (b - c) / spread * below)


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """log(a/b) for a ≥ b > 0."""
    relative_gap = (a - b) / a
    near = relative_gap < 0.5
    return torch.where(near, -torch.log1p(-torch.where(near, relative_gap, 0)), torch.log(a / b))


class _Sqrt(_OnTheRange):
    name = "sqrt"
    scales = True

    def value(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted * unit.sqrt()

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        return 1 / (torch.sqrt(a) + torch.sqrt(b))

    def loewner(self, x: Tensor) -> Tensor:
        roots = x.sqrt()
        total = roots[..., :, None] + roots[..., None, :]
        # In place: on a CPU fresh memory for a temporary costs more than the arithmetic.
        return total.masked_fill_(total == 0, torch.inf).reciprocal_()

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        no_a, a = _guarded(a)
        no_b, _ = _guarded(b)
        u, v, w = a.sqrt(), b.sqrt(), c.sqrt()
        _, lower = _guarded(v + w)
        regular = -1 / (u + v) / lower / (u + w)
        return torch.where(no_a, 0, torch.where(no_b, 1 / u / a, regular))

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        root = result / scale.sqrt()
        return root @ root, matrix / scale


SQRT = _Sqrt()


class _InvSqrt(_OnTheRange):
    name = "inv_sqrt"
    scales = True
    domain = Domain.POSITIVE
    inverse_of = SQRT

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, x.rsqrt())

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
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

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        root = result * scale.sqrt()
        return root @ (matrix / scale) @ root, projector


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


class _Log(_OnTheRange):
    name = "log"
    scales = True
    domain = Domain.POSITIVE

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, torch.log(x))

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted + unit.log() * projector()

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

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        # exp(Y − log(s) P) = A/s on the range, the identity beside it.
        actual = torch.linalg.matrix_exp(result - scale.log() * projector)
        return actual, matrix / scale + (identity - projector)


class _Entropy(_OnTheRange):
    """−λ log λ, 0 at zero, where its derivative is infinite and counts as 0.

    f[a, b] = −(log a + b log[a, b]), which is zero where the two balance: errors are relative to
    |log a| + 1.
    """

    name = "entropy"

    def value(self, x: Tensor) -> Tensor:
        return -torch.xlogy(x, x)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        zero, lower = b == 0, torch.where(b == 0, a, b)
        return -(torch.log(a) + torch.where(zero, 0, b * _log_difference(a, lower)))

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        no_a, a = _guarded(a)
        no_b, b = b == 0, torch.where(b == 0, a, b)
        no_c, c = c == 0, torch.where(c == 0, b, c)
        full = super().second_divided_difference(a, b, c)
        return _by_rank(no_a, no_b, no_c, full, -_log_difference(a, b), -torch.log(a) / a)

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        """(y log[x, y] − 1) / (x − y) for x, y > 0."""
        larger, smaller = torch.maximum(x, y), torch.minimum(x, y)
        near = smaller > larger / 2
        close, _ = mean(lambda t: -1 / t, x, torch.where(near, y, x), power=1)
        far = y * _log_difference(larger, smaller) - 1
        return torch.where(near, close, far / torch.where(near, 1, x - y))


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


class _WithParameter(ScalarFunction):
    def __init__(self, parameter: Tensor | None = None) -> None:
        self._parameter = parameter

    def bind(self, parameter: Tensor | None) -> Self:
        if parameter is None:
            raise TypeError(f"{self.name} needs its {self.parameter}")
        return type(self)(parameter)

    def beside(self, like: Tensor) -> Tensor:
        """The parameter beside eigenvalues or pairs of them, of which `like` is a tensor."""
        p = self._parameter
        if p is None:
            raise TypeError(f"{self.name} needs its {self.parameter}")
        return p.reshape(p.shape + (1,) * (like.ndim - p.ndim))


class _PowerRateRate(_WithParameter, _OnTheRange):
    """λ^p log² λ, the second derivative of λ^p with respect to p."""

    name = "power · log²"
    parameter = "exponent"

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, x ** self.beside(x) * torch.log(x) ** 2)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError(THIRD_DERIVATIVE)


class _PowerRate(_WithParameter, _OnTheRange):
    """λ^p log λ, the derivative of λ^p with respect to p."""

    name = "power · log"
    parameter = "exponent"
    rate = _PowerRateRate()

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, x ** self.beside(x) * torch.log(x))

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        p = self.beside(a)
        zero, b = b == 0, torch.where(b == 0, a, b)
        # (fg)[a, b] = f[a, b] g(a) + f(b) g[a, b]
        regular = _power_difference(a, b, p) * torch.log(a) + b**p * _log_difference(a, b)
        return torch.where(zero, _power(a, p, a) * torch.log(a), regular)


class _Power(_WithParameter, _OnTheRange):
    name = "power"
    scales = True
    parameter = "exponent"
    rate = _PowerRate()

    def defined_at_zero(self, parameter: Tensor | None = None) -> bool | Tensor:
        if parameter is None:
            return self.domain.has_zero
        return ~(self.bind(parameter).beside(parameter) <= 0)

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, x ** self.beside(x))

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        # In two steps, as u^p alone may leave the range.
        half = unit ** (0.5 * self.beside(unit))
        return lifted * half * half

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        p = self.beside(a)
        zero, b = b == 0, torch.where(b == 0, a, b)
        return torch.where(zero, _power(a, p, a), _power_difference(a, b, p))

    def divided_difference_at_zero(self, like: Tensor) -> Tensor:
        return torch.where(self.beside(like) == 1, torch.ones_like(like), 0)

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        p = self.beside(a)
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


class _InvRoot(_Power):
    """λ^(−1/p), which is the power of that exponent."""

    name = "inv_root"
    domain = Domain.POSITIVE
    parameter = "root"
    rate = None

    def canonical(self, parameter: Tensor | None) -> tuple[ScalarFunction, Tensor | None]:
        return POWER, None if parameter is None else -1 / parameter

    def beside(self, like: Tensor) -> Tensor:
        return -1 / super().beside(like)


class _Inverse(ScalarFunction):
    """1/λ; a zero eigenvalue stays zero, which makes it the pseudo-inverse."""

    name = "inverse"
    scales = True
    domain = Domain.NONZERO

    def value(self, x: Tensor) -> Tensor:
        zero, x = _guarded(x)
        return torch.where(zero, 0, 1 / x)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted / unit

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        no_a, no_b = a == 0, b == 0
        u, v = torch.where(no_a, b, a), torch.where(no_b, a, b)
        size = self.value(u) / torch.where(no_a & no_b, 1, v)
        return torch.where(no_a | no_b, size, -size)

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        (no_a, u), (no_b, v), (no_c, w) = _guarded(a), _guarded(b), _guarded(c)
        product = 1 / u / v / w
        # Each zero is in the place of one more factor 1/λ of the others.
        total = self.value(a) + self.value(b) + self.value(c)
        zeros = no_a.to(a.dtype) + no_b + no_c
        some = torch.where(zeros == 1, -total * product, total * total * product)
        return torch.where(zeros == 0, product, torch.where(zeros == 3, 0, some))

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        return _by_triples(self, x)

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        return (matrix / scale) @ (result * scale), projector


class _PiecewiseLinear(ScalarFunction):
    """A function of two linear pieces, of which values and differences take a rounding or two.

    Where the pieces meet the first derivative is that of the class, and the second counts as 0.
    """

    domain = Domain.REAL

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """f′(x)."""

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        tied, gap = _guarded(a - b)
        return torch.where(tied, self.slope(a), (self.value(a) - self.value(b)) / gap)

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        slope = self.slope(x)
        # How far f(y) is from the piece of x: zero unless y is on the other one.
        beside = (self.value(y) - slope * y) - (self.value(x) - slope * x)
        tied, gap = _guarded(x - y)
        return torch.where(tied, 0, beside / gap / gap)


class _Abs(_PiecewiseLinear):
    """|λ|, whose derivative at zero counts as 0."""

    name = "abs"
    scales = True

    def value(self, x: Tensor) -> Tensor:
        return x.abs()

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted * unit

    def slope(self, x: Tensor) -> Tensor:
        return x.sign()

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        actual, expected = result / scale, matrix / scale
        return actual @ actual, expected @ expected


class _PositivePart(_PiecewiseLinear):
    """max(λ, 0), the projection on the positive semi-definite cone.

    The derivative at zero counts as 0: pairs of zeros get no gradient.
    """

    name = "positive_part"
    scales = True

    def value(self, x: Tensor) -> Tensor:
        return x.clamp_min(0)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted * unit

    def slope(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)


class _Sign(_PiecewiseLinear):
    """−1, 1, and 0 for a zero eigenvalue, where its derivative counts as 0."""

    name = "sign"
    scales = True
    domain = Domain.NONZERO

    def value(self, x: Tensor) -> Tensor:
        # torch takes the sign of NaN for 0.
        return torch.where(x.isnan(), x, x.sign())

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted

    def slope(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        return result @ result, projector


class _ClampMinRateRate(_WithParameter, _PiecewiseLinear):
    """0, the second derivative of max(λ, bound) by the bound where no λ is on it."""

    name = "clamp_min · rate²"
    parameter = "bound"

    def value(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    slope = value


class _ClampMinRate(_ClampMinRateRate):
    """1 for λ up to the bound, 0 above: the derivative of max(λ, bound) by the bound."""

    name = "clamp_min · rate"
    rate = _ClampMinRateRate()

    def value(self, x: Tensor) -> Tensor:
        return (x <= self.beside(x)).to(x.dtype)


class _ClampMin(_WithParameter, _PiecewiseLinear):
    """max(λ, bound), ReEig (Huang, Van Gool, AAAI 2017). At the bound the derivative is 0."""

    name = "clamp_min"
    parameter = "bound"
    rate = _ClampMinRate()

    def value(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.beside(x))

    def slope(self, x: Tensor) -> Tensor:
        return (x > self.beside(x)).to(x.dtype)


class _Smooth(ScalarFunction):
    """A function without singularities on the real line."""

    domain = Domain.REAL
    smooth_at_zero = True

    reach: ClassVar[float]
    """Up to which distance of two numbers the mean of f″ is exact to rounding."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """f′(x)."""

    @abstractmethod
    def second_derivative(self, x: Tensor) -> Tensor:
        """f″(x)."""

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        gap = x - y
        near = gap.abs() < self.reach
        close, _ = mean(self.second_derivative, x, torch.where(near, y, x), power=1)
        first = self.divided_difference(torch.maximum(x, y), torch.minimum(x, y))
        far = (self.derivative(x) - first) / torch.where(near, 1, gap)
        return torch.where(near, close, far)


def _decay(gap: Tensor) -> Tensor:
    """φ(d) = (1 − e^(−d)) / d, the mean of e^(−t) for t from 0 to d ≥ 0."""
    tied, gap = _guarded(gap)
    return torch.where(tied, 1, -torch.expm1(-gap) / gap)


class _Exp(_Smooth):
    name = "exp"
    reach = 1

    def value(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    derivative = second_derivative = value

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(a) * _decay(a - b)


class _Tanh(_Smooth):
    """tanh λ = 2 σ(2λ) − 1."""

    name = "tanh"
    reach = 0.5

    def value(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def derivative(self, x: Tensor) -> Tensor:
        return self.divided_difference(x, x)

    def second_derivative(self, x: Tensor) -> Tensor:
        return -2 * torch.tanh(x) * self.derivative(x)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        return 4 * torch.sigmoid(2 * a) * torch.sigmoid(-2 * b) * _decay(2 * (a - b))


class _Softplus(_Smooth):
    """log(1 + e^λ). As f(λ) = λ + f(−λ), pairs with a positive sum are mirrored."""

    name = "softplus"
    reach = 1

    def value(self, x: Tensor) -> Tensor:
        return torch.logaddexp(x, torch.zeros_like(x))

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def second_derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        mirrored = a + b > 0
        a, b = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
        tied, gap = _guarded(a - b)
        # (1 + e^a) / (1 + e^b) − 1; beyond a = 1 the values are too far apart to cancel.
        ratio = -torch.expm1(-gap) * torch.exp(a) * torch.sigmoid(-b)
        change = torch.where(a > 1, self.value(a) - self.value(b), torch.log1p(ratio))
        difference = torch.where(tied, torch.sigmoid(a), change / gap)
        return torch.where(mirrored, 1 - difference, difference)

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        mirrored = x + y > 0
        return super().confluent_difference(
            torch.where(mirrored, -x, x), torch.where(mirrored, -y, y)
        )


INV_SQRT = _InvSqrt()
LOG = _Log()
POWER = _Power()

EXP = _Exp()

FUNCTIONS: Mapping[str, ScalarFunction] = table(
    {
        function.name: function
        for function in (
            *(SQRT, INV_SQRT, POWER, LOG, EXP, _Inverse(), _InvRoot(), _Entropy()),
            *(_Sign(), _Abs(), _PositivePart(), _ClampMin(), _Softplus(), _Tanh()),
        )
    },
    kind="function",
)
"""Every named function. Method `exact` offers all of them; others say which."""

ON_COVARIANCES = frozenset(function.name for function in (SQRT, INV_SQRT, POWER, LOG))
"""What the methods of the paper's kind, which are made for covariances, offer."""
