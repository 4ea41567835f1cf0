"""f(cov X) of features X, and its derivative in both directions, on their singular vectors.

With Xc the centred features and Xc/√N = U S Vᵀ their singular value decomposition, the covariance
is U S² Uᵀ and the gradient of X is

    2/√N · (U (L ∘ UᵀGU) S + (I − U Uᵀ) G U diag(ℓ) S) Vᵀ,

L being the Loewner matrix and ℓᵢ its entry for the pair of λi and zero. L is large where two
singular values are small, and S makes up for it: nothing large arises, where the gradient of the
covariance, multiplied by Xc, would be made of large numbers that nearly cancel.

Where N − 1 < C, S² and V come from the N × N Gram matrix XcᵀXc/N, and U = Xc V S⁻¹/√N. The
covariance, which is singular, is not formed; no pair of zeros is needed, the problem is well posed.
Elsewhere S² and U come from the covariance; U is square, so the second term vanishes, and
Vᵀ = S⁻¹ UᵀXc/√N is formed for the derivative.

The decomposition and the products that small singular values hang on (Gram matrix or covariance,
Xc V or UᵀXc) are computed in the decomposition's dtype, the others in the working dtype.

To a method that is smooth at zero, small singular values are like others. No rank is needed, and
the working dtype is enough for everything: L is of order one, and S Vᵀ = UᵀXc/√N is not divided by
S. In float32 the eigenvalues are then Rayleigh quotients of the computed vectors, and what is
summed up is f(0) I + w Σ + (ΣU) diag((f(λ) − f(0))/λ − w) Uᵀ, so that the decomposition's own
errors, of several eps of the largest eigenvalue, are multiplied by small eigenvalues where f is
steepest; w is the mean of (f(λ) − f(0))/λ weighted by λ, so that they are multiplied by little
where that is nearly the same for all.

Of complex features the covariance is Xc Xcᴴ/N, and ᵀ reads ᴴ throughout.

Shapes: features (*, C, N), U (*, C, m), V (*, N, m), eigenvalues S² (*, m), result (*, C, C). None
of this is differentiated by autograd.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from covpool.linalg.engine.shares import by_shares
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.functions import ScalarFunction
from covpool.linalg.methods import Method
from covpool.linalg.precision import on_cpu
from covpool.linalg.spectrum import clip_to_rank, real_part, symmetric_part
from covpool.linalg.transforms import unreadable

SHARED_ELEMENTS = 2**21
"""Elements of all that a batch is computed from, from which it is computed by shares: 16 MiB in
float64, which no longer fit the caches."""

BLOCKED_SIZE = 256
"""Rows from which a symmetric product is quicker in blocks: it took 0.81 of the time for 16 samples
of 256 × 784 in float64 (1.0 in float32), 0.72 for 4 of 1024 × 2048 (0.69), 1.03 for 196 × 256."""


@dataclass(frozen=True)
class Computation:
    """What is computed of features, and in which precision.

    Attributes:
        decomposition_dtype: of what is decomposed and of the products that small singular values
            hang on.
        working_dtype: of the other products.
        readable: whether the values are known to be readable; else it is asked.
    """

    function: ScalarFunction
    method: Method
    decomposition_dtype: torch.dtype
    working_dtype: torch.dtype
    readable: bool = False


def works_on_gram(features: Tensor) -> bool:
    """Whether the N × N Gram matrix is the one to decompose: the covariance is singular."""
    channels, positions = features.shape[-2:]
    return positions - 1 < channels


def centre(features: Tensor, dtype: torch.dtype) -> Tensor:
    """X − mean in `dtype`, to the last digit also where the mean is far larger than the rest."""
    wide = torch.promote_types(features.dtype, dtype)
    # Converted once: torch would convert for the mean and for the difference, each for itself.
    centred = features.to(wide, copy=True)
    centred = centred.sub_(centred.mean(-1, keepdim=True)).to(dtype)
    # The mean was rounded to its own digits, which are few beside a small rest.
    if torch.finfo(dtype).bits == 64:
        return centred
    return centred.sub_(centred.mean(-1, keepdim=True))


def plainly_centred(features: Tensor) -> Tensor:
    """X − mean in the features' dtype, in operations that autograd and exporters take."""
    return features - features.mean(-1, keepdim=True)


def _covariance(centred: Tensor) -> Tensor:
    """Xc Xcᵀ/N, symmetric to the last digit, as the decomposition reads one triangle alone.

    Large ones on a CPU without the blocks above the diagonal.
    """
    size, positions = centred.shape[-2:]
    if size < BLOCKED_SIZE or not on_cpu(centred) or unreadable(centred):
        half = (centred @ centred.mH).div_(2 * positions)
        return half + half.mH
    result = centred.new_empty((*centred.shape[:-1], size))
    step = -(-size // 4)
    for low in range(0, size, step):
        high = min(low + step, size)
        block = (centred[..., low:, :] @ centred[..., low:high, :].mH).div_(positions)
        result[..., low:high, low:high] = symmetric_part(block[..., : high - low, :])
        below = block[..., high - low :, :]
        result[..., high:, low:high] = below
        result[..., low:high, high:] = below.mH
    return result


def by_samples(
    function: Callable[..., tuple[Tensor, ...]],
    computation: Computation,
    features: Tensor,
    *others: Tensor,
) -> tuple[Tensor, ...]:
    """`function(features, *others, computation=computation)`, by shares where that is quicker."""
    compute = partial(function, computation=computation)
    tensors = features, *others
    # A graph must not depend on the size.
    large = not torch.compiler.is_compiling() and (
        sum([tensor.numel() for tensor in tensors]) >= SHARED_ELEMENTS
    )
    if not large or not on_cpu(features) or any(unreadable(tensor) for tensor in tensors):
        return compute(*tensors)
    return by_shares(compute, tensors, dtype=computation.decomposition_dtype)


def value(features: Tensor, computation: Computation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f(cov X), U, V (of no columns where N > C, which forms it later) and S²."""
    method, working = computation.method, computation.working_dtype
    channels, positions = features.shape[-2:]
    centred = centre(features, computation.decomposition_dtype)
    covariance = None
    if works_on_gram(features):
        gram = (centred.mH @ centred).div_(positions)
        eigenvalues, right = EIGENDECOMPOSITION(gram, computation.readable)
        left = centred @ right
        if method.forward.smooth:
            norms = torch.linalg.vector_norm(left, dim=-2)
            eigenvalues = (norms * norms).div_(positions)
        else:
            eigenvalues = clip_to_rank(eigenvalues, channels)
        inverse = eigenvalues.rsqrt().masked_fill_(eigenvalues == 0, 0)
        left = left.mul_((inverse * positions**-0.5)[..., None, :]).to(working)
        right = right.to(working)
        images = left
    else:
        covariance = _covariance(centred)
        eigenvalues, left = EIGENDECOMPOSITION(covariance, computation.readable)
        right = left[..., :0]
        if method.forward.smooth:
            images = covariance @ left
            eigenvalues = real_part(left.conj() * images).sum(-2)
        else:
            eigenvalues = clip_to_rank(eigenvalues, channels)
            images = left.to(working)
    # The first is what the null space gets, which only the smooth methods do not leave at zero.
    with_zero = torch.nn.functional.pad(eigenvalues, (1, 0))
    values = method.forward.values(computation.function, with_zero, channels)
    unit, real = None, images.real.dtype
    if real != values.dtype:
        # It may hold every entry of the result, and yet not the root of an eigenvalue.
        large = values.amax(-1, keepdim=True) > torch.finfo(working).max / channels
        unit = torch.where(large, 2.0 ** int(channels).bit_length(), 1)
        values = (values / unit).to(real)
    null, weights = values[..., :1], values[..., 1:] - values[..., :1]
    linear = None
    if covariance is not None and method.forward.smooth:
        total = eigenvalues.sum(-1, keepdim=True)
        slope = weights.sum(-1, keepdim=True) / torch.where(total == 0, 1, total)
        # An eigenvalue below the last digit of the largest lets f(λ) round to f(0): the quotient is
        # then 0 in place of f′(0). Its vector's image is a rounding error, so this costs nothing.
        weights = weights / torch.where(eigenvalues == 0, 1, eigenvalues) - slope
        linear = slope[..., None] * covariance
    result = (images * weights[..., None, :]) @ left.to(working).mH
    if linear is not None:
        result = symmetric_part(result).add_(linear)
    if method.forward.smooth:
        # On the diagonal alone: a multiple of the identity would be two more passes over C × C.
        result.diagonal(dim1=-2, dim2=-1).add_(null)
    if unit is not None:
        result.mul_(unit[..., None].to(real))
    return result, left, right, eigenvalues


class _Slope(NamedTuple):
    """What the derivative is made of, see `tangent`.

    basis: (*, C, m), U.
    weights: (*, m, m), L diag(scales), less ℓ diag(scales) where there is a null space.
    null: (*, 1, m), ℓ diag(scales), or None where U is square.
    trace: (*, m), the trace term t of the Loewner matrix, less t₀ where there is a null space, or
        None.
    null_trace: (*, 1), t₀, that of the null space, or None.
    scales: (*, m), S/√N where N − 1 < C, else S, or 1 for a smooth method.
    rows: matrices whose product is diag(scales)⁻¹ S Vᵀ/√N, (*, m, N).
    """

    basis: Tensor
    weights: Tensor
    null: Tensor | None
    trace: Tensor | None
    null_trace: Tensor | None
    scales: Tensor
    rows: tuple[Tensor, ...]


def _slope(
    features: Tensor, left: Tensor, right: Tensor, eigenvalues: Tensor, computation: Computation
) -> _Slope:
    method, basis = computation.method, left.to(computation.working_dtype)
    real = basis.real.dtype
    channels, positions = features.shape[-2:]
    on_gram = works_on_gram(features)
    if on_gram:
        scales = (eigenvalues / positions).sqrt()
        pairs = torch.nn.functional.pad(eigenvalues, (1, 0))
        rows = (right.mH,)
    else:
        pairs = eigenvalues
        if method.forward.smooth:
            scales = factors = torch.ones_like(eigenvalues)
        else:
            scales = eigenvalues.sqrt()
            factors = eigenvalues.rsqrt().masked_fill_(eigenvalues == 0, 0)
        onto = left.mH * (factors / positions)[..., None]
        rows = onto, centre(features, left.dtype)
        if not method.forward.smooth:
            # The centred features are let go before the product is converted: the peak of memory.
            rows = ((rows[0] @ rows[1]).to(basis.dtype),)
    loewner, trace = method.gradient.loewner(computation.function, pairs, channels)
    null = null_trace = None
    if on_gram:
        null = (loewner[..., :1, 1:] * scales[..., None, :]).to(real)
        loewner = loewner[..., 1:, 1:]
        if trace is not None:
            null_trace, trace = trace[..., :1], trace[..., 1:] - trace[..., :1]
    weights = loewner.mul_(scales[..., None, :]).to(real)
    if null is not None:
        weights.sub_(null)
    return _Slope(basis, weights, null, trace, null_trace, scales, rows)


def adjoint(
    features: Tensor,
    gradient: Tensor,
    left: Tensor,
    right: Tensor,
    eigenvalues: Tensor,
    computation: Computation,
) -> tuple[Tensor]:
    """The gradient of X, given G = ∂ℓ/∂f(cov X) and what `value` gave."""
    slope = _slope(features, left, right, eigenvalues, computation)
    gradient = gradient.to(computation.working_dtype)
    # The symmetric part, in place: fresh memory for it takes longer than the sum.
    half = gradient.mul(0.5).add_(gradient.mH, alpha=0.5)
    product = half @ slope.basis
    of_null = None
    if slope.null_trace is not None:
        diagonal = real_part(half.diagonal(dim1=-2, dim2=-1))
        of_null = slope.null_trace * diagonal.sum(-1, keepdim=True)
    del half
    projected = slope.basis.mH @ product
    isotropic = None
    if slope.trace is not None:
        diagonal = projected.diagonal(dim1=-2, dim2=-1)
        isotropic = (slope.trace * diagonal).sum(-1, keepdim=True)
        isotropic = (isotropic if of_null is None else isotropic + of_null) * slope.scales
    inner = projected.mul_(slope.weights)
    if isotropic is not None:
        inner.diagonal(dim1=-2, dim2=-1).add_(isotropic)
    result = slope.basis @ inner
    if slope.null is not None:
        result.add_(product.mul_(slope.null))
    # No mean needs to be subtracted for the centring: V is orthogonal to the ones vector.
    for factor in slope.rows:
        result = result @ factor
    return (result.mul_(2).to(features.dtype),)


def tangent(
    features: Tensor,
    direction: Tensor,
    left: Tensor,
    right: Tensor,
    eigenvalues: Tensor,
    computation: Computation,
) -> tuple[Tensor]:
    """The derivative of f(cov X) along H: the transpose of `adjoint` as a map of G.

    Where N − 1 < C, with K = H V/√N and ∘ rowwise for vectors, it is M + Mᵀ,

        M = (U ((L S − ℓS) ∘ UᵀK) + K ∘ ℓS) Uᵀ + (U diag(t − t₀) Uᵀ + t₀ I) Σᵢ sᵢ (UᵀK)ᵢᵢ,

    t being the trace term of the Loewner matrix and t₀ that of zero; elsewhere ℓ and t₀ drop out.
    """
    slope = _slope(features, left, right, eigenvalues, computation)
    moved = direction.to(computation.working_dtype)
    for factor in reversed(slope.rows):
        moved = moved @ factor.mH
    projected = slope.basis.mH @ moved
    half = slope.basis @ (slope.weights * projected)
    if slope.null is not None:
        half = half + moved * slope.null
    change = None
    if slope.trace is not None:
        diagonal = projected.diagonal(dim1=-2, dim2=-1)
        change = (diagonal * slope.scales).sum(-1, keepdim=True)
        half = half + slope.basis * (slope.trace * change).to(half.dtype)[..., None, :]
    half = half @ slope.basis.mH
    result = half + half.mH
    if change is not None and slope.null_trace is not None:
        spread = 2 * real_part(slope.null_trace * change).to(result.dtype)
        result.diagonal(dim1=-2, dim2=-1).add_(spread)
    return (result,)
