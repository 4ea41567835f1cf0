"""Gradient rules: the Loewner matrix L of V (L ∘ (Vᵀ G V)) Vᵀ, computed from the eigenvalues.

V are the eigenvectors of A (Daleckiĭ and Kreĭn, 1965). Arguments of every rule:

    function: the scalar function that is lifted to matrices.
    eigenvalues: (*, m), ascending, as the function's `clip` gives them: exactly zero where they
        are rounding errors and the function is not smooth at zero.
    size: n of the n × n matrix; any eigenvalues that are not given (n > m) are zeros.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from covpool.linalg.functions import ON_COVARIANCES, ScalarFunction
from covpool.linalg.gradients.kernels import Kernel, LargestKernel


class Loewner(NamedTuple):
    """What a gradient rule gives: the derivative of V diag(f) Vᵀ in the eigenbasis.

    matrix: (*, m, m) symmetric, L.
    trace: (*, m), the derivative of f with respect to tr(A) where f depends on it besides on the
        eigenvalue (Newton-Schulz normalises by the trace), else None.
    """

    matrix: Tensor
    trace: Tensor | None = None


class Gradient(ABC):
    """A gradient rule.

    A rule of one's own, a frozen dataclass, gives `title` and `loewner`, and of the rest what is
    not as it is here.
    """

    functions: ClassVar[frozenset[str] | None] = None
    """The names of the scalar functions, None being all, that it differentiates."""

    @property
    def exact(self) -> bool:
        """Whether it is the derivative of the forward pass, so that it has a derivative too."""
        return False

    @property
    @abstractmethod
    def title(self) -> str:
        """A few words for tables."""

    @abstractmethod
    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        """The Loewner matrix of (*, m) eigenvalues, in tensors that the caller may write over."""

    @property
    def solved_at(self) -> object | None:
        """The iteration at whose root it solves an equation in matrix products, or None."""
        return None

    @property
    def pair_kernel(self) -> Kernel | None:
        """Its kernel K where that depends on two eigenvalues alone; None for other rules."""
        return None

    def kernel_magnitudes(self, eigenvalues: Tensor) -> Tensor | None:
        """|Kᵢⱼ| for every pair of eigenvalues of covariances; None for a rule that has no K.

        Args:
            eigenvalues: (*, n), ascending, not negative.

        Returns:
            (*, n, n), the kernel with its overflow check or cap; of one that is not antisymmetric,
            the larger of Kᵢⱼ and Kⱼᵢ. Zero for pairs that enter no gradient: the diagonal, two
            zeros, and eigenvalues that the rule discards.
        """
        return None

    def largest_kernel(self, floor: float, dtype: torch.dtype) -> LargestKernel | None:
        """The largest |K| where the larger eigenvalue of a pair is at least `floor`, or None."""
        return None

    def kernel_limit(self, eigenvalues: Tensor, floor: float) -> float | None:
        """The largest |K| possible on these spectra (*, n), ascending, from `floor` on, or None."""
        largest = self.largest_kernel(floor, eigenvalues.dtype)
        return None if largest is None else largest.bound


def pairs(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """The larger eigenvalue of every pair, and its distance from the smaller."""
    row, column = eigenvalues[..., :, None], eigenvalues[..., None, :]
    return torch.maximum(row, column), (row - column).abs_()


def entering(larger: Tensor) -> Tensor:
    """Which pairs, given the larger eigenvalue of each, enter a gradient through a kernel: those of
    two different eigenvectors of which one has an eigenvalue that is not zero."""
    mask = larger > 0
    mask.diagonal(dim1=-2, dim2=-1).fill_(False)
    return mask


def with_diagonal(diagonal_source: Tensor, off_diagonal: Tensor) -> Tensor:
    size = off_diagonal.shape[-1]
    on_diagonal = torch.eye(size, dtype=torch.bool, device=off_diagonal.device)
    return torch.where(on_diagonal, diagonal_source, off_diagonal)


@dataclass(frozen=True, kw_only=True)
class DividedDifferences(Gradient):
    """The exact gradient: L = f[λi, λj], finite at ties.

    At a singular matrix the square root has no derivative in directions that raise the rank. Pairs
    of two zero eigenvalues get 0 (unless f′(0) is finite), so the gradient is exact along every
    change that keeps the rank, which is what any change of the features behind a covariance of
    deficient rank does.
    """

    @property
    def exact(self) -> bool:
        return True

    @property
    def title(self) -> str:
        return "exact"

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        return Loewner(function.loewner(eigenvalues))


@dataclass(frozen=True, kw_only=True)
class Pairwise(Gradient):
    """The gradient through eigenvalues and eigenvectors, with a kernel K for the latter.

    The chain rule gives Lᵢⱼ = Kᵢⱼ f(λi) + Kⱼᵢ f(λj) off the diagonal, f′(λi) on it; for an
    antisymmetric kernel that is Kᵢⱼ (λi − λj) · f[λi, λj], the exact entry times a damping factor.
    At an exact tie the off-diagonal entry is 0 for every antisymmetric kernel, however large K is
    there: unlike the exact gradient, the result then depends on which basis of the tied eigenspace
    the decomposition has chosen. Pairs of zero eigenvalues get 0.
    """

    functions: ClassVar[frozenset[str] | None] = ON_COVARIANCES

    kernel: Kernel

    @property
    def title(self) -> str:
        return self.kernel.title

    @property
    def pair_kernel(self) -> Kernel:
        return self.kernel

    def kernel_magnitudes(self, eigenvalues: Tensor) -> Tensor:
        larger, gap = pairs(eigenvalues)
        upper, lower = self.kernel.magnitudes(torch.where(larger > 0, larger, 1), gap)
        return torch.where(entering(larger), torch.maximum(upper, lower), 0)

    def largest_kernel(self, floor: float, dtype: torch.dtype) -> LargestKernel:
        return self.kernel.largest(floor, dtype)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        larger, gap = pairs(eigenvalues)
        zero = larger == 0
        larger = larger.masked_fill_(zero, 1)
        exact = function.loewner(eigenvalues)
        on_diagonal = exact.diagonal(dim1=-2, dim2=-1).clone()
        damped = exact.mul_(self.kernel.damping(larger, gap))
        if not self.kernel.antisymmetric:
            damped.add_(self.kernel.asymmetry(larger, gap).mul_(function.value(larger)))
        damped.diagonal(dim1=-2, dim2=-1).copy_(on_diagonal)
        return Loewner(damped.masked_fill_(zero, 0))
