"""Scalar functions of the published normalisations, which the linear algebra lifts to matrices."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import mul

import torch
from torch import Tensor

from covpool.linalg.elementwise import Elementwise
from covpool.linalg.functions import Domain, ScalarFunction
from covpool.linalg.functions.base import by_triples


class Shifted(ScalarFunction):
    """f(λ + ε) of a function f of λ > 0: smooth at zero, where it is f(ε)."""

    domain = Domain.NONNEGATIVE
    smooth_at_zero = True

    def __init__(self, function: ScalarFunction, by: float) -> None:
        self._function, self._by = function, by
        self.name = f"{function.name}(λ + {by:g})"

    def value(self, x: Tensor) -> Tensor:
        return self._function.value(x + self._by)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        return self._function.divided_difference(a + self._by, b + self._by)

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        by = self._by
        return self._function.second_divided_difference(a + by, b + by, c + by)

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        return by_triples(self, x)


def max_exp(eta: float) -> ScalarFunction:
    """1 − (1 − λ)^η of λ in [0, 1]."""
    return Elementwise(partial(_max_exp, eta=eta), "MaxExp", "nonnegative")


def _max_exp(x: Tensor, eta: float) -> Tensor:
    return 1 - (1 - x).clamp_min(0) ** eta


def heat_diffusion(time: float) -> ScalarFunction:
    """exp(−t/λ), 0 at λ = 0, where all its derivatives are 0."""
    return Elementwise(partial(_heat_diffusion, time=time), "HDP", "nonnegative")


def _heat_diffusion(x: Tensor, time: float) -> Tensor:
    least = time / 700  # exp(−700) is 1e-304
    return torch.where(x > least, torch.exp(-time / x.clamp_min(least)), 0)


def chebyshev_log(degree: int, low: float, high: float, weight: float) -> ScalarFunction:
    """The Chebyshev series of log on [low, high], at weight · λ + 1 − weight."""
    coefficients, slope, shift = _log_series(degree, low, high, weight)
    series = partial(_chebyshev, coefficients=coefficients, slope=slope, shift=shift)
    return Elementwise(series, "Chebyshev logarithm", "nonnegative")


def chebyshev_of_matrix(
    matrix: Tensor, degree: int, low: float, high: float, weight: float
) -> Tensor:
    """The same of symmetric matrices (*, n, n), in matrix products."""
    coefficients, slope, shift = _log_series(degree, low, high, weight)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return _clenshaw(slope * matrix + shift * identity, coefficients, identity, torch.matmul)


def _log_series(
    degree: int, low: float, high: float, weight: float
) -> tuple[list[float], float, float]:
    """Coefficients cₖ of Σ cₖ Tₖ(slope · λ + shift), slope and shift."""
    centre, half = (high + low) / 2, (high - low) / 2
    nodes = [(k + 0.5) * math.pi / (degree + 1) for k in range(degree + 1)]
    logs = [math.log(centre + half * math.cos(node)) for node in nodes]
    coefficients = [
        (2 if order else 1)
        / (degree + 1)
        * sum(map(mul, logs, (math.cos(order * n) for n in nodes)))
        for order in range(degree + 1)
    ]
    return coefficients, weight / half, (1 - weight - centre) / half


def _chebyshev(x: Tensor, coefficients: Sequence[float], slope: float, shift: float) -> Tensor:
    return _clenshaw(slope * x + shift, coefficients, torch.ones_like(x), mul)


def _clenshaw(
    t: Tensor, coefficients: Sequence[float], one: Tensor, multiply: Callable[..., Tensor]
) -> Tensor:
    """Σ cₖ Tₖ(t), by Clenshaw's recurrence."""
    last, before = torch.zeros_like(t), torch.zeros_like(t)
    for coefficient in reversed(coefficients[1:]):
        last, before = 2 * multiply(t, last) - before + coefficient * one, last
    return multiply(t, last) - before + coefficients[0] * one
