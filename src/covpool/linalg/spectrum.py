"""What every spectral computation shares: numerical rank, symmetry, precision, refusals.

Shapes: (*, n, n) matrices, eigenvalues (*, m) in ascending order.
"""

import torch
from torch import Tensor


def frobenius_norm(entries: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The Frobenius norm over `dims`, kept, without overflow of the squares."""
    largest = entries.abs().amax(dims, keepdim=True)
    divisor = torch.where(largest == 0, 1, largest)
    return largest * torch.linalg.vector_norm(entries / divisor, dim=dims, keepdim=True)


def of_kind(dtype: torch.dtype, like: torch.dtype) -> torch.dtype:
    """The real `dtype`, or the complex one of that precision where `like` is complex."""
    return torch.promote_types(dtype, torch.complex64) if like.is_complex else dtype


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of real and imaginary parts; torch.compile traces no `dtype.to_real`."""
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def real_part(values: Tensor) -> Tensor:
    return values.real if values.is_complex() else values


def inner_product(left: Tensor, right: Tensor) -> Tensor:
    """Re⟨A, B⟩ = Re Σ aᵢⱼ b̄ᵢⱼ of matrices (*, m, n): what a gradient G gives along a change."""
    return real_part(left * right.conj()).sum((-2, -1))


def rank_tolerance(size: int, dtype: torch.dtype) -> float:
    """The share of the largest eigenvalue below which one counts as zero: n · finfo(dtype).eps.

    The convention of numerical rank (Golub and Van Loan, Matrix Computations, §5.4; numpy's
    `matrix_rank`): the backward error of a symmetric eigendecomposition.
    """
    return size * torch.finfo(dtype).eps


def clip_to_rank(eigenvalues: Tensor, size: int) -> Tensor:
    """Eigenvalues (*, m) with rounding errors, of either sign, set to exactly zero."""
    threshold = rank_tolerance(size, eigenvalues.dtype) * eigenvalues.amax(-1, keepdim=True)
    # The comparison is this way round so that NaN, where it was not looked for, stays NaN.
    return eigenvalues.masked_fill(eigenvalues <= threshold, 0)


def symmetric_part(matrix: Tensor) -> Tensor:
    """(A + Aᵀ)/2, and the Hermitian part (A + Aᴴ)/2 of a complex matrix."""
    # Halved before the sum, which would overflow for entries above half of the largest number.
    half = 0.5 * planar(matrix)
    return half + half.mH


def symmetric_part_(matrix: Tensor, half: float = 0.5) -> Tensor:
    """The same of a matrix that is written over. Fresh memory costs more than the arithmetic."""
    return matrix.mul_(half) + matrix.mH


PLANAR_SIZE = 3
"""Rows and columns up to which large batches are computed with by planes, see `planar`."""

PLANAR_ELEMENTS = 2**11
"""Elements of a batch from which that is worth its operations: about 230 matrices of 3 × 3."""


def _by_planes(matrix: Tensor) -> bool:
    rows, columns = matrix.shape[-2:]
    return (
        columns <= PLANAR_SIZE
        and rows <= PLANAR_SIZE
        # A graph must not depend on the batch.
        and not torch.compiler.is_compiling()
        and matrix.numel() >= PLANAR_ELEMENTS
    )


def planar(matrix: Tensor) -> Tensor:
    """The same matrices; of a large batch of small ones with the batch contiguous in memory.

    Elementwise operations keep that, and go through memory once, not in steps of a few numbers.
    """
    if not _by_planes(matrix):
        return matrix
    return matrix.movedim((-2, -1), (0, 1)).contiguous().movedim((0, 1), (-2, -1))


def product(left: Tensor, right: Tensor) -> Tensor:
    """A B of matrices (*, m, k) and (*, k, n), as `@` gives it, without its reshaping."""
    if _by_planes(left):
        total = left[..., :, :1] * right[..., :1, :]
        for index in range(1, left.shape[-1]):
            # In place: fresh memory costs more than the arithmetic.
            total.addcmul_(left[..., :, index, None], right[..., None, index, :])
        return total
    return torch.bmm(left, right) if left.ndim == 3 else left @ right


def congruence(matrix: Tensor, basis: Tensor) -> Tensor:
    """V M Vᴴ of matrices M (*, k, k) and V (*, m, k)."""
    return product(product(basis, matrix), basis.mH)


def antisymmetric_part(matrix: Tensor) -> Tensor:
    """(A − Aᵀ)/2, and the skew-Hermitian part (A − Aᴴ)/2 of a complex matrix."""
    half = 0.5 * matrix
    return half - half.mH


def name_samples(bad: Tensor) -> str:
    """'samples [3, 17] of 64', from a mask over the batch; '' where there is no batch."""
    if bad.ndim == 0:
        return ""
    found = bad.nonzero().tolist()
    shown = [index[0] if bad.ndim == 1 else tuple(index) for index in found[:8]]
    more = ", …" if len(found) > 8 else ""
    listed = ", ".join(map(str, shown))
    return f" in {len(found)} of {bad.numel()} samples: [{listed}{more}]"
