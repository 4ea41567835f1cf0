"""The inverse p-th root, with the residual that says whether to trust it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.autograd.inverse_root import inverse_root
from covpool.linalg.engine.factorisation import InvalidMatrixError
from covpool.linalg.evaluate import evaluate
from covpool.linalg.forwards.coupled_newton import (
    largest_eigenvalue_bound,
    plan_inverse_root,
    power,
)
from covpool.linalg.functions import INV_ROOT
from covpool.linalg.names import InverseRootName
from covpool.linalg.precision import full_precision
from covpool.linalg.spectrum import name_samples, of_kind, planar, symmetric_part
from covpool.linalg.tables import choose, table
from covpool.linalg.transforms import unreadable


class InverseRootInfo(NamedTuple):
    """Figures of each matrix of a batch, (*) like the batch, detached.

    residual: ‖Xᵖ (A + ridge I) − I‖_F in the precision of the computation, inf where that left the
        numbers. The result's relative error is about this over p.
    ridge: what was added to every eigenvalue.
    iterations: how many steps were taken, int64; 0 where the matrix was decomposed.
    """

    residual: Tensor
    ridge: Tensor
    iterations: Tensor


class InverseRootMethod(ABC):
    """A way to compute inverse p-th roots; the rows of `INVERSE_ROOTS`."""

    @abstractmethod
    def largest(self, matrix: Tensor) -> Tensor:
        """The largest eigenvalue, or an upper bound of it: (*, n, n) → (*, 1, 1)."""

    @abstractmethod
    def solve(self, matrix: Tensor, root: int, largest: Tensor | None) -> tuple[Tensor, int]:
        """A^(−1/p) of Hermitian matrices, differentiable, and the number of steps.

        Args:
            largest: of the same matrix, if it is known.
        """


@dataclass(frozen=True, kw_only=True)
class Decomposition(InverseRootMethod):
    """V diag(λ^(−1/p)) Vᴴ, with the gradient by divided differences: method 'exact' of METHODS."""

    def largest(self, matrix: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(matrix)[..., -1, None, None].clamp_min(0)

    def solve(self, matrix: Tensor, root: int, largest: Tensor | None) -> tuple[Tensor, int]:
        precision = torch.float32 if matrix.dtype == of_kind(torch.float32, matrix.dtype) else None
        # Singular matrices give the root of the pseudo-inverse, which the residual refuses.
        (found,) = evaluate(
            *("matrix_inv_root", (INV_ROOT,), matrix, (float(root),), "exact", precision),
            check=False,
            return_info=False,
        )
        return found, 0


@dataclass(frozen=True, kw_only=True)
class CoupledNewton(InverseRootMethod):
    """By matrix products alone: M₀ = A/b, X₀ = b^(−1/p) I; T = α I − β M, X ← X T, M ← Tᵖ M.

    b ≥ ‖A‖₂ is `largest_eigenvalue_bound`, the (α, β) are those of `plan_inverse_root`. Their
    number follows from p, the condition number and the precision: 21 for p = 4 in float64, each of
    2 products and of those of a p-th power.
    """

    condition: float | None = None
    """Eigenvalues down to ‖A‖₂/condition are resolved. None: finfo(dtype).eps^(−3/4), which is
    5.5e11 in float64 and 1.6e5 in float32; rounding leaves a residual of about eps^(1/4) there."""

    def __post_init__(self) -> None:
        value = self.condition
        if value is not None and (isinstance(value, bool | str) or not 1 <= value <= 1e16):
            raise ValueError(f"condition must be a number from 1 to 1e16 or None, got {value!r}")

    def largest(self, matrix: Tensor) -> Tensor:
        return largest_eigenvalue_bound(matrix)

    def solve(self, matrix: Tensor, root: int, largest: Tensor | None) -> tuple[Tensor, int]:
        bound = largest_eigenvalue_bound(matrix.detach()) if largest is None else largest
        bound = torch.where(bound > 0, bound, 1)
        iteration = plan_inverse_root(root, matrix.shape[-1], self.condition, matrix.dtype)
        found = bound ** (-1 / root) * inverse_root(matrix / bound, iteration)
        return found, len(iteration.steps)


INVERSE_ROOTS: Mapping[str, InverseRootMethod] = table(
    {"exact": Decomposition(), "coupled-newton": CoupledNewton()}, kind="method"
)
"""The methods of `matrix_inv_root`. METHODS has those of the square root of a covariance, each of
which is a pooling too; 'exact' is the same in both."""


@overload
def matrix_inv_root(
    matrix: Tensor,
    root: int,
    method: InverseRootName | InverseRootMethod = "exact",
    *,
    ridge: Tensor | float = 0.0,
    tolerance: float = 1e-3,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[False] = False,
) -> Tensor: ...


@overload
def matrix_inv_root(
    matrix: Tensor,
    root: int,
    method: InverseRootName | InverseRootMethod = "exact",
    *,
    ridge: Tensor | float = 0.0,
    tolerance: float = 1e-3,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[True],
) -> tuple[Tensor, InverseRootInfo]: ...


def matrix_inv_root(
    matrix: Tensor,
    root: int,
    method: InverseRootName | InverseRootMethod = "exact",
    *,
    ridge: Tensor | float = 0.0,
    tolerance: float = 1e-3,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, InverseRootInfo]:
    """The inverse p-th root X = A^(−1/p) of symmetric positive definite matrices, and its residual.

    Whatever the method, ‖Xᵖ A − I‖ is computed and compared with the tolerance: a result that has
    not converged, or of a singular or indefinite matrix, is refused or NaN, sample by sample.

    Args:
        matrix: (*, n, n), as for `matrix_sqrt`, complex Hermitian too.
        root: p, a whole number from 1; 2, 4 and 8 need the fewest products for their size.
        method: "exact", by eigendecomposition, or "coupled-newton", by matrix products alone: 21
            steps of 4 products for p = 4 in float64. The errors of both are alike, about
            finfo(dtype).eps · κ/p at condition number κ. It resolves eigenvalues down to 1.8e-12
            of the largest (6e-6 in float32), or to those that a row of your own says:
            `covpool.linalg.inverse_root.CoupledNewton(condition=1e6)`.
        ridge: its multiple of the largest eigenvalue is added to every eigenvalue: a number, or a
            tensor that broadcasts to the batch shape. "exact" takes the largest eigenvalue itself,
            "coupled-newton" an upper bound by products, larger by n^(1/16) at most (1.30 at n = 64,
            1.54 at n = 1024). What is added is in `return_info`, and a constant for the gradient.
        tolerance: the largest residual ‖Xᵖ A − I‖_F that passes, A with its ridge. In float32 it
            is about 1e-6 κ, so 1e-3 admits condition numbers up to about 1e3.
        compute_dtype: None: float64. torch.float32 is twice as fast and more on many devices.
        check: whether to refuse matrices that are not finite and symmetric, and results above the
            tolerance. Off, and inside torch.compile or torch.func transforms, the results above
            it, and their gradients, are NaN.
        return_info: whether to return `InverseRootInfo` too: residual, ridge and iterations.

    Returns:
        (*, n, n), symmetric, in the input's dtype; with `return_info`, a tuple of that and
        `InverseRootInfo`.

    Ties need no care. Rank deficiency: refused, unless there is a ridge.

    Derivatives: "exact" as in `matrix_function`. "coupled-newton" solves the implicit equation
    Σₖ Xᵏ dX X^(p−1−k) = −Xᵖ dA Xᵖ by the same iteration of the pair (A, dA), three times the
    products of the value and no memory but for the matrix. Derivatives of every order are right,
    each for three times the products of the one before. Forward mode as for `matrix_sqrt`.

    Raises:
        TypeError: not a tensor.
        ValueError: not square, not floating point, a root that is not a whole number from 1, an
            unknown method, a ridge that is negative or not finite, a negative tolerance, another
            compute_dtype than float32 and float64 or, with `check`, matrices that are not finite or
            symmetric, and residuals above the tolerance, by index; the last two are a
            torch.linalg.LinAlgError too where a matrix is at fault.

    Source: Guo, Higham, "A Schur-Newton method for the matrix pth root and its inverse", SIAM J.
    Matrix Anal. Appl. 28, 2006; Gupta, Koren, Singer, "Shampoo: preconditioned stochastic tensor
    optimization", ICML 2018, for what it is used for.

    >>> import torch, covpool
    >>> root, info = covpool.matrix_inv_root(
    ...     torch.diag(torch.tensor([1.0, 16.0])), 4, "coupled-newton", return_info=True
    ... )
    >>> root.diagonal()
    tensor([1.0000, 0.5000])
    >>> bool(info.residual < 1e-12)
    True
    """
    name = "matrix_inv_root"
    checks.square(name, matrix, complex_too=True)
    checks.compute_dtype(name, compute_dtype)
    root = checks.integer(f"{name}: root", root, 1)
    row = method if isinstance(method, InverseRootMethod) else None
    row = choose("method", method, INVERSE_ROOTS) if row is None else row
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not tolerance >= 0:
        raise ValueError(f"{name}: tolerance must be a number of at least 0, got {tolerance!r}")
    size, batch = matrix.shape[-1], matrix.shape[:-2]
    share = checks.parameter(name, "ridge", ridge, batch)
    if isinstance(share, Tensor):
        share = share.detach()
        if not unreadable(share):
            checks.finite(f"{name}: ridge", share, sample_dims=0)
    if (not isinstance(share, Tensor) or not unreadable(share)) and bool(
        (torch.as_tensor(share) < 0).any()
    ):
        raise ValueError(f"{name}: ridge must be at least 0, got {ridge!r}")
    if size == 0:
        if return_info:
            raise ValueError(
                f"{name}: matrices of size 0 have no residual, got {tuple(matrix.shape)}"
            )
        return matrix.clone()
    values = planar(matrix.detach())
    checked = check and not unreadable(values)
    if checked and matrix.numel():
        checks.entries(name, values, checks.exactly_symmetric(values))
    dtype = of_kind(compute_dtype or torch.float64, matrix.dtype)
    with full_precision(matrix):
        working, largest = symmetric_part(matrix.to(dtype)), None
        without = None
        added = torch.zeros_like(working.detach()[..., :1, :1]).real
        identity = torch.eye(size, dtype=dtype, device=matrix.device)
        if isinstance(share, Tensor) or share > 0:
            shares = torch.as_tensor(share, dtype=added.dtype, device=matrix.device)
            largest = row.largest(working.detach())
            added = shares.expand(batch)[..., None, None] * largest
            without = (shares.expand(batch) > 0) & ~(added[..., 0, 0] > 0)
            working, largest = working + added * identity, largest + added
        found, steps = row.solve(working, root, largest)
        with torch.no_grad():
            powered = power([found.detach()], root)[0]
            residual = torch.linalg.matrix_norm(powered @ working.detach() - identity)
            # Where it has diverged, NaN.
            residual = residual.nan_to_num(torch.inf)
            above = residual > tolerance
        if not checked:
            found = found * torch.where(above, torch.nan, 1.0).to(added.dtype)[..., None, None]
        elif bool(above.any()):
            _refuse(name, above, residual, tolerance, dtype, without)
        result = found.to(matrix.dtype)
    if not return_info:
        return result
    taken = torch.full(batch, steps, device=matrix.device)
    return result, InverseRootInfo(residual, added[..., 0, 0].expand(batch), taken)


def _refuse(
    name: str,
    above: Tensor,
    residual: Tensor,
    tolerance: float,
    dtype: torch.dtype,
    without: Tensor | None,
) -> None:
    """Of matrices `above` the tolerance; those `without` got no ridge, though one was asked for."""
    lost = None if without is None else above & without
    if lost is not None and bool(lost.any()):
        raise InvalidMatrixError(
            f"{name}: the largest eigenvalue is zero or negative{name_samples(lost)}, so there "
            "is no ridge, which is a share of it; add a multiple of the identity instead"
        )
    worst = residual[above].max().item()
    wider = "" if torch.finfo(dtype).eps < 1e-9 else "compute_dtype=torch.float64, "
    raise InvalidMatrixError(
        f"{name}: the residual ‖Xᵖ A − I‖ is above {tolerance:g}{name_samples(above)}, up to "
        f"{worst:.2g}: the matrix is indefinite, singular, or its condition number too large for "
        f"{dtype}; give a ridge (ridge=1e-6 adds that share of the largest eigenvalue to all), "
        f"{wider}or a larger tolerance"
    )
