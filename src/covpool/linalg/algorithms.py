"""The two axes of a method: forward algorithms and gradient rules, written on the spectrum.

Every method computes F = V diag(f) Vᵀ and sends back V (L ∘ (Vᵀ G V)) Vᵀ, with V the
eigenvectors of A, f the values that the forward algorithm gives the eigenvalues, and L the Loewner
matrix that the gradient rule gives them (Daleckiĭ and Kreĭn, 1965). The classes here compute f and
L alone. Their arguments are shared:

    function: the scalar function that is lifted to matrices.
    eigenvalues: (*, m), ascending, non-negative, exactly zero where they are rounding errors.
    size: n of the n × n matrix; any eigenvalues that are not given (n > m) are zeros.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from covpool.linalg.kernels import Kernel
from covpool.linalg.scalar import ScalarFunction


class Loewner(NamedTuple):
    """What a gradient rule gives: the derivative of V diag(f) Vᵀ in the eigenbasis.

    matrix: (*, m, m) symmetric, L.
    trace: (*, m), the derivative of f with respect to tr(A) where f depends on it besides on the
        eigenvalue (Newton-Schulz normalises by the trace), else None.
    """

    matrix: Tensor
    trace: Tensor | None = None


class Forward(Protocol):
    """A forward algorithm: what it makes of each eigenvalue."""

    @property
    def title(self) -> str:
        """A few words for tables."""
        ...

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor: ...


class Gradient(Protocol):
    """A gradient rule."""

    @property
    def title(self) -> str:
        """A few words for tables."""
        ...

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner: ...


class _Pairs(NamedTuple):
    """All pairs of a spectrum; pairs of zeros hold placeholders and are masked by `positive`."""

    larger: Tensor
    smaller: Tensor
    gap: Tensor
    positive: Tensor


def _pairs(eigenvalues: Tensor) -> _Pairs:
    larger = torch.maximum(eigenvalues[..., :, None], eigenvalues[..., None, :])
    smaller = torch.minimum(eigenvalues[..., :, None], eigenvalues[..., None, :])
    positive = larger > 0
    return _Pairs(torch.where(positive, larger, 1), smaller, larger - smaller, positive)


def _assemble(diagonal_source: Tensor, off_diagonal: Tensor, keep: Tensor) -> Loewner:
    on_diagonal = torch.eye(keep.shape[-1], dtype=torch.bool, device=keep.device)
    entries = torch.where(on_diagonal, diagonal_source, off_diagonal)
    return Loewner(torch.where(keep, entries, 0))


@dataclass(frozen=True, kw_only=True)
class Eigendecomposition:
    """f(λ) of every eigenvalue, to the last digits that the decomposition has."""

    @property
    def title(self) -> str:
        return "eigendecomposition"

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        return function.value(eigenvalues)


@dataclass(frozen=True, kw_only=True)
class DividedDifferences:
    """The exact gradient: L = f[λi, λj], finite at ties.

    At a singular matrix the square root has no derivative in directions that raise the rank. Pairs
    of two zero eigenvalues get 0, so the gradient is exact along every change that keeps the rank,
    which is what any change of the features behind a covariance of deficient rank does.
    """

    @property
    def title(self) -> str:
        return "exact"

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        pairs = _pairs(eigenvalues)
        exact = function.divided_difference(pairs.larger, pairs.smaller)
        return Loewner(torch.where(pairs.positive, exact, 0))


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    """The gradient through eigenvalues and eigenvectors, with a kernel K for the latter.

    The chain rule gives Lᵢⱼ = Kᵢⱼ f(λi) + Kⱼᵢ f(λj) off the diagonal, f′(λi) on it; for an
    antisymmetric kernel that is Kᵢⱼ (λi − λj) · f[λi, λj], the exact entry times a damping factor.
    At an exact tie the off-diagonal entry is 0 for every antisymmetric kernel, however large K is
    there: unlike the exact gradient, the result then depends on which basis of the tied eigenspace
    the decomposition has chosen. Pairs of zero eigenvalues get 0, as in `DividedDifferences`.
    """

    kernel: Kernel

    @property
    def title(self) -> str:
        return self.kernel.title

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        pairs = _pairs(eigenvalues)
        upper, lower = self.kernel.magnitudes(pairs.larger, pairs.gap)
        exact = function.divided_difference(pairs.larger, pairs.smaller)
        damped = (lower * pairs.gap) * exact + (upper - lower) * function.value(pairs.larger)
        return _assemble(exact, damped, pairs.positive)


@dataclass(frozen=True, kw_only=True)
class TopN:
    """The N largest eigenvalues alone, forward and backward.

    The discarded part contributes nothing: its values are zero and so is the kernel of every pair
    that holds a discarded eigenvalue. Within the kept part the kernel is 1/(λi − λj) clipped at
    ±1/λN, with λN the smallest kept eigenvalue that is not zero: the bound of the paper's Table 6.

    The forward value is therefore not the square root (it is off by √λ(N+1) in the 2-norm), and
    the gradient is not that of the truncated root: it lacks the pairs of kept and discarded
    eigenvectors. Where λN = λ(N+1) the choice within the tie is the decomposition's.
    """

    kept_fraction: float = 206 / 256
    """N as a share of the matrix's size; the paper keeps 206 of 256."""

    def __post_init__(self) -> None:
        if not 0 < self.kept_fraction <= 1:
            raise ValueError(f"kept_fraction must lie in (0, 1], got {self.kept_fraction}")

    @property
    def title(self) -> str:
        return "N largest eigenvalues"

    def _kept(self, eigenvalues: Tensor, size: int) -> Tensor:
        count = max(1, round(self.kept_fraction * size))
        index = torch.arange(eigenvalues.shape[-1], device=eigenvalues.device)
        return (index >= eigenvalues.shape[-1] - count) & (eigenvalues > 0)

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        return torch.where(self._kept(eigenvalues, size), function.value(eigenvalues), 0)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        kept = self._kept(eigenvalues, size)
        smallest = torch.where(kept, eigenvalues, torch.inf).amin(-1)[..., None, None]
        pairs = _pairs(eigenvalues)
        exact = function.divided_difference(pairs.larger, pairs.smaller)
        damping = (pairs.gap / smallest).clamp_max(1)
        return _assemble(exact, damping * exact, kept[..., :, None] & kept[..., None, :])


@dataclass(frozen=True, kw_only=True)
class NewtonSchulz:
    """The coupled Newton-Schulz iteration for the square root, and its own gradient.

    With A = Σ/tr(Σ), Y₀ = A, Z₀ = I: T = (3I − Z Y)/2, Y ← Y T, Z ← T Z; the result is √tr(Σ) · Y
    (Li, Xie, Wang, Gao, "Towards faster training of global covariance pooling networks by
    iterative matrix square root normalization", CVPR 2018).

    It approximates: eigenvalues far below the trace have not converged. After 5 iterations an
    eigenvalue of 1e-2 of the trace gives 0.75 of its root, one of 1e-4 gives 0.076; after 10
    iterations 1 − 2e-16 and 0.54.

    Y and Z are polynomials of A, so on the spectrum the iteration is a scalar recursion, and its
    gradient is the recursion's divided difference, carried along by the product rule
    (uv)[a, b] = (u(a) + u(b))/2 · v[a, b] + u[a, b] · (v(a) + v(b))/2: O(n²) an iteration.
    The zero matrix gives zero, with zero gradient.
    """

    iterations: int = 5
    """Steps of the iteration; iSQRT-COV takes 5, SVD-Newton the gradient of 10."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    @property
    def title(self) -> str:
        return "Newton-Schulz"

    def matrix(self, covariance: Tensor) -> Tensor:
        """The iteration in matrix products, differentiable by autograd. (*, n, n) → (*, n, n)."""
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        positive = trace > 0
        trace = torch.where(positive, trace, 1)
        identity = torch.eye(covariance.shape[-1], dtype=trace.dtype, device=trace.device)
        y = covariance / trace
        t = 1.5 * identity - 0.5 * y
        y, z = y @ t, t
        for _ in range(self.iterations - 1):
            t = 1.5 * identity - 0.5 * (z @ y)
            y, z = y @ t, t @ z
        return torch.where(positive, trace.sqrt() * y, 0)

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        y, z, trace, positive = self._start(eigenvalues)
        for _ in range(self.iterations):
            t = 1.5 - 0.5 * (z * y)
            y, z = y * t, t * z
        return torch.where(positive, trace.sqrt() * y, 0)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        y, z, trace, positive = self._start(eigenvalues)
        normalised = y
        dy = torch.ones_like(y[..., :, None] * y[..., None, :])
        dz = torch.zeros_like(dy)
        for _ in range(self.iterations):
            t, dt = _product(z, dz, y, dy)
            t, dt = 1.5 - 0.5 * t, -0.5 * dt
            (y, dy), (z, dz) = _product(y, dy, t, dt), _product(t, dt, z, dz)
        slope = dy.diagonal(dim1=-2, dim2=-1)
        scale = torch.where(positive, trace.rsqrt(), 0)
        return Loewner(dy * scale[..., None], (0.5 * y - slope * normalised) * scale)

    @staticmethod
    def _start(eigenvalues: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        trace = eigenvalues.sum(-1, keepdim=True)
        positive = trace > 0
        trace = torch.where(positive, trace, 1)
        return eigenvalues / trace, torch.ones_like(eigenvalues), trace, positive


def _product(u: Tensor, du: Tensor, v: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    """Value and divided difference of the product of two scalar functions."""
    mean_u = 0.5 * (u[..., :, None] + u[..., None, :])
    mean_v = 0.5 * (v[..., :, None] + v[..., None, :])
    return u * v, mean_u * dv + du * mean_v
