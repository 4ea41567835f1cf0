"""Functions of matrices of any shape, U f(S) Vᴴ: by name or one's own, the polar factor, A_r."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.autograd.modes import refuse_second_derivative
from covpool.linalg.autograd.product import multiplication
from covpool.linalg.autograd.singular import lift_singular
from covpool.linalg.elementwise import Elementwise, get_odd_function
from covpool.linalg.engine.factorisation import require_finite
from covpool.linalg.engine.singular import SINGULAR_VALUE_DECOMPOSITION
from covpool.linalg.functions import ScalarFunction
from covpool.linalg.functions.odd import HARD_THRESHOLD, PINV, POLAR
from covpool.linalg.methods import METHODS
from covpool.linalg.names import OddFunctionName
from covpool.linalg.precision import full_precision
from covpool.linalg.spectrum import name_samples, rank_tolerance, real_dtype, symmetric_part
from covpool.linalg.transforms import unreadable


class PolarResult(NamedTuple):
    """The fields of torch.linalg.polar."""

    U: Tensor
    H: Tensor


class Triplets(NamedTuple):
    """A matrix (*, m, n) in the dtype of the computation, with its U, S and Vᴴ as constants."""

    matrix: Tensor
    u: Tensor
    s: Tensor
    vh: Tensor


def matrices(caller: str, matrix: Tensor, compute_dtype: torch.dtype | None, check: bool) -> None:
    """Refuse what is no batch of matrices and, with `check`, what is not finite."""
    checks.floating(caller, matrix, complex_too=True)
    checks.compute_dtype(caller, compute_dtype)
    if matrix.ndim < 2:
        raise ValueError(f"{caller} needs matrices (*, m, n), got shape {tuple(matrix.shape)}")
    if check:
        require_finite(caller, matrix.detach())


def decompose(matrix: Tensor) -> Triplets:
    """To be called in a context of full precision, with a matrix that is not empty."""
    # What is made of them is the same for each choice of basis.
    return Triplets(matrix, *SINGULAR_VALUE_DECOMPOSITION(matrix, any_basis=True))


def working(matrix: Tensor, compute_dtype: torch.dtype | None) -> Tensor:
    return matrix.to(METHODS["exact"].dtype(matrix.dtype, compute_dtype))


def lifted(function: ScalarFunction, parameter: Tensor | None, triplets: Triplets) -> Tensor:
    matrix, u, s, vh = triplets
    values = function.clip(s, max(matrix.shape[-2:]))
    return lift_singular(matrix, parameter, u, values, vh, function)


def svd_function(
    A: Tensor,
    function: OddFunctionName | Callable[[Tensor], Tensor] | Elementwise,
    *,
    parameter: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
) -> Tensor:
    """Any function of the singular values of a matrix of any shape, F = U f(S) Vᴴ.

    It is differentiable at ties, where a program that takes A apart into U, S and Vᴴ and multiplies
    them again loses f′(σ) between tied vectors: F does not depend on their choice, and its
    derivative has no pole. With M = Uᴴ G V, herm and skew its Hermitian and skew-Hermitian part,
    the gradient of A is

        U [(f(σi) − f(σj))/(σi − σj) ∘ herm(M) + (f(σi) + f(σj))/(σi + σj) ∘ skew(M)] Vᴴ
          + (I − U Uᴴ) G V diag(f(σ)/σ) Vᴴ + U diag(f(σ)/σ) Uᴴ G (I − V Vᴴ).

    Args:
        A: (*, m, n), tall or wide, any number of leading dimensions, none and empty ones included:
            float64, float32, float16, bfloat16, complex128 or complex64.
        function: a torch function that works elementwise, `svd_function(A, torch.log1p)`, of which
            f alone is needed, as for `matrix_function`; it is called for σ ≥ 0 and counts as odd,
            f(−σ) = −f(σ). That each element depends on its own alone is not checked: a softmax
            gives wrong results. Or a name:

            - polar, 1 for σ > 0: the polar factor, see `polar`;
            - soft_threshold (`threshold` τ), max(σ − τ, 0): singular value thresholding, the
              proximal map of τ times the nuclear norm; at σ = τ the derivative counts as 0;
            - hard_threshold (`bound`), σ above the bound, else 0, see `low_rank`;
            - clip (`bound` ≥ 0), min(σ, bound): the projection on the ball of the spectral norm; at
              the bound the derivative counts as 0;
            - power (`exponent` p), σ^p;
            - pinv (`bound`, by default 0), 1/σ above the bound, else 0. U f(S) Vᴴ would be the
              adjoint of the pseudo-inverse. As nobody expects that of the name, of this one the
              result is V f(S) Uᴴ, (*, n, m), that of `torch.linalg.pinv(A, atol=bound)`;
            - tanh; identity, A itself.
        parameter: of those that have one, named in brackets: a number, or a tensor that broadcasts
            to the batch shape (*), which may need a gradient; that of a jump's place is 0.
        compute_dtype: None: float64 for all input; `torch.float32` as for `matrix_sqrt`.
        check: whether to refuse matrices that are not finite; off, they give NaN. Also thresholds
            and bounds below zero, for which the result has no meaning.

    Returns:
        (*, m, n), of pinv (*, n, m), in the input's dtype.

    Ties need no care: first and second derivatives, backward and forward, are by divided
    differences that do not cancel, as in `matrix_function`; a third one is refused by a
    RuntimeError. Functions that jump (hard_threshold, pinv) have a pole between a σ that is kept
    and one that is not.

    Rank deficiency: where f(0) is not 0 (polar, pinv, powers of p ≤ 0, your own such as exp) or
    f′(0) is not finite (powers of p < 1), singular values of at most max(m, n) · finfo(dtype).eps
    of the largest count as zero, and f is applied to the others alone. The gradient is then exact
    along changes that keep the rank: pairs of σ and 0 have f(σ)/σ, pairs of zeros 0. Other
    functions see every σ as it is, and have their full derivative at zero.

    Raises:
        TypeError: not a tensor, or no function.
        ValueError: not matrices, an unknown name, a missing or superfluous parameter, a function
            that gives another shape or dtype than its input's, another compute_dtype than float32
            and float64; with `check`, matrices that are not finite, by index.
        torch.linalg.LinAlgError: no way of decomposing succeeded.

    Source: Cai, Candès, Shen, "A singular value thresholding algorithm for matrix completion", SIAM
    Journal on Optimization 20, 2010; Noferini, "A formula for the Fréchet derivative of a
    generalized matrix function", SIAM Journal on Matrix Analysis 38, 2017, for the derivative.

    >>> import torch, covpool
    >>> a = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> covpool.svd_function(a, "soft_threshold", parameter=2.0)
    tensor([[1., 0.],
            [0., 0.],
            [0., 0.]])
    >>> covpool.svd_function(a, torch.log1p).diagonal()
    tensor([1.3863, 0.6931])
    """
    matrices("svd_function", A, compute_dtype, check)
    chosen = get_odd_function(function)
    called = function if isinstance(function, str) else chosen.name
    parameter = 0.0 if parameter is None and chosen is PINV else parameter
    if chosen.parameter is not None:
        parameter = checks.parameter("svd_function", chosen.parameter, parameter, A.shape[:-2])
    elif parameter is not None:
        raise ValueError(f"svd_function: function {called!r} has no parameter, got {parameter!r}")
    matrix = working(A, compute_dtype)
    powers = None
    if parameter is not None:
        powers = torch.as_tensor(parameter, dtype=real_dtype(matrix.dtype), device=A.device)
        powers = powers.expand(A.shape[:-2])
        if check and not unreadable(powers):
            checks.finite(f"svd_function: {chosen.parameter}", powers, sample_dims=0)
            negative = powers < 0
            if chosen.parameter != "exponent" and negative.any():
                raise ValueError(
                    f"svd_function: the {chosen.parameter} of {called!r} must not be "
                    f"negative, got {powers[negative].flatten()[0].item():g}"
                    f"{name_samples(negative)}; clamp it"
                )
    if A.numel() == 0:
        # Of no entries, but they depend on the parameter: its gradient is zero, not missing.
        found = matrix.clone() if powers is None else matrix * powers[..., None, None]
    else:
        with full_precision(matrix):
            found = lifted(chosen, powers, decompose(matrix))
    # Multiplied, as of a conjugate view torch takes no imaginary part under vmap.
    return (1 * found.mH if chosen is PINV else found).to(A.dtype)


def polar(
    A: Tensor,
    side: Literal["right", "left"] = "right",
    *,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
) -> PolarResult:
    """The polar decomposition A = U H, or H U, of matrices of any shape.

    Args:
        A: (*, m, n), as for `svd_function`. As `scipy.linalg.polar`, it may be wide, which
            `torch.linalg.polar` refuses.
        side: "right": A = U H with H = (AᴴA)^(1/2), (*, n, n); "left": A = H U with
            H = (A Aᴴ)^(1/2), (*, m, m).
        compute_dtype, check: as for `svd_function`.

    Returns:
        A named tuple of `U` (*, m, n), the matrix with orthonormal columns (tall) or rows (wide)
        that is nearest to A, and `H`, symmetric (Hermitian) and positive semi-definite.

    Ties need no care: the derivative of U has 1/(σi + σj) alone.

    Rank deficiency: U is the partial isometry, zero on the null space of A, which alone is unique
    there; it has orthonormal columns or rows at full rank only. Singular values of at most
    max(m, n) · finfo(dtype).eps of the largest count as zero. The derivative is the one along
    changes that keep the rank, and finite; those that raise it make U jump. Second derivatives are
    right, a third one is refused.

    Raises:
        ValueError: another side; else as `svd_function`.

    Source: Higham, "Computing the polar decomposition, with applications", SIAM Journal on
    Scientific and Statistical Computing 7, 1986.

    >>> import torch, covpool
    >>> u, h = covpool.polar(torch.tensor([[0.0, -2.0], [3.0, 0.0]]))
    >>> u
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    >>> h.diagonal()
    tensor([3., 2.])
    """
    if side not in ("right", "left"):
        raise ValueError(f"polar: side must be 'right' or 'left', got {side!r}")
    matrices("polar", A, compute_dtype, check)
    matrix = working(A, compute_dtype)
    with full_precision(matrix):
        factor = lifted(POLAR, None, decompose(matrix)) if A.numel() else matrix.clone()
        product = multiplication(matrix)
        root = product(factor.mH, matrix) if side == "right" else product(matrix, factor.mH)
    return PolarResult(factor.to(A.dtype), symmetric_part(root).to(A.dtype))


def low_rank(
    A: Tensor,
    rank: int | None = None,
    *,
    atol: Tensor | float | None = None,
    rtol: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
) -> Tensor:
    """The nearest matrix of a lower rank, A_r = Σ σi uᵢ vᵢᴴ of the largest σi.

    A program that slices U, S and Vᴴ and multiplies them again lacks the part of the gradient
    between vectors of the same σ, at any σ that is kept twice. Here the gradient is exact:
    1/(σi² − σj²) appears only between a σi that is kept and a σj that is not.

    Args:
        A: (*, m, n), as for `svd_function`.
        rank: r, from 0 on; what is larger than min(m, n) keeps all.
        atol: keeps σ > atol alone: a number, or a tensor that broadcasts to the batch shape (*),
            without a gradient.
        rtol: likewise, σ > rtol · σ₁. With several of these, a σ has to meet all of them.
        compute_dtype, check: as for `svd_function`.

    Returns:
        (*, m, n), in the input's dtype. With `atol` and `rtol` the rank may differ by sample.

    Ties: equal σ that are all kept, or all dropped, need no care. Where a tie is cut (the last σ
    that is kept and the first that is not are the same up to max(m, n) · finfo(dtype).eps of the
    largest, and not zero), A_r is not unique: what is returned is one of the nearest matrices, with
    as many σ as asked for. It has no derivative there, which is refused by a RuntimeError that
    names the samples, and NaN inside torch.func; close to it, the gradient is as large as 1/gap.
    Choose a rank or a threshold that leaves the tie whole.

    Rank deficiency: where the rank of A is at most r, A_r is A, and the gradient is the one along
    changes that keep the rank. σ of at most max(m, n) · finfo(dtype).eps of the largest are zeros.

    Second derivatives are right, a third one is refused.

    Raises:
        ValueError: neither a rank nor a tolerance, or one that is negative; else as `svd_function`.
        RuntimeError: a derivative where a tie is cut.

    Source: Eckart, Young, "The approximation of one matrix by another of lower rank", Psychometrika
    1, 1936.

    >>> import torch, covpool
    >>> covpool.low_rank(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2).diagonal()
    tensor([3., 2., 0.])
    >>> covpool.low_rank(torch.diag(torch.tensor([3.0, 2.0, 1.0])), rtol=0.5).diagonal()
    tensor([3., 2., 0.])
    """
    matrices("low_rank", A, compute_dtype, check)
    if rank is None and atol is None and rtol is None:
        raise ValueError("low_rank needs a rank, an atol or an rtol, got none of them")
    if rank is not None:
        rank = checks.integer("low_rank: rank", rank, 0)
    tolerances = [
        _tolerance(name, value, A, check) for name, value in (("atol", atol), ("rtol", rtol))
    ]
    matrix = working(A, compute_dtype)
    if A.numel() == 0:
        return A.clone()
    with full_precision(matrix):
        triplets = decompose(matrix)
        bound, values, cut = _bound(triplets.s, rank, *tolerances, longer=max(A.shape[-2:]))
        found = lifted(HARD_THRESHOLD, bound, triplets._replace(s=values))
    reason = (
        "low_rank has no derivative where a tie is cut, as the nearest matrix is not unique there; "
        "choose a rank or a tolerance that keeps all of the equal singular values, or none"
    )
    return refuse_second_derivative(found, reason, cut).to(A.dtype)


def _tolerance(name: str, value: Any, matrix: Tensor, check: bool) -> Tensor | None:
    """atol or rtol for each sample (*), or None."""
    if value is None:
        return None
    found = checks.parameter("low_rank", name, value, matrix.shape[:-2])
    real = torch.promote_types(real_dtype(matrix.dtype), torch.float64)
    numbers = torch.as_tensor(found, dtype=real, device=matrix.device).detach()
    if check and not unreadable(numbers) and not bool((numbers >= 0).all()):
        raise ValueError(f"low_rank: {name} must not be negative, got {value!r}")
    return numbers


def _bound(
    s: Tensor, rank: int | None, atol: Tensor | None, rtol: Tensor | None, longer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What separates the σ (*, k) that are kept from the others, for `HARD_THRESHOLD`.

    Returns:
        The largest σ that is not kept (*), the σ, of which those that are kept are above that, and
        the mask (*) of samples in which a tie is cut.
    """
    tolerance = rank_tolerance(longer, s.dtype) * s[..., :1]
    s = s.masked_fill(s <= tolerance, 0)
    kept = torch.ones_like(s, dtype=torch.bool)
    if rank is not None:
        kept = kept & (torch.arange(s.shape[-1], device=s.device) < rank)
    if atol is not None:
        kept = kept & (s > atol[..., None])
    if rtol is not None:
        kept = kept & (s > rtol[..., None] * s[..., :1])
    # Below zero where all are kept: then zeros are too.
    bound = torch.where(kept, -1, s).amax(-1)
    last = torch.where(kept, s, torch.inf).amin(-1)
    cut = (bound > 0) & (last - bound <= tolerance[..., 0])
    above = torch.nextafter(bound, torch.full_like(bound, torch.inf))[..., None]
    return bound, torch.where(kept & (s > 0), torch.maximum(s, above), s), cut
