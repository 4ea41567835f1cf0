"""The symmetric eigendecomposition that every method stands on: quick, checked, and retried.

Shapes: (*, n, n) symmetric or Hermitian matrices; eigenvalues (*, n) ascending and real,
eigenvectors (*, n, n).
"""

import torch
from torch import Tensor

from covpool.linalg.engine.factorisation import Factorisation, with_jitter
from covpool.linalg.engine.shares import empty_column_major
from covpool.linalg.engine.small import small_eigh

Decomposition = tuple[Tensor, Tensor]


def _blank(matrix: Tensor) -> Decomposition:
    eigenvalues = matrix.new_empty(matrix.shape[:-1], dtype=matrix.dtype.to_real())
    return eigenvalues, empty_column_major(matrix, *matrix.shape)


def _errors(
    matrices: Tensor, factors: tuple[Tensor, ...], x: Tensor, _: Tensor
) -> list[tuple[Tensor, Tensor | None]]:
    """A x and x have to be what V Λ Vᴴ x and V Vᴴ x are, for one fixed x."""
    eigenvalues, eigenvectors = factors
    # With a vector, not with a matrix of one column: that takes a quicker way through BLAS.
    coordinates = eigenvectors.mH @ x
    both = torch.stack([coordinates, coordinates * eigenvalues], dim=-2) @ eigenvectors.mT
    orthogonality, residual = both.unbind(-2)
    return [(orthogonality.sub_(x), None), (residual.sub_(matrices @ x), eigenvalues)]


def _alone(matrix: Tensor) -> tuple[Tensor, Decomposition]:
    return matrix, torch.linalg.eigh(matrix)


def _in_float64(matrix: Tensor) -> tuple[Tensor, Decomposition]:
    wide = torch.promote_types(matrix.dtype, torch.float64)
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix.to(wide))
    return matrix, (eigenvalues.to(matrix.dtype.to_real()), eigenvectors.to(matrix.dtype))


def _scaled(matrix: Tensor) -> tuple[Tensor, Decomposition]:
    scale = matrix.abs().amax()
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix / scale)
    return matrix, (eigenvalues * scale, eigenvectors)


def _by_svd(matrix: Tensor) -> tuple[Tensor, Decomposition]:
    """The singular value decomposition of A/s + ‖A/s‖ I, which is positive semi-definite."""
    size, scale = matrix.shape[-1], matrix.abs().amax()
    shift = torch.linalg.matrix_norm(matrix / scale)
    shifted = matrix / scale + shift * torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    left, singular_values, _ = torch.linalg.svd(shifted)
    return matrix, ((singular_values - shift).flip(-1) * scale, left.flip(-1))


EIGENDECOMPOSITION = Factorisation(
    name="eigendecomposition",
    solver="eigh",
    blank=_blank,
    errors=_errors,
    fallbacks={
        "the same solver alone": _alone,
        "float64": _in_float64,
        "scaling": _scaled,
        "a singular value decomposition": _by_svd,
        "jitter on the diagonal": lambda matrix: with_jitter(EIGENDECOMPOSITION, matrix),
    },
    closed=small_eigh,
    advice="check that the matrices are symmetric, or add a multiple of the identity",
)
