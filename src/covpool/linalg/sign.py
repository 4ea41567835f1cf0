"""Odd polynomials whose composition is the sign function to rounding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from covpool.linalg.minimax_coefficients import SIGN_QUINTICS

NEWTON_SCHULZ_STEP = (1.5, -0.5, 0.0)
"""The cubic (3x − x³)/2, which squares what is left of 1 − x."""


def sign_steps(least: float, dtype: torch.dtype) -> list[tuple[float, float, float]]:
    """Odd quintics (a, b, c) whose composition p is 1 to rounding on [least, 1].

    p maps [0, 1] into [0, 1]; at 0 it is 0 and has the slope Π a.
    """
    steps = [row[1:] for row in SIGN_QUINTICS[_first_row(least) :]]
    if torch.finfo(dtype).eps < 1e-9:  # the last row leaves 2.7e-10
        steps.append(NEWTON_SCHULZ_STEP)
    return steps


def _first_row(least: float) -> int:
    return max(k for k, row in enumerate(SIGN_QUINTICS) if row[0] <= least)


def sign_quotient(x: Tensor, steps: Sequence[tuple[float, float, float]]) -> Tensor:
    """p(x)/x elementwise, with p the composition of the steps; finite at 0."""
    quotient = torch.ones_like(x)
    for a, b, c in steps:
        square = (x * quotient) ** 2
        quotient = quotient * (a + square * (b + square * c))
    return quotient
