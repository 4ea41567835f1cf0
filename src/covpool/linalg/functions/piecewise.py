"""Functions of two linear pieces: the absolute value, the sign, clamps."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from covpool.linalg.functions.base import Domain, ScalarFunction, WithParameter
from covpool.linalg.functions.differences import guarded


class _PiecewiseLinear(ScalarFunction):
    """A function of two linear pieces, of which values and differences take a rounding or two.

    Where the pieces meet the first derivative is that of the class, and the second counts as 0.
    """

    domain = Domain.REAL

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """f′(x)."""

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        tied, gap = guarded(a - b)
        return torch.where(tied, self.slope(a), (self.value(a) - self.value(b)) / gap)

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        slope = self.slope(x)
        # How far f(y) is from the piece of x: zero unless y is on the other one.
        beside = (self.value(y) - slope * y) - (self.value(x) - slope * x)
        tied, gap = guarded(x - y)
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
        self, matrix: Tensor, result: Tensor, projector: Callable[[], Tensor], scale: Tensor
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
        self, matrix: Tensor, result: Tensor, projector: Callable[[], Tensor], scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        return result @ result, projector()


class _ClampMinRateRate(WithParameter, _PiecewiseLinear):
    """0, the second derivative of max(λ, bound) by the bound where no λ is on it."""

    name = "clamp_min · rate²"
    parameter = "bound"
    is_rate = True

    def value(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    slope = value


class _ClampMinRate(_ClampMinRateRate):
    """1 for λ up to the bound, 0 above: the derivative of max(λ, bound) by the bound."""

    name = "clamp_min · rate"
    rate = _ClampMinRateRate()

    def value(self, x: Tensor) -> Tensor:
        return (x <= self.beside(x)).to(x.dtype)


class _ClampMin(WithParameter, _PiecewiseLinear):
    """max(λ, bound), ReEig (Huang, Van Gool, AAAI 2017). At the bound the derivative is 0."""

    name = "clamp_min"
    parameter = "bound"
    rate = _ClampMinRate()

    def value(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.beside(x))

    def slope(self, x: Tensor) -> Tensor:
        return (x > self.beside(x)).to(x.dtype)


ABS = _Abs()
POSITIVE_PART = _PositivePart()
SIGN = _Sign()
CLAMP_MIN = _ClampMin()
