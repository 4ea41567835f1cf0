"""Powers of the eigenvalues: the root, its inverse, any real power, the inverse."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from covpool.linalg.functions.base import (
    THIRD_DERIVATIVE,
    Domain,
    OnTheRange,
    ScalarFunction,
    WithParameter,
    by_triples,
)
from covpool.linalg.functions.differences import (
    NEAR_TIE,
    TAYLOR_TERMS,
    by_rank,
    guarded,
    log_difference,
    log_ratio,
    taylor,
)


class _Sqrt(OnTheRange):
    name = "sqrt"
    scales = True
    solves_lyapunov = True

    def value(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted * unit.sqrt()

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        return 1 / (torch.sqrt(a) + torch.sqrt(b))

    def loewner(self, x: Tensor) -> Tensor:
        roots = x.sqrt()
        total = roots.unsqueeze(-1) + roots.unsqueeze(-2)
        # In place: on a CPU fresh memory for a temporary costs more than the arithmetic.
        return total.reciprocal_().nan_to_num_(nan=torch.nan, posinf=0)

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        no_a, a = guarded(a)
        no_b, _ = guarded(b)
        u, v, w = a.sqrt(), b.sqrt(), c.sqrt()
        _, lower = guarded(v + w)
        regular = -1 / (u + v) / lower / (u + w)
        return torch.where(no_a, 0, torch.where(no_b, 1 / u / a, regular))

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Callable[[], Tensor], scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        root = result / scale.sqrt()
        return root @ root, matrix / scale


SQRT = _Sqrt()


class _InvSqrt(OnTheRange):
    name = "inv_sqrt"
    scales = True
    domain = Domain.POSITIVE
    inverse_of = SQRT

    def value(self, x: Tensor) -> Tensor:
        zero, x = guarded(x)
        return x.rsqrt().masked_fill(zero, 0)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted / unit.sqrt()

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        zero, b = guarded(b)
        u, v = a.sqrt(), b.sqrt()
        return torch.where(zero, 1 / u / a, -1 / u / v / (u + v))

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        no_a, a = guarded(a)
        no_b, b = guarded(b)
        no_c, c = guarded(c)
        u, v, w = a.sqrt(), b.sqrt(), c.sqrt()
        full = (u + v + w) / (u + v) / u / v / w / (v + w) / (u + w)
        rank_two = -(1 / b + 1 / (u * v) + 1 / a) / u / v / (u + v)
        rank_one = 1 / u / a / a
        return by_rank(no_a, no_b, no_c, full, rank_two, rank_one)

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Callable[[], Tensor], scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        root = result * scale.sqrt()
        return root @ (matrix / scale) @ root, projector()


def _power(x: Tensor, p: Tensor, divisor: Tensor) -> Tensor:
    """x^p / divisor for a divisor of the size of x, neither overflowing nor losing digits of p."""
    low = p < 0.5
    # p − 1 is exact from 0.5 to 2; below, digits of p would be lost.
    return x ** torch.where(low, p, p - 1) / torch.where(low, divisor, divisor / x)


def _power_difference(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
    """(a^p − b^p) / (a − b) for a ≥ b > 0."""
    tied, relative_gap = guarded((a - b) / a)
    magnitude = p.abs()
    quotient = -torch.expm1(-magnitude * log_ratio(a, b)) / relative_gap
    quotient = torch.where(tied, magnitude, quotient)
    return torch.where(p < 0, -quotient, quotient) * _power(torch.where(p < 0, b, a), p, a)


class _PowerRateRate(WithParameter, OnTheRange):
    """λ^p log² λ, the second derivative of λ^p with respect to p."""

    name = "power · log²"
    parameter = "exponent"
    is_rate = True

    def value(self, x: Tensor) -> Tensor:
        zero, x = guarded(x)
        return (x ** self.beside(x) * torch.log(x) ** 2).masked_fill(zero, 0)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError(THIRD_DERIVATIVE)


class _PowerRate(WithParameter, OnTheRange):
    """λ^p log λ, the derivative of λ^p with respect to p."""

    name = "power · log"
    parameter = "exponent"
    is_rate = True
    rate = _PowerRateRate()

    def value(self, x: Tensor) -> Tensor:
        zero, x = guarded(x)
        return (x ** self.beside(x) * torch.log(x)).masked_fill(zero, 0)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        p = self.beside(a)
        zero, b = b == 0, torch.where(b == 0, a, b)
        # (fg)[a, b] = f[a, b] g(a) + f(b) g[a, b]
        regular = _power_difference(a, b, p) * torch.log(a) + b**p * log_difference(a, b)
        return torch.where(zero, _power(a, p, a) * torch.log(a), regular)


class _Power(WithParameter, OnTheRange):
    name = "power"
    scales = True
    parameter = "exponent"
    rate = _PowerRate()

    def defined_at_zero(self, parameter: Tensor | None = None) -> bool | Tensor:
        if parameter is None:
            return self.domain.has_zero
        return ~(self.bind(parameter).beside(parameter) <= 0)

    def value(self, x: Tensor) -> Tensor:
        zero, x = guarded(x)
        return (x ** self.beside(x)).masked_fill(zero, 0)

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
        no_a, a = guarded(a)
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
        series = taylor(a, b, c, mean, coefficients) * _power(mean, p, mean) / mean
        full = torch.where(near, series, quotient)
        # As λ^p counts as 0 at 0, the differences with zeros are those of λ^(p−1).
        rank_two = _power_difference(a, b, p - 1)
        rank_one = torch.where(p == 1, 0, _power(a, p, a) / a)
        at_zero = torch.where(p == 2, torch.ones_like(a), 0)
        return torch.where(no_a, at_zero, by_rank(no_a, no_b, no_c, full, rank_two, rank_one))


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
        zero, x = guarded(x)
        return (1 / x).masked_fill(zero, 0)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted / unit

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        no_a, no_b = a == 0, b == 0
        u, v = torch.where(no_a, b, a), torch.where(no_b, a, b)
        size = self.value(u) / torch.where(no_a & no_b, 1, v)
        return torch.where(no_a | no_b, size, -size)

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        (no_a, u), (no_b, v), (no_c, w) = guarded(a), guarded(b), guarded(c)
        product = 1 / u / v / w
        # Each zero is in the place of one more factor 1/λ of the others.
        total = self.value(a) + self.value(b) + self.value(c)
        zeros = no_a.to(a.dtype) + no_b + no_c
        some = torch.where(zeros == 1, -total * product, total * total * product)
        return torch.where(zeros == 0, product, torch.where(zeros == 3, 0, some))

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        return by_triples(self, x)

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Callable[[], Tensor], scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        return (matrix / scale) @ (result * scale), projector()


INV_SQRT = _InvSqrt()
POWER = _Power()
INV_ROOT = _InvRoot()
INVERSE = _Inverse()
