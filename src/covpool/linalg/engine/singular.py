"""The thin singular value decomposition itself: quick, checked, and retried.

Shapes: (*, m, n) matrices, k = min(m, n); U (*, m, k), S (*, k) descending, Vh (*, k, n).
"""

import warnings

import torch
from torch import Tensor

from covpool.linalg.engine.factorisation import Factorisation, exceeds, largest, probe
from covpool.linalg.engine.shares import empty_column_major
from covpool.linalg.spectrum import rank_tolerance

SingularFactors = tuple[Tensor, Tensor, Tensor]


def _solve(matrix: Tensor, **out: SingularFactors) -> SingularFactors:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False, **out)
    return u, s, vh


def _blank(matrix: Tensor) -> SingularFactors:
    rows, columns = matrix.shape[-2:]
    count = min(rows, columns)
    batch = matrix.shape[:-2]
    return (
        empty_column_major(matrix, *batch, rows, count),
        matrix.new_empty((*batch, count)),
        empty_column_major(matrix, *batch, count, columns),
    )


def _failed(matrices: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    """For fixed vectors x and y, UᵀU x and VᵀV x have to be x, and U S Vᵀ y has to be A y."""
    u, s, vh = factors
    longer = max(matrices.shape[-2:])
    x, y = (probe(size, matrices)[:, None] for size in (s.shape[-1], matrices.shape[-1]))
    left = u.mT @ (u @ x) - x
    right = vh @ (vh.mT @ x) - x
    residual = u @ (s[..., None] * (vh @ y)) - matrices @ y
    return (
        exceeds(left[..., 0], 1, longer)
        | exceeds(right[..., 0], 1, longer)
        | exceeds(residual[..., 0], largest(s), longer)
    )


def _alone(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    return matrix, _solve(matrix)


def _in_float64(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    u, s, vh = _solve(matrix.double())
    return matrix, (u.to(matrix.dtype), s.to(matrix.dtype), vh.to(matrix.dtype))


def _scaled(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    scale = matrix.abs().amax()
    u, s, vh = _solve(matrix / scale)
    return matrix, (u, s * scale, vh)


def _transposed(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    # On CUDA there is a choice of solvers; this one is the slowest and most robust.
    driver = "gesvd" if matrix.is_cuda else None
    v, s, uh = torch.linalg.svd(matrix.mT, full_matrices=False, driver=driver)
    return matrix, (uh.mT, s, v.mT)


def _by_eigh(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    """The eigenvectors (u, v)/√2 of [[0, A], [Aᵀ, 0]], whose eigenvalues are ±σ and zeros.

    Within the null space nothing keeps u and v apart: at deficient rank the probe refuses this.
    """
    rows, columns = matrix.shape
    count = min(rows, columns)
    block = matrix.new_zeros((rows + columns, rows + columns))
    block[:rows, rows:], block[rows:, :rows] = matrix, matrix.mT
    eigenvalues, eigenvectors = torch.linalg.eigh(block)
    s = eigenvalues[-count:].flip(-1).clamp_min(0)
    vectors = eigenvectors[:, -count:].flip(-1) * 2**0.5
    return matrix, (vectors[:rows], s, vectors[rows:].mT)


def _with_jitter(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    """The matrix with n · eps of its norm, times 1 to 2, added to its diagonal; with a warning."""
    rows, columns = matrix.shape
    count = min(rows, columns)
    scale = matrix.abs().amax()
    share = rank_tolerance(max(rows, columns), matrix.dtype)
    jitter = share * torch.linalg.matrix_norm(matrix / scale) * scale
    jittered = matrix.clone()
    ramp = torch.linspace(1, 2, count, dtype=matrix.dtype, device=matrix.device)
    jittered.diagonal().add_(jitter * ramp)
    factors = _solve(jittered)
    if not bool(_failed(jittered[None], tuple(factor[None] for factor in factors))):
        warnings.warn(
            f"a singular value decomposition of a {rows} × {columns} matrix in {matrix.dtype} "
            f"succeeded only with {2 * jitter.item():.1e} added to its diagonal",
            RuntimeWarning,
            stacklevel=2,
        )
    return jittered, factors


SINGULAR_VALUE_DECOMPOSITION = Factorisation(
    name="singular value decomposition",
    solve=_solve,
    blank=_blank,
    failed=_failed,
    fallbacks={
        "the same solver alone": _alone,
        "float64": _in_float64,
        "scaling": _scaled,
        "the transpose": _transposed,
        "a symmetric eigendecomposition": _by_eigh,
        "jitter on the diagonal": _with_jitter,
    },
    advice="look for entries of very different size",
)
