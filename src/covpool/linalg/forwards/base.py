"""Forward algorithms: what is made of each eigenvalue, or of the matrix in its products.

Roots by matrix products are scalar functions r of the eigenvalues: with s the Frobenius norm of A,
F = √s · r(A/s). So each is written twice, on the spectrum (`values`) and in matrix products
(`normalised_roots`), and both give the same F to rounding.

Arguments of `values`:

    function: the scalar function that is lifted to matrices.
    eigenvalues: (*, m), ascending, as the function's `clip` gives them: exactly zero where they
        are rounding errors and the function is not smooth at zero.
    size: n of the n × n matrix; any eigenvalues that are not given (n > m) are zeros.

Errors in the docstrings of iterations are relative, in the Frobenius norm, for n = 64 and
eigenvalues spaced evenly in logarithm from 1 to 1/κ; gradients for a random G.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covpool.linalg.functions import ScalarFunction
from covpool.linalg.gradients.base import Gradient
from covpool.linalg.spectrum import frobenius_norm, symmetric_part

Steps = list[tuple[float, float, float]]
"""Coefficients (a, b, c) of one odd quintic each, as `iterate_coupled` takes them."""


class Forward(ABC):
    """A forward algorithm: what it makes of each eigenvalue.

    An algorithm of one's own, a frozen dataclass, gives `title` and `values`, and of the rest what
    is not as it is here.
    """

    least_dtype: ClassVar[torch.dtype] = torch.float64
    """The dtype to compute in at least, unless another is asked for."""

    smooth: ClassVar[bool] = False
    """Whether its value is as smooth at a zero eigenvalue as elsewhere.

    If so, `cov_pool` treats small eigenvalues like any others: it decides no rank, sets none of
    them to zero, expects a value at zero that need not be f(0), and computes all of it in float32
    where the input is. If not, small eigenvalues are where rounding does the most harm, so that
    `cov_pool` decomposes in float64 and sets those to zero that may be rounding errors."""

    functions: ClassVar[frozenset[str] | None] = None
    """The names of the scalar functions, None being all, that it computes."""

    @property
    @abstractmethod
    def title(self) -> str:
        """A few words for tables."""

    @abstractmethod
    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        """f(λ), (*, m)."""

    def differentiated_by(self, gradient: Gradient) -> bool:
        """Whether the gradient rule goes with it."""
        return True

    def kept_count(self, size: int) -> int:
        """How many eigenvalues of an n × n matrix it keeps, n = `size`."""
        return size

    def product_steps(self, dtype: torch.dtype) -> tuple[Steps, float] | None:
        """The quintics of which its root consists in `dtype`, where matrix products are all of it.

        Returns:
            The steps, and the multiple of the trace that is added to every eigenvalue before them;
            None for an algorithm that needs more than products.
        """
        return None


class Iteration(Forward):
    """A forward algorithm that works on the matrix itself, without its eigenvalues."""

    iterated_channels: ClassVar[int] = 0
    """Channels up to which `cov_pool` works on the matrix on a CPU too, where a decomposition
    takes longer: measured for N = 2C and batches of 1 to 256 on 2 cores. 0: never."""

    def differentiated_by(self, gradient: Gradient) -> bool:
        return gradient == self

    def steps(self, dtype: torch.dtype) -> int | None:
        """How many steps it takes; None where it evaluates a formula."""
        return None


@dataclass(frozen=True, kw_only=True)
class Eigendecomposition(Forward):
    """f(λ) of every eigenvalue, to the last digits that the decomposition has."""

    @property
    def title(self) -> str:
        return "eigendecomposition"

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        return function.value(eigenvalues)


@dataclass(frozen=True, kw_only=True)
class RootIteration(Iteration):
    """F = √s · r(A/s), s = ‖A‖ in the Frobenius norm, for a scalar function r on [0, 1]."""

    accurate: ClassVar[bool]
    """See `ApproximateRoot`."""

    @abstractmethod
    def least_root(self, dtype: torch.dtype) -> float:
        """See `ApproximateRoot`."""

    def norm(self, eigenvalues: Tensor) -> Tensor:
        """s of (*, m) eigenvalues: (*, 1)."""
        return frobenius_norm(eigenvalues, (-1,))

    @abstractmethod
    def scalar_root(self, x: Tensor) -> Tensor:
        """r(x), elementwise."""

    def scalar_inverse(self, x: Tensor) -> Tensor:
        """1/r(x), of those that offer the inverse root."""
        return 1 / self.scalar_root(x)

    def differentiated_by(self, gradient: Gradient) -> bool:
        return gradient.solved_at == self

    @abstractmethod
    def normalised_roots(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor | None]:
        """r(X) of symmetric matrices (*, n, n) with eigenvalues in [0, 1], and r(X)⁻¹ if asked."""

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        if eigenvalues.shape[-1] == 0:
            return eigenvalues
        norm = self.norm(eigenvalues)
        divisor = torch.where(norm == 0, 1, norm)
        if function.inverse_of is not None:
            result = self.scalar_inverse(eigenvalues / divisor) * divisor.rsqrt()
        else:
            result = self.scalar_root(eigenvalues / divisor) * divisor.sqrt()
        return torch.where(norm == 0, 0, result)

    def roots(self, matrix: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        """F (*, n, n), √s (*, 1, 1) and, if asked, F⁻¹; without a gradient."""
        norm = frobenius_norm(matrix, (-2, -1))
        zero = norm == 0
        divisor = torch.where(zero, 1, norm)
        root, reciprocal = self.normalised_roots(matrix / divisor, inverse)
        result = torch.where(zero, 0, divisor.sqrt() * symmetric_part(root)), norm.sqrt()
        if reciprocal is None:
            return result
        return *result, torch.where(zero, 0, divisor.rsqrt() * symmetric_part(reciprocal))
