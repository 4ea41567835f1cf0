"""Functions without singularities on the real line: exp, tanh, softplus."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.functions.base import Domain, ScalarFunction
from covpool.linalg.functions.differences import guarded
from covpool.linalg.quadrature import mean


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
    tied, gap = guarded(gap)
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
        tied, gap = guarded(a - b)
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


EXP = _Exp()
TANH = _Tanh()
SOFTPLUS = _Softplus()
