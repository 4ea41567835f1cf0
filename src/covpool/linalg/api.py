"""Functions of symmetric matrices, f(A) = V f(Λ) Vᵀ."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from covpool.linalg.diagnostics import Diagnostics
from covpool.linalg.elementwise import get_function
from covpool.linalg.evaluate import evaluate
from covpool.linalg.functions import EXP, INV_SQRT, LOG, POWER, SQRT, ScalarFunction
from covpool.linalg.methods import Method
from covpool.linalg.names import FunctionName, MethodName

AnyFunction = FunctionName | Callable[[Tensor], Tensor] | ScalarFunction
"""A scalar function as `matrix_function` takes it."""


@overload
def matrix_sqrt(
    matrix: Tensor,
    method: MethodName | Method = "exact",
    *,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[False] = False,
) -> Tensor: ...


@overload
def matrix_sqrt(
    matrix: Tensor,
    method: MethodName | Method = "exact",
    *,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[True],
) -> tuple[Tensor, Diagnostics]: ...


def matrix_sqrt(
    matrix: Tensor,
    method: MethodName | Method = "exact",
    *,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, Diagnostics]:
    """The square root A^(1/2) = V diag(√λ) Vᵀ of symmetric positive semi-definite matrices.

    Args:
        matrix: (*, n, n), any number of leading dimensions, none and empty ones included. float64,
            float32, or float16/bfloat16, which are computed in higher precision. Hermitian
            matrices in complex128 or complex64 likewise, with Vᴴ for Vᵀ; a dtype named below
            stands for the complex one of its precision.
        method: a name of `METHODS`, or a row of it with other constants,
            `METHODS["svd-taylor"].replace(degree=50)`. The row decides forward algorithm and
            gradient; "exact" is exact in both.
        compute_dtype: the dtype of the computation. None: float64 where the method decomposes
            and for `newton-schulz-minimax`, float32 (float64 for float64 input) for the other
            methods that iterate. `torch.float32` is for devices without float64: where that is
            the default, eigenvalues below n · eps of the largest, 3e-5 at n = 256, are lost, and
            the gradient is wrong by tens of percent where there are any. A UserWarning says so: of
            methods that decompose with `check`, and where there are any; of others always. Well
            conditioned matrices are right to float32's digits, at its speed.
        check: whether to refuse matrices that are not finite, symmetric and positive
            semi-definite. Costs a synchronisation on a GPU. Off, and inside torch.compile or
            torch.func transforms, where values cannot be read, the symmetric part is used, NaN
            gives NaN, and negative eigenvalues count as zero (with "isqrt-cov" they give
            anything).
        return_info: whether to return `Diagnostics` too: condition number, effective rank,
            smallest relative gap, residual and iterations of each matrix. Costs matrix products,
            and an eigendecomposition where the method has none. Not under vmap, which takes
            tensors alone.

    Returns:
        (*, n, n), symmetric, in the input's dtype; with `return_info`, a tuple of that and
        `Diagnostics`.

    Ties: `exact` needs no care, its gradient G ↦ P solves A^(1/2) P + P A^(1/2) = G and is finite
    and exact at repeated eigenvalues. Every other decomposing method has a bias there, stated by
    its kernel or gradient rule.

    Rank deficiency: eigenvalues below n · finfo(dtype).eps of the largest (dtype that of the
    computation) count as zero, and what they would have contributed is lost: the root of
    diag(1e24, 1) lacks the 1. Where rows and columns differ so much in size, scale them, for a
    covariance the features; `diagnose` and `return_info` tell what was dropped. The root's
    derivative is infinite there in directions that raise the rank; these are given 0, so
    gradients are finite and, along changes that keep the rank, right. The zero matrix gives zero
    and gradient zero.

    Second derivatives: right for `exact` (of any order at full rank, to the second at deficient
    rank, where a third is refused, or NaN inside torch.func transforms), `isqrt-cov` and, at full
    rank, `newton-schulz-minimax`; refused by a RuntimeError for the others, whose gradient is not
    the derivative of their result. Of a third derivative at most one of the two outer ones may be
    in forward mode: torch loses terms of the other (pytorch issue 197867). Forward mode
    (`torch.func.jvp`, `jacfwd`, `hessian`) gives the transpose of the method's gradient; within
    torch.compile it is refused. Call backward outside autocast, as PyTorch recommends: within it,
    the products of the backward pass of `isqrt-cov` are in half precision.

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
    return evaluate(
        "matrix_sqrt", (SQRT,), matrix, (None,), method, compute_dtype, check, return_info
    )[0]


@overload
def matrix_inv_sqrt(
    matrix: Tensor,
    method: MethodName | Method = "exact",
    *,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[False] = False,
) -> Tensor: ...


@overload
def matrix_inv_sqrt(
    matrix: Tensor,
    method: MethodName | Method = "exact",
    *,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[True],
) -> tuple[Tensor, Diagnostics]: ...


def matrix_inv_sqrt(
    matrix: Tensor,
    method: MethodName | Method = "exact",
    *,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, Diagnostics]:
    """The inverse square root A^(−1/2) = V diag(1/√λ) Vᵀ of symmetric positive definite matrices.

    Args:
        matrix: as for `matrix_sqrt`, and of full rank.
        method: as for `matrix_sqrt`. "svd-topn" gives the pseudo-inverse root of the part that it
            keeps. "isqrt-cov" gives Z/√tr(A) of its iteration, which has not converged where
            eigenvalues are far below the trace: after 5 iterations an eigenvalue of 1e-4 of the
            trace gives 7.6/√tr(A) instead of 100/√tr(A). "mpa-lyapunov" gives the inverse of its
            root, "newton-schulz-minimax" resolves eigenvalues as it does for the root.
        floor: clamps the eigenvalues from below, see `matrix_function`: for singular and nearly
            singular matrices. Method "exact" alone.
        compute_dtype, check, return_info: as for `matrix_sqrt`; `check` refuses singular matrices
            too, unless there is a floor.

    Returns:
        (*, n, n), symmetric, in the input's dtype; with `return_info`, a tuple of that and
        `Diagnostics`.

    Ties: `exact` has the gradient by divided differences −1/(√a √b (√a + √b)), finite and exact
    at repeated eigenvalues. The others' bias is stated by their kernel or gradient rule.

    Rank deficiency: numerically singular matrices (an eigenvalue at or below n · finfo(dtype).eps
    of the largest, dtype that of the computation) are refused: give a floor, or add a multiple of
    the identity.
    With check=False, and where values cannot be read, decomposing methods give the pseudo-inverse
    root V diag(1/√λ on the range, else 0) Vᵀ. Its gradient is exact along changes that keep the
    rank: pairs of a positive λ and 0 have f(λ)/λ, pairs of zeros 0. The zero matrix gives zero.
    The matrix of a dtype with fewer digits than the computation's may be invertible by its
    rounding errors alone: look at the condition number of `diagnose`.

    Second derivatives: right for `exact` at any rank, `isqrt-cov` and, at full rank,
    `newton-schulz-minimax`; a third one of `exact` is refused by a RuntimeError, and so is the
    second of the others. That of `exact` takes n passes over n × n arrays (about a second for one
    matrix of n = 256 on one core). Forward mode as for `matrix_sqrt`.

    Raises:
        ValueError: as `matrix_sqrt`; with `check`, singular matrices, by index.

    Source: Higham, "Functions of Matrices", SIAM 2008, chapters 3 and 6; Daleckiĭ, Kreĭn, 1965,
    for the gradient.

    >>> import torch, covpool
    >>> covpool.matrix_inv_sqrt(torch.diag(torch.tensor([4.0, 16.0])))
    tensor([[0.5000, 0.0000],
            [0.0000, 0.2500]])
    """
    return evaluate(
        "matrix_inv_sqrt",
        (INV_SQRT,),
        matrix,
        (None,),
        method,
        compute_dtype,
        check,
        return_info,
        floor,
    )[0]


@overload
def matrix_power(
    matrix: Tensor,
    exponent: Tensor | float,
    method: MethodName | Method = "exact",
    *,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[False] = False,
) -> Tensor: ...


@overload
def matrix_power(
    matrix: Tensor,
    exponent: Tensor | float,
    method: MethodName | Method = "exact",
    *,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[True],
) -> tuple[Tensor, Diagnostics]: ...


def matrix_power(
    matrix: Tensor,
    exponent: Tensor | float,
    method: MethodName | Method = "exact",
    *,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, Diagnostics]:
    """The real power A^p = V diag(λ^p) Vᵀ of symmetric positive semi-definite matrices.

    Args:
        matrix: as for `matrix_sqrt`; of full rank where the exponent is not positive.
        exponent: p, a number or a tensor that broadcasts to the batch shape (*). A tensor may need
            a gradient: ∂ℓ/∂p = ⟨G, V diag(λ^p log λ) Vᵀ⟩, with G that of the result.
        method: as for `matrix_sqrt`, of those that decompose. "svd-topn" gives the power of the
            part that it keeps. The exponent's gradient is exact with each of them.
        floor: clamps the eigenvalues from below, see `matrix_function`: for singular and nearly
            singular matrices. Method "exact" alone.
        compute_dtype, check, return_info: as for `matrix_sqrt`; `check` refuses singular matrices
            where p ≤ 0, unless there is a floor.

    Returns:
        (*, n, n), symmetric, in the input's dtype; with `return_info`, a tuple of that and
        `Diagnostics`, which has no residual here.

    Ties: `exact` has the gradient by divided differences a^p (1 − (b/a)^p) / (a − b), evaluated by
    expm1 and log1p: finite and exact at repeated eigenvalues and close to them. The others' bias
    is stated by their kernel or gradient rule.

    Rank deficiency: zero eigenvalues (at or below n · finfo(dtype).eps of the largest, dtype that
    of the computation) stay zero, for every exponent. For p ≤ 0 such matrices are refused: give
    a floor, or add a multiple of the identity. With check=False, and where values cannot be read,
    negative powers are those of the pseudo-inverse and A^0 is the projector on the range. The
    gradient is exact along changes that keep the rank: pairs of a positive λ and 0 have λ^(p−1),
    pairs of zeros 0, and 1 for p = 1, whose gradient is the identity.

    Second derivatives: right for `exact` at any rank, with respect to A, to p and mixed; a third
    one is refused by a RuntimeError, and so is the second of the other methods. They take n passes
    over n × n arrays (about 5 seconds for one matrix of n = 256 on one core). Forward mode as for
    `matrix_sqrt`.

    Raises:
        ValueError: as `matrix_sqrt`; an exponent that is not real and finite (a tensor's values are
            looked at with `check`) or does not broadcast to the batch; a method without powers;
            with `check`, singular matrices where p ≤ 0, by index.

    Source: Higham, "Functions of Matrices", SIAM 2008, chapter 3; Daleckiĭ, Kreĭn, 1965, for the
    gradient. As a pooling: Li, Xie, Wang, Zuo, ICCV 2017 (MPN-COV, p = 1/2).

    >>> import torch, covpool
    >>> covpool.matrix_power(torch.diag(torch.tensor([1.0, 8.0])), 1 / 3)
    tensor([[1., 0.],
            [0., 2.]])
    """
    return evaluate(
        "matrix_power",
        (POWER,),
        matrix,
        (exponent,),
        method,
        compute_dtype,
        check,
        return_info,
        floor,
    )[0]


@overload
def matrix_log(
    matrix: Tensor,
    method: MethodName | Method = "exact",
    *,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[False] = False,
) -> Tensor: ...


@overload
def matrix_log(
    matrix: Tensor,
    method: MethodName | Method = "exact",
    *,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[True],
) -> tuple[Tensor, Diagnostics]: ...


def matrix_log(
    matrix: Tensor,
    method: MethodName | Method = "exact",
    *,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, Diagnostics]:
    """The logarithm log A = V diag(log λ) Vᵀ of symmetric positive definite matrices.

    Args:
        matrix: as for `matrix_sqrt`, and of full rank.
        method: as for `matrix_sqrt`, of those that keep every eigenvalue of a decomposition.
        floor: clamps the eigenvalues from below, see `matrix_function`: for singular and nearly
            singular matrices. Method "exact" alone.
        compute_dtype, check, return_info: as for `matrix_sqrt`; `check` refuses singular matrices
            too, unless there is a floor.

    Returns:
        (*, n, n), symmetric, in the input's dtype; with `return_info`, a tuple of that and
        `Diagnostics`.

    Ties: `exact` has the gradient by divided differences log(a/b) / (a − b), evaluated by log1p:
    finite and exact at repeated eigenvalues and close to them. The others' bias is stated by their
    kernel.

    Rank deficiency: numerically singular matrices (an eigenvalue at or below n · finfo(dtype).eps
    of the largest, dtype that of the computation) are refused: give a floor, or add a multiple of
    the identity.
    With check=False, and where values cannot be read, the logarithm is taken on the range alone
    and is 0 on the null space. Its gradient is exact along changes that keep the rank: pairs of a
    positive λ and 0 have log(λ)/λ, pairs of zeros 0. The zero matrix gives zero.

    Second derivatives: right for `exact` at any rank; a third one is refused by a RuntimeError,
    and so is the second of the other methods. They take n passes over n × n arrays (about 5
    seconds for one matrix of n = 256 on one core). Forward mode as for `matrix_sqrt`.

    Raises:
        ValueError: as `matrix_sqrt`; a method without logarithm; with `check`, singular matrices,
            by index.

    Source: Arsigny, Fillard, Pennec, Ayache, "Log-Euclidean metrics for fast and simple calculus
    on diffusion tensors", Magnetic Resonance in Medicine 56, 2006; Daleckiĭ, Kreĭn, 1965, for the
    gradient.

    >>> import torch, covpool
    >>> covpool.matrix_log(torch.diag(torch.tensor([1.0, torch.e])))
    tensor([[0.0000, 0.0000],
            [0.0000, 1.0000]])
    """
    return evaluate(
        "matrix_log", (LOG,), matrix, (None,), method, compute_dtype, check, return_info, floor
    )[0]


@overload
def matrix_exp(
    matrix: Tensor,
    *,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[False] = False,
) -> Tensor: ...


@overload
def matrix_exp(
    matrix: Tensor,
    *,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[True],
) -> tuple[Tensor, Diagnostics]: ...


def matrix_exp(
    matrix: Tensor,
    *,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, Diagnostics]:
    """The exponential exp A = V diag(e^λ) Vᵀ of symmetric matrices, definite or not.

    Where the matrix is symmetric this is what `torch.linalg.matrix_exp` computes by products, for
    the price of one eigendecomposition, and the inverse of `matrix_log`.

    Args:
        matrix: (*, n, n), as for `matrix_sqrt`; eigenvalues of any sign.
        compute_dtype, check, return_info: as for `matrix_function`.

    Returns:
        (*, n, n), symmetric, in the input's dtype; with `return_info`, a tuple of that and
        `Diagnostics`. Eigenvalues beyond the logarithm of the largest number (88.7 in float32, of
        the result; 709.78 in float64, of the computation) give infinities, and NaN beyond both.

    Ties and rank deficiency need no care: the gradient by divided differences e^a (1 − e^(b−a)) /
    (a − b) is exact everywhere, and so is the second derivative; a third one is refused.

    Raises:
        ValueError: as `matrix_function`.

    Source: Daleckiĭ, Kreĭn, 1965, for the gradient; Najfeld, Havel, "Derivatives of the matrix
    exponential and their computation", Advances in Applied Mathematics 16, 1995.

    >>> import torch, covpool
    >>> covpool.matrix_exp(torch.diag(torch.tensor([0.0, -1.0]))).diagonal()
    tensor([1.0000, 0.3679])
    """
    return evaluate(
        "matrix_exp", (EXP,), matrix, (None,), "exact", compute_dtype, check, return_info
    )[0]


@overload
def matrix_function(
    matrix: Tensor,
    function: AnyFunction,
    method: MethodName | Method = "exact",
    *,
    parameter: Tensor | float | None = None,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[False] = False,
) -> Tensor: ...


@overload
def matrix_function(
    matrix: Tensor,
    function: AnyFunction,
    method: MethodName | Method = "exact",
    *,
    parameter: Tensor | float | None = None,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[True],
) -> tuple[Tensor, Diagnostics]: ...


@overload
def matrix_function(
    matrix: Tensor,
    function: Sequence[AnyFunction],
    method: MethodName | Method = "exact",
    *,
    parameter: Sequence[Tensor | float | None] | None = None,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[False] = False,
) -> tuple[Tensor, ...]: ...


@overload
def matrix_function(
    matrix: Tensor,
    function: Sequence[AnyFunction],
    method: MethodName | Method = "exact",
    *,
    parameter: Sequence[Tensor | float | None] | None = None,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: Literal[True],
) -> tuple[tuple[Tensor, ...], tuple[Diagnostics, ...]]: ...


def matrix_function(
    matrix: Tensor,
    function: AnyFunction | Sequence[AnyFunction],
    method: MethodName | Method = "exact",
    *,
    parameter: Tensor | float | Sequence[Tensor | float | None] | None = None,
    floor: Tensor | float | None = None,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
    return_info: bool = False,
) -> Any:
    """Any scalar function of symmetric matrices, f(A) = V diag(f(λ)) Vᵀ, differentiable at ties.

    Args:
        matrix: (*, n, n), as for `matrix_sqrt`; eigenvalues of any sign that f is defined for.
        function: a name of `FUNCTIONS`, or a torch function that works elementwise:
            `matrix_function(A, torch.sin)`. Of the latter f alone is needed: f′ comes from
            `torch.func.jvp`. That each element depends on its own alone is not checked: a softmax
            gives wrong results. `Elementwise(f, domain="positive")` says besides which eigenvalues
            it accepts. The named ones, with the eigenvalues that they accept and what they do at
            zero:

            - sqrt, inv_sqrt, power (`exponent`), log: those of `matrix_sqrt` and its neighbours;
            - exp, softplus, tanh: any eigenvalue; smooth everywhere;
            - entropy, −λ log λ: λ ≥ 0; 0 at zero, where the infinite derivative counts as 0;
            - inverse, 1/λ: λ ≠ 0; unchecked, a zero stays zero (the pseudo-inverse);
            - inv_root (`root` p), λ^(−1/p): λ > 0; unchecked, as a negative power;
            - sign: λ ≠ 0; unchecked, 0 at zero. abs: any; its derivative at 0 counts as 0;
            - positive_part, max(λ, 0), the projection on the positive semi-definite cone, and
              clamp_min (`bound`), max(λ, bound), known as ReEig: any eigenvalue; at the kink the
              derivative counts as 0.

            A tuple or list of them gives a tuple of results in that order, of one decomposition:
            `root, inverse = matrix_function(A, ("sqrt", "inv_sqrt"))`. Methods that iterate give
            the root and its inverse by one iteration. Matrices are refused that one of the
            functions refuses.
        method: as for `matrix_sqrt`, of those that offer the function; "exact" offers all.
        parameter: of functions that have one, named in brackets above: a number, or a tensor that
            broadcasts to the batch shape (*), which may need a gradient. Of several functions a
            tuple or list of as many, None for those that have none.
        floor: of each eigenvalue λ f(max(λ, floor)) is taken: a positive number in the unit of the
            matrix, or a tensor that broadcasts to the batch shape, which gets no gradient. Singular
            matrices and negative eigenvalues are then no reason to refuse, as they are clamped. The
            gradient is exact: of two clamped eigenvalues it is zero, of one that is clamped, b, and
            one that is not, a, its entry is (f(a) − f(floor)) / (a − b). At the floor itself the
            derivative counts as 0. Below n · finfo(dtype).eps of the largest magnitude, others are
            rounding: where f is not smooth at zero, a floor below that is given to all of them.
            With 'exact', or a row of your own that offers every function.
        compute_dtype: as for `matrix_sqrt`.
        check: whether to refuse matrices that are not finite and symmetric, and eigenvalues that
            the function does not accept.
        return_info: whether to return `Diagnostics` too; of matrices with negative eigenvalues its
            figures are those of |λ|, and with a floor those of the matrix as it is.

    Returns:
        (*, n, n), symmetric, in the input's dtype; with `return_info`, a tuple of that and
        `Diagnostics`. Of several functions, a tuple of results; with `return_info`, a tuple of that
        and of a tuple of `Diagnostics`, which differ in the residual, one for each function.

    Ties: with `exact`, first and second derivatives are by divided differences that do not cancel,
    exact at ties and next to them (relative errors of 1e-13 and 1e-11 and less in float64, where f
    itself is computed to rounding); a third derivative is refused, as it is a sum of n⁴ terms.

    Rank deficiency: where f has a pole, a jump or a kink at zero, or an infinite derivative,
    eigenvalues at or below n · finfo(dtype).eps of the largest magnitude count as zero, as rounding
    must not decide on which side they are. Where f or f′ is not finite there, f is applied on the
    range alone, with the derivative along changes that keep the rank. Smooth functions (exp,
    softplus, tanh, a user's own) see every eigenvalue as it is.

    Raises:
        TypeError: not a tensor.
        ValueError: an unknown function or method, a method that does not offer the function, a
            missing or superfluous parameter, a floor that is not positive, a function that gives
            another shape or dtype than its input's, and as `matrix_sqrt`.

    Source: Higham, "Functions of Matrices", SIAM 2008, chapter 3; Daleckiĭ, Kreĭn, 1965, for the
    derivatives; Huang, Van Gool, "A Riemannian network for SPD matrix learning", AAAI 2017, for
    ReEig.

    >>> import torch, covpool
    >>> indefinite = torch.diag(torch.tensor([-1.0, 4.0]))
    >>> covpool.matrix_function(indefinite, "positive_part").diagonal()
    tensor([0., 4.])
    >>> covpool.matrix_function(indefinite, torch.sin).diagonal()
    tensor([-0.8415, -0.7568])
    >>> covpool.matrix_function(indefinite, "inv_sqrt", floor=0.25).diagonal()
    tensor([2.0000, 0.5000])
    """
    several = isinstance(function, tuple | list)
    chosen = [get_function(each) for each in cast(Any, function if several else (function,))]
    if not chosen:
        raise ValueError(f"matrix_function needs at least one function, got {function!r}")
    given: Any = parameter if several else (parameter,)
    given = (None,) * len(chosen) if given is None else given
    if not isinstance(given, tuple | list) or len(given) != len(chosen):
        raise ValueError(
            f"matrix_function needs one parameter for each of the {len(chosen)} functions, None "
            f"for those that have none, got {parameter!r}"
        )
    for each, value in zip(chosen, given, strict=True):
        if each.parameter is None and value is not None:
            raise ValueError(
                f"matrix_function: function {each.name!r} has no parameter, got {value!r}"
            )
    results = evaluate(
        "matrix_function",
        chosen,
        matrix,
        given,
        method,
        compute_dtype,
        check,
        return_info,
        floor,
    )
    if not several:
        return results[0]
    return tuple(zip(*results, strict=True)) if return_info else tuple(results)
