"""Inverse covariances: the precision matrix, and its sparse estimate iSICE."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from covpool.linalg.api import matrix_inv_sqrt
from covpool.linalg.methods import METHODS
from covpool.linalg.spectrum import symmetric_part
from covpool.pooling import covariance
from covpool.poolings.base import Pooling, power, quotient, require
from covpool.poolings.matrix import matrix_pooling

JITTER = 5e-10
"""Multiple of the identity that keeps the inverse finite: the mean of the published code's, whose
diagonal is drawn anew in every call, in evaluation too."""


class _NewtonSchulzInverse(nn.Module):
    def __init__(self, *, iterations: int = 7) -> None:
        super().__init__()
        self.method = METHODS["isqrt-cov"].replace(iterations=iterations)

    def inverse(self, matrix: Tensor) -> Tensor:
        """(M + jitter)⁻¹ as the square of its inverse root, approximate at small eigenvalues."""
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        root = matrix_inv_sqrt(matrix + JITTER * identity, self.method, check=False)
        return root @ root


class Precision(_NewtonSchulzInverse):
    """Σ⁻¹ by Newton-Schulz: the square of the inverse root after 7 steps.

    The number of steps is what regularises it: no direction gets more than 1.5^(2 · steps)/tr Σ,
    which is 292/tr Σ for 7, and the null space of Σ gets just that.
    """

    def forward(self, features: Tensor) -> Tensor:
        return self.inverse(covariance(features))


class SparseInverse(_NewtonSchulzInverse):
    """S/√tr S, S ≻ 0 towards the maximum of log det S − tr(AS) − λ‖S‖₁, A = Σ/tr Σ.

    From A⁻¹, steps along the gradient S⁻¹ − A, whose positive and negative parts are each shrunk
    by λ and kept at or above zero. Their length falls from η.

    With these constants, the published ones, it remains A⁻¹ in effect: the trace of A is 1, so that
    its inverse has entries in the hundreds, and all steps change it by about a hundredth and set
    one or two entries in a hundred to zero. The maximum, where ‖S‖₁ is below C/λ, is far away.

    Args:
        sparsity: λ, of the diagonal too.
        steps: how many.
        rate: η.
        as_published: let the length of the steps fall to 0 in the last one, which then does
            nothing; otherwise to η/steps.
    """

    def __init__(
        self,
        *,
        sparsity: float = 0.01,
        steps: int = 5,
        rate: float = 5.0,
        iterations: int = 7,
        as_published: bool = False,
    ) -> None:
        super().__init__(iterations=iterations)
        least = 2 if as_published else 1
        whole = isinstance(steps, int) and steps >= least
        require(whole, "steps", f"a whole number of at least {least}", steps)
        require(sparsity >= 0, "sparsity", "at least 0", sparsity)
        require(rate > 0, "rate", "positive", rate)
        self.sparsity, self.steps, self.rate = sparsity, steps, rate
        self.as_published = as_published

    def forward(self, features: Tensor) -> Tensor:
        matrix = covariance(features)
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        normalised = quotient(matrix, diagonal.sum(-1)[..., None, None])
        estimate = self.inverse(normalised)
        last = self.steps - 1 if self.as_published else self.steps
        for step in range(self.steps):
            rate = self.rate * (1 - step / last)
            gradient = normalised - self.inverse(estimate)
            positive = relu(relu(estimate) - rate * (gradient + self.sparsity))
            negative = relu(relu(-estimate) - rate * (self.sparsity - gradient))
            estimate = symmetric_part(positive - negative)
        total = estimate.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        return quotient(estimate, power(total, 0.5))


_ISICE = (
    "Rahman, Koniusz, Wang, Zhou, Moghadam, Sun: Learning partial correlation based deep visual "
    "representation for image classification, CVPR 2023"
)

INVERSES: tuple[Pooling, ...] = (
    matrix_pooling(
        "precision",
        Precision,
        normalisation="Σ⁻¹",
        paper=_ISICE,
        description="the precision matrix, by Newton-Schulz",
        caution="The published code adds a random multiple of 1e-9 to each diagonal entry in every "
        "call, and 1e-10 to all entries; here the diagonal's mean, so that it is deterministic. "
        "Where Σ is singular the number of steps decides: the null space gets 292/tr Σ after 7.",
    ),
    matrix_pooling(
        "isice",
        SparseInverse,
        normalisation="sparse inverse S, S/√tr S",
        paper=_ISICE,
        description="the sparse inverse covariance, by unrolled steps",
        caution="The last published step has length 0; here all steps count, and "
        "as_published=True reproduces the other. Deterministic, as precision is. The division by "
        "√tr S is that of the code since November 2023, the third one published. With the "
        "published constants the steps change the inverse by a hundredth: in effect it is "
        "precision over √tr S.",
    ),
)
