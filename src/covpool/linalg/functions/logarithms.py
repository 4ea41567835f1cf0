"""The logarithm and the entropy of the eigenvalues."""

from collections.abc import Callable

import torch
from torch import Tensor

from covpool.linalg.functions.base import Domain, OnTheRange
from covpool.linalg.functions.differences import (
    NEAR_TIE,
    TAYLOR_TERMS,
    by_rank,
    guarded,
    log_difference,
    taylor,
)
from covpool.linalg.quadrature import mean


class _Log(OnTheRange):
    name = "log"
    scales = True
    domain = Domain.POSITIVE

    def value(self, x: Tensor) -> Tensor:
        zero, x = guarded(x)
        return torch.log(x).masked_fill(zero, 0)

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        return lifted + unit.log() * projector()

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        zero, b = b == 0, torch.where(b == 0, a, b)
        return torch.where(zero, torch.log(a) / a, log_difference(a, b))

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        no_a, a = guarded(a)
        no_b, b = b == 0, torch.where(b == 0, a, b)
        no_c, c = c == 0, torch.where(c == 0, b, c)
        spread = a - c
        near = spread < NEAR_TIE * a
        quotient = (log_difference(a, b) - log_difference(b, c)) / torch.where(near, 1, spread)
        mean = a / 3 + b / 3 + c / 3
        signs = [torch.full_like(a, (-1) ** (m + 1) / (m + 2)) for m in range(TAYLOR_TERMS)]
        series = taylor(a, b, c, mean, signs) / mean / mean
        # (log λ / λ)[a, b], as log counts as 0 at 0.
        rank_two = (log_difference(a, b) - torch.log(a) / a) / b
        rank_one = torch.log(a) / a / a
        full = torch.where(near, series, quotient)
        return by_rank(no_a, no_b, no_c, full, rank_two, rank_one)

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Callable[[], Tensor], scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        # exp(Y − log(s) P) = A/s on the range, the identity beside it.
        onto_range = projector()
        actual = torch.linalg.matrix_exp(result - scale.log() * onto_range)
        return actual, matrix / scale + (identity - onto_range)


class _Entropy(OnTheRange):
    """−λ log λ, 0 at zero, where its derivative is infinite and counts as 0.

    f[a, b] = −(log a + b log[a, b]), which is zero where the two balance: errors are relative to
    |log a| + 1.
    """

    name = "entropy"

    def value(self, x: Tensor) -> Tensor:
        return -torch.xlogy(x, x)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        zero, lower = b == 0, torch.where(b == 0, a, b)
        return -(torch.log(a) + torch.where(zero, 0, b * log_difference(a, lower)))

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        no_a, a = guarded(a)
        no_b, b = b == 0, torch.where(b == 0, a, b)
        no_c, c = c == 0, torch.where(c == 0, b, c)
        full = super().second_divided_difference(a, b, c)
        return by_rank(no_a, no_b, no_c, full, -log_difference(a, b), -torch.log(a) / a)

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        """(y log[x, y] − 1) / (x − y) for x, y > 0."""
        larger, smaller = torch.maximum(x, y), torch.minimum(x, y)
        near = smaller > larger / 2
        close, _ = mean(lambda t: -1 / t, x, torch.where(near, y, x), power=1)
        far = y * log_difference(larger, smaller) - 1
        return torch.where(near, close, far / torch.where(near, 1, x - y))


LOG = _Log()
ENTROPY = _Entropy()
