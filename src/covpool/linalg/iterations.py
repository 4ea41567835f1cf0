"""What the forward algorithms that work by matrix products share, and their gradient rule.

Each is a scalar function r of the eigenvalues: with s the Frobenius norm of A, F = √s · r(A/s). So
it is written twice, on the spectrum (`values`) and in matrix products (`root`), and both give the
same F to rounding. The gradient P of a matrix function of this kind solves the Lyapunov equation
F P + P F = G, which is exact where F is the exact root (Song, Sebe, Wang, "Fast differentiable
matrix square root", ICLR 2022, and "Fast differentiable matrix square root and inverse square
root", IEEE TPAMI 2023).

Errors below are relative, in the Frobenius norm, for n = 64 and eigenvalues spaced evenly in
logarithm from 1 to 1/κ; gradients for a random G.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from covpool.linalg.algorithms import Loewner
from covpool.linalg.lyapunov import (
    IterativeRoot,
    IterativeRootBothModes,
    null_factor,
    sign_quotient,
    sign_steps,
    solve_lyapunov,
)
from covpool.linalg.scalar import INV_SQRT, SQRT, ScalarFunction
from covpool.linalg.spectrum import apply_function, full_precision, symmetric_part

if TYPE_CHECKING:
    from covpool.linalg.methods import Method


def _frobenius(entries: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The Frobenius norm over `dims`, kept, without overflow of the squares."""
    largest = entries.abs().amax(dims, keepdim=True)
    divisor = torch.where(largest == 0, 1, largest)
    return largest * torch.linalg.vector_norm(entries / divisor, dim=dims, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class RootIteration(ABC):
    """F = √s · r(A/s), s = ‖A‖ in the Frobenius norm, for a scalar function r on [0, 1]."""

    functions: ClassVar[frozenset[str]]
    """The names of the scalar functions that it computes."""

    least_dtype: ClassVar[torch.dtype]
    """The dtype to compute in at least, unless another is asked for."""

    iterated_channels: ClassVar[int] = 0
    """See `Iteration`."""

    accurate: ClassVar[bool]
    """Whether r is the square root to rounding, so that the Lyapunov equation differentiates it."""

    @property
    @abstractmethod
    def title(self) -> str: ...

    @abstractmethod
    def least_root(self, dtype: torch.dtype) -> float:
        """The least r that the Lyapunov equation has to resolve when computing in `dtype`."""

    @abstractmethod
    def scalar_root(self, x: Tensor) -> Tensor:
        """r(x), elementwise."""

    def scalar_inverse(self, x: Tensor) -> Tensor:
        """1/r(x), of those that offer the inverse root."""
        return 1 / self.scalar_root(x)

    @abstractmethod
    def normalised_roots(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor | None]:
        """r(X) of symmetric matrices (*, n, n) with eigenvalues in [0, 1], and r(X)⁻¹ if asked."""

    def steps(self, dtype: torch.dtype) -> int | None:
        return None

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        if eigenvalues.shape[-1] == 0:
            return eigenvalues
        norm = _frobenius(eigenvalues, (-1,))
        divisor = torch.where(norm == 0, 1, norm)
        if function is INV_SQRT:
            result = self.scalar_inverse(eigenvalues / divisor) * divisor.rsqrt()
        else:
            result = self.scalar_root(eigenvalues / divisor) * divisor.sqrt()
        return torch.where(norm == 0, 0, result)

    def roots(self, matrix: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        """F (*, n, n), √s (*, 1, 1) and, if asked, F⁻¹; without a gradient."""
        with full_precision(matrix):
            norm = _frobenius(matrix, (-2, -1))
            zero = norm == 0
            divisor = torch.where(zero, 1, norm)
            root, reciprocal = self.normalised_roots(matrix / divisor, inverse)
        result = torch.where(zero, 0, divisor.sqrt() * symmetric_part(root)), norm.sqrt()
        if reciprocal is None:
            return result
        return *result, torch.where(zero, 0, divisor.rsqrt() * symmetric_part(reciprocal))

    def matrix(self, covariance: Tensor, function: ScalarFunction, method: "Method") -> Tensor:
        """F or F⁻¹ with the gradient of the Lyapunov equation. (*, n, n) → (*, n, n)."""
        if not isinstance(method.gradient, Lyapunov):
            raise ValueError(
                f"method {method.name!r}: the forward algorithm {self.title!r} goes with the "
                f"gradient of the Lyapunov equation alone, got {method.gradient.title!r}"
            )
        inverse = function is INV_SQRT
        arguments = (covariance, self, method.gradient, method.name, inverse)
        result = apply_function(IterativeRoot, IterativeRootBothModes, *arguments)
        return result[2] if inverse else result[0]


@dataclass(frozen=True, kw_only=True)
class Lyapunov:
    """P with F P + P F = G: the gradient of an exact root, at the F that `forward` gives."""

    forward: RootIteration
    """The forward algorithm."""

    functions: ClassVar[frozenset[str]] = frozenset({SQRT.name, INV_SQRT.name})

    @property
    def title(self) -> str:
        return "Lyapunov equation"

    @property
    def exact(self) -> bool:
        """Whether it is the derivative of the forward pass."""
        return self.forward.accurate

    def solve(self, right: Tensor, root: Tensor, scale: Tensor) -> Tensor:
        """P of symmetric G and F, by matrix products; 0 where the scale √‖A‖ is."""
        zero = scale == 0
        least = self.forward.least_root(root.dtype)
        singular = self.forward.accurate
        solution = solve_lyapunov(root, right, torch.where(zero, 1, scale), least, singular)
        return torch.where(zero, 0, solution)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        norm = _frobenius(eigenvalues, (-1,))
        divisor = torch.where(norm == 0, 1, norm)
        roots = self.forward.scalar_root(eigenvalues / divisor)
        least = self.forward.least_root(eigenvalues.dtype)
        quotient = sign_quotient(roots, sign_steps(least, eigenvalues.dtype))
        signs = roots * quotient
        total = roots[..., :, None] + roots[..., None, :]
        both_zero = total == 0
        mean = torch.where(
            both_zero,
            quotient[..., :, None],
            (signs[..., :, None] + signs[..., None, :]) / torch.where(both_zero, 1, total),
        )
        if self.forward.accurate:
            mean = mean * null_factor(signs)
        loewner = 0.5 * mean * divisor[..., None].rsqrt()
        if function is INV_SQRT:
            inverse = self.forward.scalar_inverse(eigenvalues / divisor) * divisor.rsqrt()
            loewner = -inverse[..., :, None] * inverse[..., None, :] * loewner
        return Loewner(torch.where(norm[..., None] == 0, 0, loewner))
