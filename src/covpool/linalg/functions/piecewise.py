"""Functions of linear pieces: the absolute value, the sign, clamps, thresholds."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from covpool.linalg.functions.base import Domain, ScalarFunction, WithParameter
from covpool.linalg.functions.differences import guarded


class _PiecewiseLinear(ScalarFunction):
    """A function of linear pieces, of which values and differences take a rounding or two.

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


class _NoRate(WithParameter, _PiecewiseLinear):
    """0: how a jump, or a function of one slope, changes with the bound where no λ is on it."""

    name = "zero rate"
    parameter = "bound"
    is_rate = True

    def value(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    slope = value


class _ClampMinRate(_NoRate):
    """1 for λ up to the bound, 0 above: the derivative of max(λ, bound) by the bound."""

    name = "clamp_min · rate"
    rate = _NoRate()

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


class _Identity(_PiecewiseLinear):
    name = "identity"
    smooth_at_zero = True

    def value(self, x: Tensor) -> Tensor:
        return x.clone()

    def slope(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


class _ClipRate(_NoRate):
    """±1 from the bound on, 0 between: the derivative of the clipped λ by the bound."""

    name = "clip · rate"
    rate = _NoRate()

    def value(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() >= self.beside(x), x.sign(), 0)


class _Clip(WithParameter, _PiecewiseLinear):
    """λ between −bound and bound, else the nearer of them. At the bound the derivative is 0."""

    name = "clip"
    parameter = "bound"
    smooth_at_zero = True
    rate = _ClipRate()

    def value(self, x: Tensor) -> Tensor:
        bound = self.beside(x)
        return torch.maximum(torch.minimum(x, bound), -bound)

    def slope(self, x: Tensor) -> Tensor:
        return (x.abs() < self.beside(x)).to(x.dtype)


class _SoftThresholdRate(_ClipRate):
    """∓1 beyond the threshold, 0 up to it."""

    name = "soft_threshold · rate"
    parameter = "threshold"

    def value(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() > self.beside(x), -x.sign(), 0)


class _SoftThreshold(_Clip):
    """λ − clip(λ), whose differences are exact where those of its own values would cancel."""

    name = "soft_threshold"
    parameter = "threshold"
    rate = _SoftThresholdRate()

    def value(self, x: Tensor) -> Tensor:
        return x - super().value(x)

    def slope(self, x: Tensor) -> Tensor:
        return (x.abs() > self.beside(x)).to(x.dtype)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        clip = CLIP.bind(self._parameter)
        return torch.where(a == b, self.slope(a), 1 - clip.divided_difference(a, b))

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        return -CLIP.bind(self._parameter).confluent_difference(x, y)


ABS = _Abs()
POSITIVE_PART = _PositivePart()
SIGN = _Sign()
CLAMP_MIN = _ClampMin()
IDENTITY = _Identity()
NO_RATE = _NoRate()
CLIP = _Clip()
SOFT_THRESHOLD = _SoftThreshold()
