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
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from covpool.linalg.kernels import Kernel, require_integer
from covpool.linalg.scalar import FUNCTIONS, INV_SQRT, LOG, SQRT, ScalarFunction
from covpool.linalg.spectrum import product

if TYPE_CHECKING:
    from covpool.linalg.methods import Method

EVERY_FUNCTION = frozenset(FUNCTIONS)


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

    least_dtype: ClassVar[torch.dtype]
    """The dtype to compute in at least, unless another is asked for."""

    functions: ClassVar[frozenset[str]]
    """The names of the scalar functions that it computes."""

    @property
    def title(self) -> str:
        """A few words for tables."""
        ...

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor: ...


class Iteration(Forward, Protocol):
    """A forward algorithm that works on the matrix itself, without its eigenvalues."""

    iterated_channels: ClassVar[int]
    """Channels up to which `cov_pool` works on the matrix on a CPU too, where a decomposition
    takes longer: measured for N = 2C and batches of 1 to 256 on 2 cores. 0: never."""

    def matrix(self, covariance: Tensor, function: ScalarFunction, method: "Method") -> Tensor:
        """f(A) in matrix products, with the method's gradient. (*, n, n) → (*, n, n)."""
        ...

    def steps(self, dtype: torch.dtype) -> int | None:
        """How many steps it takes; None where it evaluates a formula."""
        ...


class Gradient(Protocol):
    """A gradient rule."""

    functions: ClassVar[frozenset[str]]
    """The names of the scalar functions that it differentiates."""

    @property
    def title(self) -> str:
        """A few words for tables."""
        ...

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        """The Loewner matrix of (*, m) eigenvalues, in tensors that the caller may write over."""
        ...


def _pairs(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """The larger eigenvalue of every pair, and its distance from the smaller."""
    row, column = eigenvalues[..., :, None], eigenvalues[..., None, :]
    return torch.maximum(row, column), (row - column).abs_()


def _with_diagonal(diagonal_source: Tensor, off_diagonal: Tensor) -> Tensor:
    size = off_diagonal.shape[-1]
    on_diagonal = torch.eye(size, dtype=torch.bool, device=off_diagonal.device)
    return torch.where(on_diagonal, diagonal_source, off_diagonal)


@dataclass(frozen=True, kw_only=True)
class Eigendecomposition:
    """f(λ) of every eigenvalue, to the last digits that the decomposition has."""

    least_dtype: ClassVar[torch.dtype] = torch.float64
    functions: ClassVar[frozenset[str]] = EVERY_FUNCTION

    @property
    def title(self) -> str:
        return "eigendecomposition"

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        return function.value(eigenvalues)


@dataclass(frozen=True, kw_only=True)
class DividedDifferences:
    """The exact gradient: L = f[λi, λj], finite at ties.

    At a singular matrix the square root has no derivative in directions that raise the rank. Pairs
    of two zero eigenvalues get 0 (unless f′(0) is finite), so the gradient is exact along every
    change that keeps the rank, which is what any change of the features behind a covariance of
    deficient rank does.
    """

    functions: ClassVar[frozenset[str]] = EVERY_FUNCTION

    @property
    def title(self) -> str:
        return "exact"

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        return Loewner(function.loewner(eigenvalues))


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    """The gradient through eigenvalues and eigenvectors, with a kernel K for the latter.

    The chain rule gives Lᵢⱼ = Kᵢⱼ f(λi) + Kⱼᵢ f(λj) off the diagonal, f′(λi) on it; for an
    antisymmetric kernel that is Kᵢⱼ (λi − λj) · f[λi, λj], the exact entry times a damping factor.
    At an exact tie the off-diagonal entry is 0 for every antisymmetric kernel, however large K is
    there: unlike the exact gradient, the result then depends on which basis of the tied eigenspace
    the decomposition has chosen. Pairs of zero eigenvalues get 0.
    """

    functions: ClassVar[frozenset[str]] = EVERY_FUNCTION

    kernel: Kernel

    @property
    def title(self) -> str:
        return self.kernel.title

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        larger, gap = _pairs(eigenvalues)
        zero = larger == 0
        larger = larger.masked_fill_(zero, 1)
        exact = function.loewner(eigenvalues)
        on_diagonal = exact.diagonal(dim1=-2, dim2=-1).clone()
        damped = exact.mul_(self.kernel.damping(larger, gap))
        if not self.kernel.antisymmetric:
            damped.add_(self.kernel.asymmetry(larger, gap).mul_(function.value(larger)))
        damped.diagonal(dim1=-2, dim2=-1).copy_(on_diagonal)
        return Loewner(damped.masked_fill_(zero, 0))


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

    functions: ClassVar[frozenset[str]] = EVERY_FUNCTION - {LOG.name}

    kept_fraction: float = 206 / 256
    """N as a share of the matrix's size; the paper keeps 206 of 256."""

    least_dtype: ClassVar[torch.dtype] = torch.float64

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

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        # Zero times the eigenvalue, so that NaN, where it was not looked for, stays NaN.
        discarded = 0 * eigenvalues
        return torch.where(self._kept(eigenvalues, size), function.value(eigenvalues), discarded)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        kept = self._kept(eigenvalues, size)
        smallest = torch.where(kept, eigenvalues, torch.inf).amin(-1)[..., None, None]
        larger, gap = _pairs(eigenvalues)
        exact = function.loewner(eigenvalues)
        bounded = smallest > 0
        damping = torch.where(
            bounded, gap / torch.where(bounded, smallest, 1), (gap > 0).to(exact.dtype)
        )
        entries = _with_diagonal(exact, damping.clamp_max(1) * exact)
        both = kept[..., :, None] & kept[..., None, :] & (larger > 0)
        return Loewner(torch.where(both, entries, 0))


@dataclass(frozen=True, kw_only=True)
class NewtonSchulz:
    """The coupled Newton-Schulz iteration for the square root and its inverse, and its gradient.

    With A = Σ/tr(Σ), Y₀ = A, Z₀ = I: T = (3I − Z Y)/2, Y ← Y T, Z ← T Z; the root is √tr(Σ) · Y
    (Li, Xie, Wang, Gao, "Towards faster training of global covariance pooling networks by
    iterative matrix square root normalization", CVPR 2018), the inverse root Z/√tr(Σ).

    It approximates: eigenvalues far below the trace have not converged. After 5 iterations an
    eigenvalue of 1e-2 of the trace gives 0.659 of its root, one of 1e-4 gives 0.0758; after 10
    iterations 1 − 3e-11 and 0.529. The inverse root has the same relative errors.

    Y and Z are polynomials of A, so on the spectrum the iteration is a scalar recursion f, and its
    gradient is f's divided difference, for which there is a recursion too: a few operations on n²
    numbers for each step, where the gradient in matrix products takes several of n³. The zero
    matrix gives zero, with zero gradient.
    """

    functions: ClassVar[frozenset[str]] = frozenset({SQRT.name, INV_SQRT.name})

    iterations: int = 5
    """Steps of the iteration; iSQRT-COV takes 5, SVD-Newton the gradient of 10."""

    least_dtype: ClassVar[torch.dtype] = torch.float32

    iterated_channels: ClassVar[int] = 24
    """0.75 to 0.95 of the decomposition's time at 8 to 24 channels, 0.8 to 1.3 at 48."""

    def __post_init__(self) -> None:
        require_integer("iterations", self.iterations, 1)

    @property
    def title(self) -> str:
        return "Newton-Schulz"

    def steps(self, dtype: torch.dtype) -> int:
        return self.iterations

    def matrix(self, covariance: Tensor, function: ScalarFunction, method: "Method") -> Tensor:
        """The iteration in matrix products, differentiable by autograd. (*, n, n) → (*, n, n)."""
        # √(c A) = √c √A for any constant c, so c takes the scale out of reach of overflow.
        scale = covariance.detach().diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        zero = scale <= 0
        scale = torch.where(zero, 1, scale)
        scaled = covariance / scale
        trace = scaled.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        trace = torch.where(zero, 1, trace)
        identity = torch.eye(covariance.shape[-1], dtype=trace.dtype, device=trace.device)
        y = scaled / trace
        t = 1.5 * identity - 0.5 * y
        y, z = product(y, t), t
        for _ in range(self.iterations - 1):
            t = 1.5 * identity - 0.5 * product(z, y)
            y, z = product(y, t), product(t, z)
        result = z / (trace * scale).sqrt() if function is INV_SQRT else (trace * scale).sqrt() * y
        return torch.where(zero, 0, result)

    def values(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Tensor:
        normalised, trace, zero = self._normalise(eigenvalues)
        # x z² is carried along: it becomes x z² t², with t = (3 − x z²)/2.
        z, square = torch.ones_like(normalised), normalised.clone()
        for _ in range(self.iterations):
            t = torch.rsub(square, 1.5, alpha=0.5)
            z, square = z.mul_(t), square.mul_(t).mul_(t)
        if function is INV_SQRT:
            return torch.where(zero, 0, trace.rsqrt() * z)
        return torch.where(zero, 0, trace.sqrt() * normalised * z)

    def loewner(self, function: ScalarFunction, eigenvalues: Tensor, size: int) -> Loewner:
        normalised, trace, zero = self._normalise(eigenvalues)
        value, divided_difference = self._divided_difference(function, normalised)
        slope = divided_difference.diagonal(dim1=-2, dim2=-1)
        scale = torch.where(zero, 0, trace.rsqrt())
        if function is INV_SQRT:
            # The range alone is where a decomposing forward pass puts a value, but the iteration's
            # own is (3/2)^iterations at zero, and this is its derivative.
            scale = scale / trace
            by_trace = -(0.5 * value + slope * normalised) * scale
        else:
            by_trace = (0.5 * value - slope * normalised) * scale
        return Loewner(divided_difference.mul_(scale[..., None]), by_trace)

    def _divided_difference(self, function: ScalarFunction, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and f[xᵢ, xⱼ] of x (*, m) with trace 1, to rounding: nothing cancels, ties or not.

        s = x z² becomes s t², whose divided difference is S times tᵢtⱼ − (sᵢtᵢ + sⱼtⱼ)/2; that of
        z t is Z tⱼ − zᵢS/2. As f = x z has the square x s, f[xᵢ, xⱼ] = (sᵢ + xⱼS)/(fᵢ + fⱼ).
        """
        inverse = function is INV_SQRT
        s, z = x, torch.ones_like(x)
        of_s = torch.ones_like(x[..., :, None] * x[..., None, :])
        of_z = torch.zeros_like(of_s)
        # In place: on a CPU fresh memory for a temporary costs more than the arithmetic.
        for _ in range(self.iterations):
            t = torch.rsub(s, 1.5, alpha=0.5)
            if inverse:
                of_z.mul_(t[..., None, :]).sub_(of_s * (0.5 * z)[..., :, None])
            half = 0.5 * s * t
            step = t[..., :, None] * t[..., None, :]
            of_s.mul_(step.sub_(half[..., :, None]).sub_(half[..., None, :]))
            z, s = z * t, s * t * t
        if inverse:
            return z, of_z
        f = x * z
        total = f[..., :, None] + f[..., None, :]
        both_zero = total == 0
        quotient = of_s.mul_(x[..., None, :]).add_(s[..., :, None])
        quotient.div_(total.masked_fill_(both_zero, 1))
        return f, torch.where(both_zero, z[..., :, None], quotient)

    @staticmethod
    def _normalise(eigenvalues: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        trace = eigenvalues.sum(-1, keepdim=True)
        zero = trace <= 0
        trace = torch.where(zero, 1, trace)
        return eigenvalues / trace, trace, zero
