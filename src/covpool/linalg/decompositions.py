"""`eigh` and `svd`: decompositions whose gradient is finite at ties."""

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.autograd.eigh import eigendecomposition
from covpool.linalg.autograd.svd import singular_value_decomposition
from covpool.linalg.gradients.kernels import KERNELS, Kernel
from covpool.linalg.spectrum import symmetric_part
from covpool.linalg.tables import choose


def eigh(
    matrix: Tensor, kernel: str | Kernel = "difference", *, check: bool = True
) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices, with a gradient that stays finite.

    The forward pass is `torch.linalg.eigh`. Backward, a gradient G of the eigenvectors becomes
    V (Kᵀ ∘ (VᵀG)) Vᵀ, with K the kernel where `torch.linalg.eigh` has 1/(λi − λj), which is
    infinite at ties. The eigenvalues' gradient needs no kernel. Forward-mode derivatives
    (`torch.func.jvp`) are the same map's adjoint, dV = V (Kᵀ ∘ (Vᵀ dA V)).

    Args:
        matrix: (*, n, n) symmetric, definite or not, float64 or float32.
        kernel: a name of `KERNELS` ("difference", "truncated", "taylor", "pade",
            "power-iteration", "lorentzian") or a kernel with constants of its own,
            `Taylor(degree=50)`. "difference" is exact away from ties.
        check: whether to refuse matrices that are not finite and symmetric.

    Returns:
        eigenvalues (*, n) in ascending order and eigenvectors (*, n, n) in columns, in the
        input's dtype, as computed in it: no precision is added.

    Ties: each kernel states its value. No kernel can make a loss well defined that depends on
    which basis of a tied eigenspace, or which sign of an eigenvector, is returned. A loss that is
    a function of V f(Λ) Vᵀ does not depend on them and has a derivative, but its gradient here
    lacks f′(λ) between tied vectors, with every kernel, as the gradients of Λ and V do not contain
    it: often most of the gradient, and what is left is finite. `gauge_dependence` tells both; for
    the second, use a function of the matrix, `matrix_sqrt`, `matrix_power` or `matrix_log`, which
    are exact at ties. Of a loss that depends on neither, only rounding errors of VᵀG would be
    multiplied by K: for pairs closer than √finfo(dtype).eps of the largest |λ| what is within
    n · finfo(dtype).eps of the norms of G's columns counts as 0 backward. Forward mode has no G to
    look at: a tied vector's tangent is K in size, and so are its rounding errors.
    Second derivatives (by "difference" alone) are right away from ties. At ties to rounding,
    n · finfo(dtype).eps of the largest |λ|, they are refused, and NaN inside torch.func.

    Rank deficiency: zero eigenvalues are ties like others.

    Raises:
        ValueError: not square, not float32 or float64, an unknown kernel or, with `check`,
            matrices that are not finite or not symmetric beyond rounding, by index.
        RuntimeError: a second derivative with a kernel other than "difference", or at ties.

    Source: Ionescu, Vantzos, Sminchisescu, "Matrix backpropagation for deep networks with
    structured layers", ICCV 2015, and the kernels' own.
    """
    chosen = _choose_kernel(kernel)
    checks.square("eigh", matrix)
    _require_native("eigh", matrix)
    if check:
        checks.finite("eigh", matrix, sample_dims=2)
        checks.symmetric("eigh", matrix)
    return eigendecomposition(symmetric_part(matrix), chosen)


def svd(
    matrix: Tensor, kernel: str | Kernel = "difference", *, check: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition A = U diag(σ) Vᵀ, with a gradient that stays finite.

    The forward pass is `torch.linalg.svd(matrix, full_matrices=False)`. Backward, with
    k = min(m, n) and the gradients Gᵤ, g, Gᵥ of U, σ, V, the gradient of A is

        U [sym(Wᵀ ∘ (M + N)) + skew(M − N) / (σi + σj) + diag(g)] Vᵀ
          + (I − U Uᵀ) Gᵤ diag(1/σ) Vᵀ + U diag(1/σ) Gᵥᵀ (I − V Vᵀ),    M = UᵀGᵤ, N = VᵀGᵥ.

    Only W, which stands for 1/(σi − σj) off the diagonal, has a pole at ties. It is
    (σi + σj) K with the kernel K of the squares (σ/σ₁)²: the spectrum is scaled to a largest
    value of 1, matrix by matrix, so that every kernel, with its constants, scales with A
    ("truncated" clips at its limit times 1/σ₁²; in `eigh` its limit is absolute). The gradient of
    σ alone needs no kernel, nor does that of the polar factor U Vᵀ, which is exact at ties (with
    "power-iteration", which is not antisymmetric, it is biased).

    Args:
        matrix: (*, m, n) real, of any shape, float64 or float32.
        kernel: a name of `KERNELS` ("difference", "truncated", "taylor", "pade",
            "power-iteration", "lorentzian") or a kernel with constants of its own,
            `Lorentzian(epsilon=1e-4)`. "difference" is exact away from ties.
        check: whether to refuse matrices that are not finite.

    Returns:
        U (*, m, k) in columns, σ (*, k) in descending order and Vᵀ (*, k, n), in the input's
        dtype, as computed in it: no precision is added. As in torch, the last is already
        transposed: A = (U * σ[..., None, :]) @ Vᵀ.

    Truncation: slice what is returned, U[..., :r], σ[..., :r], Vᵀ[..., :r, :]. The gradient is the
    exact one of the truncated decomposition, discarded part included (away from ties between kept
    and discarded values).

    Ties: each kernel states its value. A loss that is a function of U f(σ) Vᵀ, such as singular
    value thresholding, loses the part f′(σ) between vectors that are tied, as with every kernel;
    its other parts are exact. No kernel can make a loss well defined that depends on which basis,
    or which sign, is returned. `gauge_dependence` tells both; for the first, write U f(σ) Vᵀ by a
    function of the matrix AᵀA, A h(AᵀA) with h(x) = f(√x)/√x, where `matrix_power` or another one
    computes h. Rounding errors within ties are dropped as in
    `eigh`, with M + N in the place of VᵀG, and backward alone. Second derivatives (by "difference"
    alone) are right away from ties; at ties to rounding, max(m, n) · finfo(dtype).eps of σ₁, they
    are refused, and NaN inside torch.func.

    Rank deficiency: singular values of at most max(m, n) · finfo(dtype).eps of the largest count as
    zeros in the gradient, and 1/σ, W and 1/(σi + σj) of zeros as 0. So the gradient is bounded,
    and for losses that do not see which vectors belong to the zeros it is exact along every change
    of A that keeps its rank. The gradient of a zero σ itself is that of the σ returned, uᵀ dA v.

    Raises:
        ValueError: not a matrix, not float32 or float64 (complex matrices are not supported), an
            unknown kernel or, with `check`, matrices that are not finite, by index.
        RuntimeError: a second derivative with a kernel other than "difference", or at ties.

    Source: Townsend, "Differentiating the singular value decomposition", University of Oxford,
    2016; Wan, Zhang, "Automatic differentiation for complex valued SVD", arXiv:1909.02659, 2019;
    the kernels' own. The separation of the two poles is ours.
    """
    chosen = _choose_kernel(kernel)
    checks.floating("svd", matrix)
    if matrix.ndim < 2:
        raise ValueError(f"svd needs matrices (*, m, n), got shape {tuple(matrix.shape)}")
    _require_native("svd", matrix)
    if check:
        checks.finite("svd", matrix, sample_dims=2)
    return singular_value_decomposition(matrix, chosen)


def _choose_kernel(kernel: str | Kernel) -> Kernel:
    return kernel if isinstance(kernel, Kernel) else choose("kernel", kernel, KERNELS)


def _require_native(caller: str, matrix: Tensor) -> None:
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{caller} needs float32 or float64, got {matrix.dtype}; convert the matrix first"
        )
