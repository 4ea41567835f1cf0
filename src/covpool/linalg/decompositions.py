"""`eigh` and `svd`: torch's decompositions, with a gradient that is finite at ties."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.autograd.eigh import eigendecomposition
from covpool.linalg.autograd.svd import complete, singular_value_decomposition
from covpool.linalg.checks import require_integer
from covpool.linalg.engine.factorisation import InvalidMatrixError, require_finite
from covpool.linalg.gradients.kernels import KERNELS, Kernel
from covpool.linalg.names import KernelName
from covpool.linalg.spectrum import name_samples, symmetric_part
from covpool.linalg.tables import choose
from covpool.linalg.transforms import unreadable


class EighResult(NamedTuple):
    """The fields of torch.linalg.eigh."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class SvdResult(NamedTuple):
    """The fields of torch.linalg.svd."""

    U: Tensor
    S: Tensor
    Vh: Tensor


DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def eigh(
    A: Tensor,
    UPLO: str = "L",
    *,
    kernel: KernelName | Kernel = "difference",
    k: int | None = None,
    largest: bool = True,
    check: bool = True,
    out: Sequence[Tensor] | None = None,
) -> EighResult:
    """Eigenvalues and eigenvectors of symmetric or Hermitian matrices, with a finite gradient.

    It takes and returns what `torch.linalg.eigh` does, which is the forward pass. Backward, a
    gradient G of the eigenvectors becomes V (Kᵀ ∘ (VᴴG)) Vᴴ, with K the kernel where
    `torch.linalg.eigh` has 1/(λi − λj), which is infinite at ties. The eigenvalues' gradient needs
    no kernel. Forward-mode derivatives (`torch.func.jvp`) are the same map's adjoint,
    dV = V (Kᵀ ∘ (Vᴴ dA V)).

    Args:
        A: (*, n, n) symmetric or Hermitian, definite or not: float32, float64, complex64 or
            complex128. One triangle is read, the other may hold anything; of a complex diagonal
            the real part is. The gradient is symmetric (Hermitian) all the same: the derivative
            along changes of A that are.
        UPLO: "L" or "U", the triangle that is read.
        kernel: a name of `KERNELS` ("difference", "truncated", "taylor", "pade",
            "power-iteration", "lorentzian") or a kernel with constants of its own,
            `Taylor(degree=50)`. "difference" is exact away from ties.
        k: how many of the pairs are returned, all by default. All are computed: the gradient is
            that of the whole decomposition, discarded pairs included.
        largest: whether they are those of the k largest eigenvalues or of the k smallest.
        check: whether to refuse matrices that are not finite.
        out: two tensors to write the result to, which then has no gradient.

    Returns:
        A named tuple of `eigenvalues` (*, n), real and in ascending order, and `eigenvectors`
        (*, n, n) in columns, in the input's precision, as computed in it: no precision is added.

    Ties: each kernel states its value. No kernel can make a loss well defined that depends on
    which basis of a tied eigenspace, or which sign (complex: phase) of an eigenvector, is returned.
    A loss that is a function of V f(Λ) Vᴴ does not depend on them and has a derivative, but its
    gradient here lacks f′(λ) between tied vectors, with every kernel, as the gradients of Λ and V
    do not contain it: often most of the gradient, and what is left is finite. `gauge_dependence`
    tells both; for the second, use a function of the matrix, `matrix_function` or
    `matrix_sqrt`, which are exact at ties. Of a loss that depends on neither, only rounding errors
    of VᴴG would be multiplied by K: for pairs closer than √finfo(dtype).eps of the largest |λ| what
    is within n · finfo(dtype).eps of the norms of G's columns counts as 0 backward. Forward mode
    has no G to look at: a tied vector's tangent is K in size, and so are its rounding errors.
    Second derivatives (by "difference" alone) are right away from ties. At ties to rounding,
    n · finfo(dtype).eps of the largest |λ|, they are refused, and NaN inside torch.func.

    Phases: the gradient is that along which no phase changes, vᴴ dv = 0. torch refuses losses of
    complex eigenvectors that depend on the phase, if it notices; here `gauge_dependence` tells.

    Rank deficiency: zero eigenvalues are ties like others.

    Raises:
        TypeError: not a tensor.
        ValueError: not square, another dtype, an unknown kernel or triangle, a k that is not a
            whole number from 1 to n, another number of tensors to write to.
        torch.linalg.LinAlgError: no way of decomposing succeeded, or, with `check`, matrices that
            are not finite, by index; the latter is a ValueError too.
        RuntimeError: a second derivative with a kernel other than "difference", or at ties; `out`
            where a gradient is required.

    Source: Ionescu, Vantzos, Sminchisescu, "Matrix backpropagation for deep networks with
    structured layers", ICCV 2015, and the kernels' own.
    """
    values, vectors = _eigenpairs("eigh", A, UPLO, _choose_kernel(kernel), check)
    if k is not None:
        kept = _kept("eigh", k, values.shape[-1], last=largest)
        values, vectors = values[..., kept], vectors[..., kept]
    return EighResult(*_written("eigh", (values, vectors), out))


def svd(
    A: Tensor,
    full_matrices: bool = True,
    *,
    driver: str | None = None,
    kernel: KernelName | Kernel = "difference",
    k: int | None = None,
    largest: bool = True,
    check: bool = True,
    out: Sequence[Tensor] | None = None,
) -> SvdResult:
    """Singular value decomposition A = U diag(σ) Vᴴ, with a gradient that stays finite.

    It takes and returns what `torch.linalg.svd` does, which is the forward pass (thin: columns of
    U or V beyond k = min(m, n) complete the basis). Backward, with the gradients Gᵤ, g, Gᵥ of U, σ,
    V, the gradient of A is, herm and skew being the Hermitian and the skew-Hermitian part,

        U [herm(Wᵀ ∘ (M + N)) + skew(M − N) / (σi + σj) + diag(g)] Vᴴ
          + (I − U Uᴴ) Gᵤ diag(1/σ) Vᴴ + U diag(1/σ) Gᵥᴴ (I − V Vᴴ),    M = UᴴGᵤ, N = VᴴGᵥ.

    Only W, which stands for 1/(σi − σj) off the diagonal, has a pole at ties. It is
    (σi + σj) K with the kernel K of the squares (σ/σ₁)²: the spectrum is scaled to a largest
    value of 1, matrix by matrix, so that every kernel, with its constants, scales with A
    ("truncated" clips at its limit times 1/σ₁²; in `eigh` its limit is absolute). The gradient of
    σ alone needs no kernel, nor does that of the polar factor U Vᴴ, which is exact at ties (with
    "power-iteration", which is not antisymmetric, it is biased).

    Args:
        A: (*, m, n) of any shape: float32, float64, complex64 or complex128.
        full_matrices: whether U and V are square; otherwise they have k columns.
        driver: the cuSOLVER driver, "gesvd", "gesvdj" or "gesvda"; on CUDA alone.
        kernel: a name of `KERNELS` ("difference", "truncated", "taylor", "pade",
            "power-iteration", "lorentzian") or a kernel with constants of its own,
            `Lorentzian(epsilon=1e-4)`. "difference" is exact away from ties.
        k: how many singular values, with their vectors alone, are returned, as without
            `full_matrices`. All are computed; see Truncation.
        largest: whether they are the k largest or the k smallest.
        check: whether to refuse matrices that are not finite.
        out: three tensors to write the result to, which then has no gradient.

    Returns:
        A named tuple of `U` (*, m, m) in columns, `S` (*, k), real and in descending order, and
        `Vh` (*, n, n), in the input's precision, as computed in it: no precision is added. Without
        `full_matrices` U is (*, m, k) and Vh (*, k, n), and A = (U * S[..., None, :]) @ Vh. A
        gradient that reaches the columns of U or V beyond k is refused, as any basis of their space
        could be returned; torch ignores it. In forward mode their tangent is NaN.

    Truncation: `k`, or slices of what is returned, U[..., :r], S[..., :r], Vh[..., :r, :]. The
    gradient is the exact one of the truncated decomposition, discarded part included (away from
    ties between kept and discarded values).

    Ties: each kernel states its value. A loss that is a function of U f(σ) Vᴴ, such as singular
    value thresholding, loses the part f′(σ) between vectors that are tied, as with every kernel;
    its other parts are exact. No kernel can make a loss well defined that depends on which basis,
    or which sign (complex: phase), is returned. `gauge_dependence` tells both; for the first,
    take `svd_function` or `low_rank`. Rounding errors within ties are dropped as in
    `eigh`, with M + N in the place of VᴴG, and backward alone. Second derivatives (by "difference"
    alone) are right away from ties; at ties to rounding, max(m, n) · finfo(dtype).eps of σ₁, they
    are refused, and NaN inside torch.func.

    Rank deficiency: singular values of at most max(m, n) · finfo(dtype).eps of the largest count as
    zeros in the gradient, and 1/σ, W and 1/(σi + σj) of zeros as 0. So the gradient is bounded,
    and for losses that do not see which vectors belong to the zeros it is exact along every change
    of A that keeps its rank. The gradient of a zero σ itself is that of the σ returned, uᴴ dA v.

    Raises:
        TypeError: not a tensor.
        ValueError: not a matrix, another dtype, an unknown kernel, a k that is not a whole number
            from 1 to min(m, n), another number of tensors to write to.
        torch.linalg.LinAlgError: no way of decomposing succeeded, or, with `check`, matrices that
            are not finite, by index; the latter is a ValueError too.
        RuntimeError: a second derivative with a kernel other than "difference", or at ties; a
            gradient of columns beyond min(m, n); `out` where a gradient is required; a driver on a
            CPU.

    Source: Townsend, "Differentiating the singular value decomposition", University of Oxford,
    2016; Wan, Zhang, "Automatic differentiation for complex valued SVD", arXiv:1909.02659, 2019;
    the kernels' own. The separation of the two poles is ours.
    """
    u, s, vh = _singular_triplets("svd", A, driver, _choose_kernel(kernel), check)
    if k is not None:
        kept = _kept("svd", k, s.shape[-1], last=not largest)
        u, s, vh = u[..., kept], s[..., kept], vh[..., kept, :]
    elif full_matrices:
        u, vh = complete(u), complete(vh.mH).mH
    return SvdResult(*_written("svd", (u, s, vh), out))


def eigvalsh(
    A: Tensor, UPLO: str = "L", *, check: bool = True, out: Tensor | None = None
) -> Tensor:
    """Eigenvalues of symmetric or Hermitian matrices, (*, n, n) → (*, n), in ascending order.

    As `torch.linalg.eigvalsh`, and `eigh(A, UPLO).eigenvalues`: the gradient, V diag(g) Vᴴ, has no
    pole and needs no kernel. At ties it is right for losses that do not tell the tied values apart,
    as those that are symmetric in all of them; others have no derivative there. Second derivatives
    are right away from ties; at ties to rounding they are refused, and NaN inside torch.func.

    Raises:
        ValueError, torch.linalg.LinAlgError, RuntimeError: as `eigh`.
    """
    values = _eigenpairs("eigvalsh", A, UPLO, KERNELS["difference"], check)[0]
    return _written("eigvalsh", (values,), None if out is None else (out,))[0]


def svdvals(
    A: Tensor, *, driver: str | None = None, check: bool = True, out: Tensor | None = None
) -> Tensor:
    """Singular values (*, m, n) → (*, min(m, n)), in descending order.

    As `torch.linalg.svdvals`, and `svd(A).S`: the gradient, U diag(g) Vᴴ, has no pole and needs no
    kernel. At ties it is right for losses that do not tell the tied values apart, and at zeros it
    is a subgradient, that of the vectors found. Second derivatives are right away from ties and
    zeros; at ties to rounding they are refused, and NaN inside torch.func.

    Raises:
        ValueError, torch.linalg.LinAlgError, RuntimeError: as `svd`.
    """
    values = _singular_triplets("svdvals", A, driver, KERNELS["difference"], check)[1]
    return _written("svdvals", (values,), None if out is None else (out,))[0]


def eigh_generalized(
    A: Tensor,
    B: Tensor,
    *,
    kernel: KernelName | Kernel = "difference",
    k: int | None = None,
    largest: bool = True,
    check: bool = True,
) -> EighResult:
    """Eigenvalues and eigenvectors of A x = λ B x, B positive definite.

    With B = L Lᴴ (Cholesky), those of L⁻¹ A L⁻ᴴ by `eigh`; the vectors X = L⁻ᴴ V satisfy Xᴴ B X = I
    and A X = B X Λ. Gradients of A and B go through all of it, and are symmetric (Hermitian).

    Args:
        A: (*, n, n), symmetric or Hermitian, of which the symmetric (Hermitian) part is taken.
        B: (*, n, n), likewise, and positive definite.
        kernel, k, largest, check: as for `eigh`.

    Returns:
        `eigenvalues` and `eigenvectors` as from `eigh`. What it says of ties and signs holds here.

    Raises:
        ValueError: shapes or dtypes that differ, and what `eigh` refuses.
        torch.linalg.LinAlgError: B is not positive definite, by index, which is a ValueError
            too; and what `eigh` raises.
    """
    for matrix in (A, B):
        _require_square("eigh_generalized", matrix)
        if check:
            require_finite("eigh_generalized", matrix)
    if A.shape[-1] != B.shape[-1] or A.dtype != B.dtype:
        raise ValueError(
            "eigh_generalized needs matrices of one size and dtype, got "
            f"{tuple(A.shape)} in {A.dtype} and {tuple(B.shape)} in {B.dtype}"
        )
    factor, failed = torch.linalg.cholesky_ex(symmetric_part(B))
    failed = failed != 0
    if not unreadable(failed) and failed.any():
        raise InvalidMatrixError(
            f"eigh_generalized: B is not positive definite{name_samples(failed)}; add a "
            "multiple of the identity to it"
        )
    factor = torch.where(failed[..., None, None], torch.nan, factor)
    half = torch.linalg.solve_triangular(factor, symmetric_part(A), upper=False)
    reduced = torch.linalg.solve_triangular(factor, half.mH, upper=False)
    chosen = _choose_kernel(kernel)
    values, vectors = _eigenpairs("eigh_generalized", reduced, "L", chosen, check)
    if k is not None:
        kept = _kept("eigh_generalized", k, A.shape[-1], last=largest)
        values, vectors = values[..., kept], vectors[..., kept]
    return EighResult(values, torch.linalg.solve_triangular(factor.mH, vectors, upper=True))


def _eigenpairs(
    caller: str, matrix: Tensor, triangle: str, kernel: Kernel, check: bool
) -> tuple[Tensor, Tensor]:
    _require_square(caller, matrix)
    lower = _is_lower(caller, triangle)
    return eigendecomposition(matrix, kernel, lower=lower, caller=caller if check else None)


def _singular_triplets(
    caller: str, matrix: Tensor, driver: str | None, kernel: Kernel, check: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _require_matrices(caller, matrix)
    return singular_value_decomposition(matrix, kernel, driver, caller if check else None)


def _choose_kernel(kernel: str | Kernel) -> Kernel:
    return kernel if isinstance(kernel, Kernel) else choose("kernel", kernel, KERNELS)


def _require_matrices(caller: str, matrix: Tensor) -> None:
    checks.tensor(caller, matrix)
    if matrix.dtype not in DTYPES:
        raise ValueError(
            f"{caller} needs float32 or float64, real or complex, got {matrix.dtype}; convert it, "
            "as by float()"
        )
    if matrix.ndim < 2:
        raise ValueError(f"{caller} needs matrices (*, m, n), got shape {tuple(matrix.shape)}")


def _require_square(caller: str, matrix: Tensor) -> None:
    _require_matrices(caller, matrix)
    if matrix.shape[-1] != matrix.shape[-2]:
        shape = tuple(matrix.shape)
        raise ValueError(f"{caller} needs square matrices (*, n, n), got shape {shape}")


def _kept(caller: str, k: int, count: int, *, last: bool) -> slice:
    """The first or the last k of `count` values."""
    require_integer(f"{caller}: k", k, 1)
    if k > count:
        raise ValueError(f"{caller}: k must be at most {count}, the number of values, got {k}")
    return slice(count - k, count) if last else slice(k)


def _is_lower(caller: str, triangle: object) -> bool:
    if isinstance(triangle, str) and triangle.upper() in ("L", "U"):
        return triangle.upper() == "L"
    raise ValueError(
        f"{caller}: UPLO must be 'L' or 'U', got {triangle!r}; a kernel is passed by name, kernel=…"
    )


def _written(
    caller: str, factors: tuple[Tensor, ...], out: Sequence[Tensor] | None
) -> Sequence[Tensor]:
    """The factors, in the tensors of `out` where they are given."""
    if out is None:
        return factors
    if len(out) != len(factors):
        raise ValueError(f"{caller}: out must hold {len(factors)} tensors, got {len(out)}")
    # A product by 1 is exact, and torch checks and resizes what it writes to.
    return [torch.mul(factor, 1, out=target) for factor, target in zip(factors, out, strict=True)]
