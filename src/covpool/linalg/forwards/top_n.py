"""The N largest eigenvalues alone, forward and backward."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.functions import LOG, ON_COVARIANCES, ScalarFunction
from covpool.linalg.gradients.base import Gradient, Loewner, pairs, with_diagonal


@dataclass(frozen=True, kw_only=True)
class TopN:
    """The N largest eigenvalues alone, forward and backward.

    The discarded part contributes nothing: its values are zero and so is the kernel of every pair
    that holds a discarded eigenvalue. Within the kept part the kernel is 1/(λi − λj) clipped at
    ±1/λN: the bound of the paper's Table 6.

    The forward value is therefore not f(A) but f on the kept part (the square root is off by
    √λ(N+1) in the 2-norm; inverse roots and negative powers are pseudo-inverse ones), and the
    gradient is not that of the truncated root: it lacks the pairs of kept and discarded
    eigenvectors. Where λN = λ(N+1) the choice within the tie is the decomposition's. Where the
    rank is below N nothing is discarded, λN = 0 bounds nothing, and the gradient is that of
    `Pairwise` with the plain kernel. The logarithm is not offered: what is discarded would count
    as eigenvalues of 1, the middle of its spectrum.
    """

    functions: ClassVar[frozenset[str] | None] = ON_COVARIANCES - {LOG.name}

    kept_fraction: float = 206 / 256
    """N as a share of the matrix's size; the paper keeps 206 of 256."""

    least_dtype: ClassVar[torch.dtype] = torch.float64

    def __post_init__(self) -> None:
        if isinstance(self.kept_fraction, bool | str) or not 0 < self.kept_fraction <= 1:
            raise ValueError(f"kept_fraction must lie in (0, 1], got {self.kept_fraction!r}")

    @property
    def exact(self) -> bool:
        return False

    @property
    def title(self) -> str:
        return "N largest eigenvalues"

    def kept_count(self, size: int) -> int:
        """N for matrices of that size."""
        return max(1, round(self.kept_fraction * int(size)))  # torch.jit.trace has it a tensor

    def differentiated_by(self, gradient: Gradient) -> bool:
        return True

    def _kept(self, eigenvalues: Tensor, size: int) -> Tensor:
        count = self.kept_count(size)
        index = torch.arange(eigenvalues.shape[-1], device=eigenvalues.device)
        rank = (eigenvalues > 0).sum(-1, keepdim=True)
        return (index >= eigenvalues.shape[-1] - count) | (rank < count)

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        # Zero times the eigenvalue, so that NaN, where it was not looked for, stays NaN.
        discarded = 0 * eigenvalues
        return torch.where(self._kept(eigenvalues, size), function.value(eigenvalues), discarded)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        kept = self._kept(eigenvalues, size)
        smallest = torch.where(kept, eigenvalues, torch.inf).amin(-1)[..., None, None]
        larger, gap = pairs(eigenvalues)
        exact = function.loewner(eigenvalues)
        bounded = smallest > 0
        damping = torch.where(
            bounded, gap / torch.where(bounded, smallest, 1), (gap > 0).to(exact.dtype)
        )
        entries = with_diagonal(exact, damping.clamp_max(1) * exact)
        both = kept[..., :, None] & kept[..., None, :] & (larger > 0)
        return Loewner(torch.where(both, entries, 0))
