"""The thin singular value decomposition itself: quick, checked, and retried.

Shapes: (*, m, n) matrices, k = min(m, n); U (*, m, k), S (*, k) descending, Vh (*, k, n).
"""

from dataclasses import replace

import torch
from torch import Tensor

from covpool.linalg.engine.factorisation import Factorisation, with_jitter
from covpool.linalg.engine.shares import empty_column_major
from covpool.linalg.engine.small import small_svd

SingularFactors = tuple[Tensor, Tensor, Tensor]


def by_driver(driver: str) -> Factorisation:
    """The factorisation whose first attempt is by one of cuSOLVER's drivers; torch refuses one on a
    CPU and unknown ones."""
    options = {"full_matrices": False, "driver": driver}
    return replace(SINGULAR_VALUE_DECOMPOSITION, options=options)


def _blank(matrix: Tensor) -> SingularFactors:
    rows, columns = matrix.shape[-2:]
    count = min(rows, columns)
    batch = matrix.shape[:-2]
    return (
        empty_column_major(matrix, *batch, rows, count),
        matrix.new_empty((*batch, count), dtype=matrix.dtype.to_real()),
        empty_column_major(matrix, *batch, count, columns),
    )


def _errors(
    matrices: Tensor, factors: tuple[Tensor, ...], short: Tensor, long: Tensor
) -> list[tuple[Tensor, Tensor | None]]:
    """For fixed vectors x and y, UᴴU x and VᴴV x have to be x, and U S Vᴴ y has to be A y."""
    u, s, vh = factors
    x, y = short[:, None], long[:, None]
    left = u.mH @ (u @ x) - x
    right = vh @ (vh.mH @ x) - x
    residual = u @ (s[..., None] * (vh @ y)) - matrices @ y
    return [(left[..., 0], None), (right[..., 0], None), (residual[..., 0], s)]


def _alone(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    return matrix, torch.linalg.svd(matrix, full_matrices=False)


def _in_float64(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float64))
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    return matrix, (u.to(matrix.dtype), s.to(matrix.dtype.to_real()), vh.to(matrix.dtype))


def _scaled(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    scale = matrix.abs().amax()
    u, s, vh = torch.linalg.svd(matrix / scale, full_matrices=False)
    return matrix, (u, s * scale, vh)


def _transposed(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    # On CUDA there is a choice of solvers; this one is the slowest and most robust.
    driver = "gesvd" if matrix.is_cuda else None
    v, s, uh = torch.linalg.svd(matrix.mH, full_matrices=False, driver=driver)
    return matrix, (uh.mH, s, v.mH)


def _by_eigh(matrix: Tensor) -> tuple[Tensor, SingularFactors]:
    """The eigenvectors (u, v)/√2 of [[0, A], [Aᴴ, 0]], whose eigenvalues are ±σ and zeros.

    Within the null space nothing keeps u and v apart: at deficient rank the probe refuses this.
    """
    rows, columns = matrix.shape
    count = min(rows, columns)
    block = matrix.new_zeros((rows + columns, rows + columns))
    block[:rows, rows:], block[rows:, :rows] = matrix, matrix.mH
    eigenvalues, eigenvectors = torch.linalg.eigh(block)
    s = eigenvalues[-count:].flip(-1).clamp_min(0)
    vectors = eigenvectors[:, -count:].flip(-1) * 2**0.5
    return matrix, (vectors[:rows], s, vectors[rows:].mH)


SINGULAR_VALUE_DECOMPOSITION = Factorisation(
    name="singular value decomposition",
    solver="svd",
    options={"full_matrices": False},
    blank=_blank,
    errors=_errors,
    fallbacks={
        "the same solver alone": _alone,
        "float64": _in_float64,
        "scaling": _scaled,
        "the transpose": _transposed,
        "a symmetric eigendecomposition": _by_eigh,
        "jitter on the diagonal": lambda matrix: with_jitter(SINGULAR_VALUE_DECOMPOSITION, matrix),
    },
    closed=small_svd,
    advice="look for entries of very different size",
)
