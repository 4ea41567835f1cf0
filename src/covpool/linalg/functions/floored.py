"""Functions of eigenvalues that are clamped from below, f(max(λ, floor))."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from covpool.linalg.functions.base import Domain, ScalarFunction, by_triples
from covpool.linalg.functions.piecewise import CLAMP_MIN


class Floored(ScalarFunction):
    """f∘g of a function f that positive eigenvalues have, with g = max(·, floor), floor > 0.

    Two eigenvalues at or below the floor have g[a, b] = 0, two above it 1, and

        (f∘g)[a, b] = f[ga, gb] g[a, b],
        (f∘g)[a, b, c] = f[ga, gb] g[a, b, c] + f[ga, gb, gc] g[b, c] g[a, c],    a ≥ b ≥ c.

    At the floor itself the derivative counts as 0. Second differences on both sides of it have a
    zero where f is concave: their errors are relative to the two terms.

    The floor is one number for each matrix. It comes with the eigenvalues, see `with_floor`, and is
    a constant to autograd as they are.
    """

    domain = Domain.REAL

    def __init__(self, function: ScalarFunction, floor: Tensor | None = None) -> None:
        self._function, self._floor = function, floor
        self.name = f"{function.name} with a floor"
        self.smooth_at_zero = function.smooth_at_zero
        self.scales = function.scales
        self.parameter = function.parameter
        self.is_rate = function.is_rate
        self.rate = None if function.rate is None else Floored(function.rate)

    def bind(self, parameter: Tensor | None) -> ScalarFunction:
        return Floored(self._function.bind(parameter), self._floor)

    def canonical(self, parameter: Tensor | None) -> tuple[ScalarFunction, Tensor | None]:
        function, parameter = self._function.canonical(parameter)
        return Floored(function, self._floor), parameter

    def prepare(
        self, parameter: Tensor | None, eigenvalues: Tensor
    ) -> tuple[ScalarFunction, Tensor]:
        bound = Floored(self._function.bind(parameter), eigenvalues[..., -1])
        return bound, eigenvalues[..., :-1]

    @property
    def _clamp(self) -> ScalarFunction:
        return CLAMP_MIN.bind(self._floor)

    def value(self, x: Tensor) -> Tensor:
        return self._function.value(self._clamp.value(x))

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        clamp = self._clamp
        first = self._function.divided_difference(clamp.value(a), clamp.value(b))
        return _times(first, clamp.divided_difference(a, b))

    def loewner(self, x: Tensor) -> Tensor:
        clamp = self._clamp
        return _times(self._function.loewner(clamp.value(x)), clamp.loewner(x))

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        clamp = self._clamp
        clamped = clamp.value(a), clamp.value(b), clamp.value(c)
        first = self._function.divided_difference(*clamped[:2])
        second = self._function.second_divided_difference(*clamped)
        slopes = clamp.divided_difference(b, c) * clamp.divided_difference(a, c)
        bend = clamp.second_divided_difference(a, b, c)
        return _times(first, bend) + _times(second, slopes)

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        return by_triples(self, x)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        """That of f, with the floor in the same unit: no eigenvalue is zero, all are in the range.

        So the projector on the range, which is asked of those that have zeros, is the identity.
        """
        identity = torch.eye(lifted.shape[-1], dtype=lifted.dtype, device=lifted.device)
        return self._function.rescale(lifted, unit, lambda: identity)


def with_floor(eigenvalues: Tensor, floor: Tensor) -> Tensor:
    """Eigenvalues (*, m) with the floor (*) behind them: (*, m + 1), as `Floored` takes them.

    So what is made for eigenvalues (vmap, torch.compile, saving for backward) holds for it too.
    """
    return torch.cat([eigenvalues, floor[..., None]], -1)


def _times(factor: Tensor, weight: Tensor) -> Tensor:
    """The product, 0 where the weight is: of a tiny floor the factor may be infinite."""
    return torch.where(weight == 0, 0, factor * weight)
