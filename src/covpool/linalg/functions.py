"""Functions of symmetric matrices, f(A) = V f(Λ) Vᵀ."""

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.algorithms import Iteration
from covpool.linalg.matrix_function import MatrixFunction
from covpool.linalg.methods import Method, get_method
from covpool.linalg.scalar import SQRT
from covpool.linalg.spectrum import symmetric_part, without_autocast


def working_dtype(
    dtype: torch.dtype, method: Method, compute_dtype: torch.dtype | None
) -> torch.dtype:
    """The dtype in which a method computes on matrices of `dtype`.

    float64 where it decomposes, since a small eigenvalue is known to finfo(dtype).eps of the
    largest alone; the input's, and at least the forward algorithm's own, where it iterates.
    """
    if compute_dtype is not None:
        return compute_dtype
    return torch.promote_types(dtype, method.forward.least_dtype)


def matrix_sqrt(
    matrix: Tensor,
    method: str | Method = "exact",
    *,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
) -> Tensor:
    """The square root A^(1/2) = V diag(√λ) Vᵀ of symmetric positive semi-definite matrices.

    Args:
        matrix: (*, n, n), any number of leading dimensions, none and empty ones included. float64,
            float32, or float16/bfloat16, which are computed in higher precision.
        method: a name of `METHODS`, or a row of it with other constants,
            `METHODS["svd-taylor"].replace(degree=50)`. The row decides forward algorithm and
            gradient; "exact" is exact in both.
        compute_dtype: the dtype of the computation. None: float64 where the method decomposes
            and for `newton-schulz-minimax`, float32 (float64 for float64 input) for the other
            methods that iterate.
        check: whether to refuse matrices that are not finite, symmetric and positive
            semi-definite. Costs a synchronisation on a GPU. Off, and inside torch.compile or
            torch.func transforms, where values cannot be read, the symmetric part is used, NaN
            gives NaN, and negative eigenvalues count as zero (with "isqrt-cov" they give
            anything).

    Returns:
        (*, n, n), symmetric, in the input's dtype.

    Ties: `exact` needs no care, its gradient G ↦ P solves A^(1/2) P + P A^(1/2) = G and is finite
    and exact at repeated eigenvalues. Every other decomposing method has a bias there, stated by
    its kernel or gradient rule.

    Rank deficiency: eigenvalues below n · finfo(dtype).eps of the largest (dtype that of the
    computation) count as zero, and what they would have contributed is lost. The root's
    derivative is infinite there in directions that raise the rank; these are given 0, so
    gradients are finite and, along changes that keep the rank, right. The zero matrix gives zero
    and gradient zero.

    Second derivatives: right for `exact` (of any order at full rank, to the second at deficient
    rank), `isqrt-cov` and, at full rank, `newton-schulz-minimax`; refused by a RuntimeError for
    the others, whose gradient is not the derivative of their result. Reverse mode alone:
    `torch.func.jvp` is not implemented but for `isqrt-cov`.

    Raises:
        ValueError: not square, not floating point, an unknown method, another compute_dtype than
            float32 and float64 or, with `check`, matrices that are not finite, symmetric or
            positive semi-definite beyond rounding, by index.

    Source: Song, Sebe, Wang, "Why approximate matrix square root outperforms accurate SVD in
    global covariance pooling?", ICCV 2021, and the rows' references.

    >>> import torch, covpool
    >>> covpool.matrix_sqrt(torch.tensor([[2.0, 0.0], [0.0, 8.0]]) * 2)
    tensor([[2., 0.],
            [0., 4.]])
    """
    row = get_method(method)
    checks.square("matrix_sqrt", matrix)
    checks.compute_dtype("matrix_sqrt", compute_dtype)
    if check:
        checks.finite("matrix_sqrt", matrix, sample_dims=2)
        checks.symmetric("matrix_sqrt", matrix)
    if matrix.shape[-1] == 0:
        return matrix.clone()
    dtype = working_dtype(matrix.dtype, row, compute_dtype)
    with without_autocast(matrix):
        symmetric = symmetric_part(matrix.to(dtype))
        if isinstance(row.forward, Iteration):
            if check:
                checks.positive_semidefinite_matrix("matrix_sqrt", symmetric, matrix.dtype)
            return row.forward.matrix(symmetric, row).to(matrix.dtype)
        result, eigenvalues, *_ = MatrixFunction.apply(symmetric, SQRT, row)
    if check:
        checks.positive_semidefinite("matrix_sqrt", eigenvalues, matrix.dtype)
    return result.to(matrix.dtype)
