"""The N largest eigenvalues alone, forward and backward."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.forwards.base import Forward
from covpool.linalg.functions import LOG, ON_COVARIANCES, ScalarFunction
from covpool.linalg.gradients.base import Gradient, Loewner, entering, pairs, with_diagonal
from covpool.linalg.gradients.kernels import LargestKernel


@dataclass(frozen=True, kw_only=True)
class TopN(Forward, Gradient):
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

    def __post_init__(self) -> None:
        if isinstance(self.kept_fraction, bool | str) or not 0 < self.kept_fraction <= 1:
            raise ValueError(f"kept_fraction must lie in (0, 1], got {self.kept_fraction!r}")

    @property
    def title(self) -> str:
        return "N largest eigenvalues"

    def kept_count(self, size: int) -> int:
        """N for matrices of that size."""
        return max(1, round(self.kept_fraction * int(size)))  # torch.jit.trace has it a tensor

    def _kept(self, eigenvalues: Tensor, size: int) -> Tensor:
        count = self.kept_count(size)
        index = torch.arange(eigenvalues.shape[-1], device=eigenvalues.device)
        rank = (eigenvalues > 0).sum(-1, keepdim=True)
        return (index >= eigenvalues.shape[-1] - count) | (rank < count)

    def _kept_pairs(self, eigenvalues: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Which pairs are kept, the larger of each, its gap, and λN; 0 if the rank is below N."""
        kept = self._kept(eigenvalues, size)
        smallest = torch.where(kept, eigenvalues, torch.inf).amin(-1)[..., None, None]
        return kept[..., :, None] & kept[..., None, :], *pairs(eigenvalues), smallest

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        # Zero times the eigenvalue, so that NaN, where it was not looked for, stays NaN.
        discarded = 0 * eigenvalues
        return torch.where(self._kept(eigenvalues, size), function.value(eigenvalues), discarded)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        kept, larger, gap, smallest = self._kept_pairs(eigenvalues, size)
        exact = function.loewner(eigenvalues)
        bounded = smallest > 0
        damping = torch.where(
            bounded, gap / torch.where(bounded, smallest, 1), (gap > 0).to(exact.dtype)
        )
        entries = with_diagonal(exact, damping.clamp_max(1) * exact)
        return Loewner(torch.where(kept & (larger > 0), entries, 0))

    def kernel_magnitudes(self, eigenvalues: Tensor) -> Tensor:
        kept, larger, gap, smallest = self._kept_pairs(eigenvalues, eigenvalues.shape[-1])
        bounded = smallest > 0
        at_tie = torch.where(bounded, torch.inf, 0)
        plain = torch.where(gap > 0, 1 / gap, at_tie)
        limited = torch.where(bounded, torch.minimum(plain, 1 / smallest), plain)
        return torch.where(kept & entering(larger), limited, 0)

    def largest_kernel(self, floor: float, dtype: torch.dtype) -> LargestKernel:
        tied = torch.full((2,), floor, dtype=dtype)
        attained = self.kernel_magnitudes(tied).max().item()
        return LargestKernel("1/λN", "λN ≤ floor", 1 / floor, attained)

    def kernel_limit(self, eigenvalues: Tensor, floor: float) -> float:
        """The largest 1/λN of the batch, inf where a rank is below N."""
        kept = eigenvalues[..., -self.kept_count(eigenvalues.shape[-1])]
        return (1 / kept).max().item() if kept.numel() else 1 / floor
