"""Odd scalar functions f, f(−σ) = −f(σ), that are lifted to any matrices, U f(S) Vᴴ.

The lift is a corner of that of a symmetric matrix: [[0, A], [Aᴴ, 0]] has the eigenvalues ±σ and, of
a matrix that is not square, zeros, and f of it is [[0, F], [Fᴴ, 0]]. So F depends on f[σᵢ, σⱼ] and
f[σᵢ, −σⱼ] alone, and what `covpool.linalg.functions` says of a function of symmetric matrices holds
here, at zero too: where f(0) ≠ 0 or f′(0) is not finite, f is applied on the range of A.
"""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor

from covpool.linalg.functions.base import (
    Domain,
    OnTheRange,
    ScalarFunction,
    WithParameter,
    by_triples,
)
from covpool.linalg.functions.differences import guarded
from covpool.linalg.functions.piecewise import CLIP, IDENTITY, NO_RATE, SIGN, SOFT_THRESHOLD
from covpool.linalg.functions.powers import INVERSE, POWER
from covpool.linalg.functions.smooth import TANH
from covpool.linalg.spectrum import rank_tolerance
from covpool.linalg.tables import table


class _Odd(ScalarFunction):
    """sign(x) g(|x|) of a function g of numbers that are not negative, and 0 at zero."""

    domain = Domain.REAL

    def __init__(self, function: ScalarFunction) -> None:
        self._function = cast(OnTheRange, function)
        self.name, self.parameter = function.name, function.parameter
        self.is_rate = function.is_rate
        self.rate = None if function.rate is None else _Odd(function.rate)

    def bind(self, parameter: Tensor | None) -> ScalarFunction:
        return _Odd(self._function.bind(parameter))

    def value(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, -1, 1) * self._function.value(x.abs())

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        larger, smaller = torch.maximum(a.abs(), b.abs()), torch.minimum(a.abs(), b.abs())
        beside = self._function.difference_on_range(larger, smaller)
        apart = (a > 0) & (b < 0)
        total = self._function.value(larger) + self._function.value(smaller)
        return torch.where(apart, total / torch.where(apart, a - b, 1), beside)

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        larger, smaller = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
        beside = self._function.second_divided_difference(
            larger, x.abs().expand_as(larger), smaller
        )
        beside = torch.where((x < 0) | (y < 0), -1, 1) * beside
        apart = ((x > 0) & (y < 0)) | ((x < 0) & (y > 0))
        first = self.divided_difference(torch.maximum(x, y), torch.minimum(x, y))
        across = (self.divided_difference(x, x) - first) / torch.where(apart, x - y, 1)
        return torch.where(apart, across, beside)


class _Kept(WithParameter, ScalarFunction):
    """g(x) where |x| is above the bound, else 0.

    Only pairs of a number that is kept and one that is not have the pole of a quotient.
    """

    domain = Domain.REAL
    parameter = "bound"
    rate = NO_RATE

    def __init__(
        self, name: str, function: ScalarFunction, parameter: Tensor | None = None
    ) -> None:
        super().__init__(parameter)
        self.name, self._function = name, function
        self.smooth_at_zero = function.smooth_at_zero

    def bind(self, parameter: Tensor | None) -> "_Kept":
        return _Kept(self.name, self._function, parameter)

    def _keeps(self, x: Tensor) -> Tensor:
        return ~(x.abs() <= self.beside(x))

    def value(self, x: Tensor) -> Tensor:
        return torch.where(self._keeps(x), self._function.value(x), 0)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        both = self._keeps(a) & self._keeps(b)
        _, gap = guarded(a - b)
        quotient = (self.value(a) - self.value(b)) / gap
        return torch.where(both, self._function.divided_difference(a, b), quotient)

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        above, middle, below = self._keeps(a), self._keeps(b), self._keeps(c)
        of_all = torch.where(above, self._function.second_divided_difference(a, b, c), 0)
        ends = self.divided_difference(a, c)
        (_, upper), (_, lower) = guarded(a - b), guarded(b - c)
        at_upper = (ends - self.divided_difference(b, c)) / upper
        at_lower = (self.divided_difference(a, b) - ends) / lower
        split = torch.where(above != middle, at_upper, at_lower)
        return torch.where((above == middle) & (middle == below), of_all, split)

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        return by_triples(self, x)


class _Isometry(ScalarFunction):
    """1 for every σ, zeros and one that has the sign of a determinant included: U Vᴴ itself.

    Unlike that of the polar factor, the null space has a part in it. Which of the eigenvalues ±σ of
    the symmetric matrix has the value 1 is told by its place: the second half of them. Pairs whose
    sum is zero to rounding, for which there is no derivative, get 0.
    """

    name = "isometry"
    domain = Domain.REAL
    smooth_at_zero = True

    def value(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        """Of each a ≥ 0 with the value 1 and b = 0 in a null space beside it."""
        zero, a = guarded(a)
        return (1 / a).masked_fill(zero, 0)

    def loewner(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x.unsqueeze(-1) + x.unsqueeze(-2))

    def mirrored_loewner(self, x: Tensor) -> Tensor:
        total = x.unsqueeze(-1) + x.unsqueeze(-2)
        tolerance = rank_tolerance(x.shape[-1], x.dtype) * x.abs().amax(-1)
        zero = total <= tolerance[..., None, None]
        return 2 / total.masked_fill(zero, torch.inf)

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        half = x.shape[-1] // 2
        positive = x[..., half:]
        apart = self.mirrored_loewner(positive).flip(-2)
        same = torch.zeros_like(apart)
        # f[xᵢ, xⱼ] of all pairs; the first half of x is the second one turned round.
        first = torch.cat([torch.cat([same, apart], -1), torch.cat([apart.mT, same], -1)], -2)
        labels = torch.ones_like(x[..., 0, None]).expand(x.shape).clone()
        labels[..., :half] = -1
        row, column = labels[..., :, None], labels[..., None, :]
        for index in range(x.shape[-1]):
            to, back = first[..., :, index, None], first[..., None, index, :]
            label = labels[..., index, None, None]
            yield (label * to * back + first * (row * to + column * back)) / 2


POLAR = SIGN
ISOMETRY = _Isometry()
HARD_THRESHOLD = _Kept("hard_threshold", IDENTITY)
PINV = _Kept("pinv", INVERSE)

ODD_FUNCTIONS: Mapping[str, ScalarFunction] = table(
    {
        "polar": POLAR,
        "soft_threshold": SOFT_THRESHOLD,
        "hard_threshold": HARD_THRESHOLD,
        "clip": CLIP,
        "power": _Odd(POWER),
        "pinv": PINV,
        "tanh": TANH,
        "identity": IDENTITY,
    },
    kind="function",
)
"""The functions of singular values by name."""
