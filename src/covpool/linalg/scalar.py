"""Scalar functions f that are lifted to symmetric matrices, f(A) = V f(Λ) Vᵀ."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScalarFunction:
    """A scalar function on [0, ∞) with what its lift to matrices needs.

    Attributes:
        name: its name in messages.
        value: f(λ), elementwise.
        divided_difference: f[a, b] = (f(a) − f(b)) / (a − b) for a ≥ b ≥ 0 and a > 0, elementwise,
            with f[a, a] = f′(a), evaluated without the cancellation of the raw quotient.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    divided_difference: Callable[[Tensor, Tensor], Tensor]


def _sqrt_divided_difference(a: Tensor, b: Tensor) -> Tensor:
    return 1 / (torch.sqrt(a) + torch.sqrt(b))


SQRT = ScalarFunction("sqrt", torch.sqrt, _sqrt_divided_difference)
