"""The rotation that takes one set of points to another: orthogonal Procrustes, Kabsch, Umeyama."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.autograd.product import multiplication
from covpool.linalg.autograd.singular import lift_singular
from covpool.linalg.functions.odd import ISOMETRY
from covpool.linalg.precision import full_precision, range_unit
from covpool.linalg.rectangular import decompose, matrices, working
from covpool.linalg.spectrum import inner_product, name_samples, rank_tolerance, real_part
from covpool.linalg.transforms import unreadable


class ProcrustesResult(NamedTuple):
    """What scipy.linalg.orthogonal_procrustes returns."""

    R: Tensor
    scale: Tensor


class KabschResult(NamedTuple):
    """q ≈ scale · R p + t, and how far the rotation is from not being unique."""

    rotation: Tensor
    translation: Tensor
    scale: Tensor
    gap: Tensor


def orthogonal_procrustes(
    A: Tensor, B: Tensor, *, compute_dtype: torch.dtype | None = None, check: bool = True
) -> ProcrustesResult:
    """The orthogonal (unitary) matrix R that brings A R nearest to B in the Frobenius norm.

    R = U Vᴴ of AᴴB = U S Vᴴ. A reflection is allowed; `kabsch` finds a rotation.

    Args:
        A, B: (*, m, n) each, real or complex, in one dtype as for `svd_function`; batch dimensions
            broadcast. For weights, multiply the rows of both by their square roots.
        compute_dtype, check: as for `svd_function`.

    Returns:
        A named tuple of `R` (*, n, n) and `scale` (*), the sum of the singular values of AᴴB, as
        `scipy.linalg.orthogonal_procrustes` returns them: with ‖A‖² it makes A R · scale / ‖A‖² the
        best multiple.

    Ties need no care: the derivative of R has 1/(σi + σj) alone.

    Rank deficiency: R is orthogonal in any case. Where AᴴB is singular to rounding, it is one of
    several that are equally near. Of a real matrix whose smallest σ alone is zero they are two,
    with either sign of the determinant, and the derivative is that of the one that is returned.
    Pairs of vectors whose σi and σj are both zero get 0. Second derivatives are right, a third one
    is refused.

    Raises:
        ValueError: shapes or dtypes that do not match; else as `svd_function`.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika
    31, 1966.

    >>> import torch, covpool
    >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> points = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> found = covpool.orthogonal_procrustes(points, points @ turn)
    >>> torch.allclose(found.R, turn, atol=1e-6)
    True
    """
    A, B = _pair("orthogonal_procrustes", A, B, compute_dtype, check)
    left, right = working(A, compute_dtype), working(B, compute_dtype)
    with full_precision(left):
        left, unit = _in_range(left)
        right, other = _in_range(right)
        # Multiplied, lest the gradient is a conjugate view, of which vmap takes no imaginary part.
        matrix = multiplication(left)((1 * left).mH, right)
        if matrix.numel() == 0:
            isometry = matrix.clone()
        else:
            found, u, s, vh = decompose(matrix)
            isometry = lift_singular(found, None, u, s, vh, ISOMETRY)
        scale = inner_product(isometry, matrix) * unit * other
    return ProcrustesResult(isometry.to(A.dtype), scale.to(real_part(A).dtype))


def kabsch(
    P: Tensor,
    Q: Tensor,
    weights: Tensor | None = None,
    *,
    scale: bool = False,
    compute_dtype: torch.dtype | None = None,
    check: bool = True,
) -> KabschResult:
    """The rigid motion that takes points P nearest to points Q: the least Σ wₖ ‖s R pₖ + t − qₖ‖².

    R is a rotation, det R = 1. With the centred points, Σ wₖ qₖ pₖᵀ = U S Vᵀ and d = det(U Vᵀ) it
    is U diag(1, …, 1, d) Vᵀ.

    Args:
        P, Q: (*, N, n) each, N points in n dimensions in rows, real, in one dtype; batch dimensions
            broadcast. One point with another of the same place in its set.
        weights: (*, N), not negative, not all zero; None: equal ones. They may need a gradient.
            Points of weight 0 (padding) may be anywhere. With `check` they too must be finite.
        scale: whether a scale is looked for too (Umeyama); otherwise it is 1.
        compute_dtype: as for `svd_function`.
        check: whether to refuse points and weights that are not finite or negative, and to warn of
            rotations that are not unique.

    Returns:
        A named tuple in the input's dtype of `rotation` (*, n, n), `translation` (*, n), `scale`
        (*) and `gap` (*). The rotation is for columns, R p; of points in rows it is ``P @ R.mT``.
        It is what ``scipy.spatial.transform.Rotation.align_vectors(Q, P)`` finds of centred points
        in space. The gap is (σₙ₋₁ + d σₙ)/σ₁, from 0 to 2 (2 in one dimension), without a gradient:
        where it is 0 the rotation is not unique, and near 0 its gradient is as large as 1/gap.

    Moved points are ``scale[..., None, None] * P @ rotation.mT + translation[..., None, :]``.

    Ties need no care, where `gap` is not 0: the derivative has 1/(σi + σj), with d σₙ for σₙ,
    alone. So it is finite for points in a plane, which leave σ₃ = 0.

    Not unique: points on a line in space (P or Q), the same point N times, mirror images with
    σₙ₋₁ = σₙ. There `gap` is 0 (to what rounding of the coordinates leaves of it: set to 0 in
    float64, about 1e-7 of float32 points), one of the nearest rotations is returned (the identity
    for a point N times), and pairs without a derivative get 0 in the gradient, which is finite. A
    UserWarning names the samples. Of a point N times the scale is 1.

    Second derivatives are right, a third one is refused.

    Raises:
        TypeError: not tensors.
        ValueError: shapes or dtypes that do not match, complex points, no points, weights that are
            negative or all zero; else as `svd_function`.

    Source: Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta
    Crystallographica A32, 1976; Umeyama, "Least-squares estimation of transformation parameters
    between two point patterns", IEEE TPAMI 13, 1991.

    >>> import torch, covpool
    >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> moved = points @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 5
    >>> covpool.kabsch(points, moved).translation.round(decimals=4)
    tensor([5., 5.])
    """
    P, Q = _pair("kabsch", P, Q, compute_dtype, check)
    checks.floating("kabsch", P)
    if 0 in P.shape[-2:]:
        raise ValueError(f"kabsch needs points (*, N, n), got none in shape {tuple(P.shape)}")
    p, q = working(P, compute_dtype), working(Q, compute_dtype)
    if weights is None:
        share = p.new_full(P.shape[:-1], 1 / P.shape[-2])
    else:
        share = _shares(weights, P, check).to(p.dtype)
    share = share.unsqueeze(-1)
    with full_precision(p):
        product = multiplication(p)
        middle_p, centred_p, unit_p, rounding_p = _centred(p, share)
        middle_q, centred_q, unit_q, rounding_q = _centred(q, share)
        matrix = product((share * centred_q).mT, centred_p)
        found, u, s, vh = decompose(matrix)
        sign = torch.where(_determinant(product(u, vh)) < 0, -1.0, 1.0).to(s.dtype)
        last = torch.cat([torch.ones_like(s[..., 1:]), sign.unsqueeze(-1)], -1)
        # Of points that are far away rounding of their coordinates is larger than that of the sums.
        noise = rank_tolerance(s.shape[-1], s.dtype) * s[..., :1] + (
            s[..., :1] * (rounding_p + rounding_q)[..., None]
        )
        s = s.masked_fill(s <= noise, 0) * last
        rotation = lift_singular(found, None, u, s, last.unsqueeze(-1) * vh, ISOMETRY)
        gap = _gap(s)
        if scale:
            spread = (share * centred_p.square()).sum((-2, -1))
            same = spread == 0
            factor = inner_product(rotation, matrix) / spread.masked_fill(same, 1)
            factor = torch.where(same, 1, factor * (unit_q / unit_p))
        else:
            factor = torch.ones_like(gap)
        turned = product(rotation, middle_p.mT)[..., 0]
        translation = middle_q[..., 0, :] - factor.unsqueeze(-1) * turned
    if check and not unreadable(gap):
        _warn(gap, *P.shape[-2:])
    result = KabschResult(rotation, translation, factor, gap)
    return KabschResult(*(each.to(P.dtype) for each in result))


def _pair(
    caller: str, A: Tensor, B: Tensor, compute_dtype: torch.dtype | None, check: bool
) -> tuple[Tensor, Tensor]:
    for each in (A, B):
        matrices(caller, each, compute_dtype, check)
    if A.shape[-2:] != B.shape[-2:] or A.dtype != B.dtype:
        raise ValueError(
            f"{caller} needs two matrices of one size and dtype, got {tuple(A.shape)} in {A.dtype} "
            f"and {tuple(B.shape)} in {B.dtype}"
        )
    try:
        batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{caller}: batch dimensions of {tuple(A.shape)} and {tuple(B.shape)} do not broadcast"
        ) from None
    return A.expand(*batch, *A.shape[-2:]), B.expand(*batch, *B.shape[-2:])


def _shares(weights: Tensor, points: Tensor, check: bool) -> Tensor:
    """The weights over their sum."""
    checks.floating("kabsch: weights", weights)
    try:
        weights = weights.expand(points.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"kabsch: weights of shape {tuple(weights.shape)} do not broadcast to the points' "
            f"{tuple(points.shape[:-1])}; give one number for each point"
        ) from None
    weights = weights.to(torch.promote_types(weights.dtype, torch.float64))
    if check and not unreadable(weights):
        bad = ~(weights.isfinite() & (weights >= 0)).all(-1) | ~(weights.sum(-1) > 0)
        if bad.any():
            raise ValueError(
                f"kabsch: weights must be finite, not negative and not all zero{name_samples(bad)}"
            )
    # Divided first, lest the sum overflows. The shares do not depend on the divisor.
    largest = weights.detach().abs().amax(-1, keepdim=True)
    weights = weights / largest
    return weights / weights.sum(-1, keepdim=True)


def _in_range(matrix: Tensor, looked_at: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
    """The matrices over powers of four with which their products stay in range, and those (*).

    Args:
        looked_at: what the powers are chosen by, if it is not the matrices themselves.
    """
    if matrix.numel() == 0:
        return matrix, 1.0
    seen = matrix if looked_at is None else looked_at
    unit = range_unit(seen, matrix.dtype, 4, readable=not unreadable(matrix))
    return (matrix, 1.0) if unit is None else (matrix / unit, unit[..., 0, 0])


def _centred(points: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor | float, Tensor]:
    """The weighted mean (*, 1, n); what they are beside it, over a unit; that; the rounding (*).

    The last is relative to the root mean square. Of points that are all the same to rounding, what
    they are beside the mean is zero. Points of weight 0 have no part in any of these. They stay in
    the products, as the weights' gradients need them, unless these would overflow.
    """
    absent = share == 0
    middle = (share * points.masked_fill(absent & ~points.isfinite(), 0)).sum(-2, keepdim=True)
    beside = points - middle
    beside, unit = _in_range(beside, beside.detach().masked_fill(absent, 0))
    far = ~(beside.detach().abs() <= torch.finfo(points.dtype).max ** 0.25)  # NaN too
    beside = beside.masked_fill(absent & far, 0)
    with torch.no_grad():
        largest = points.masked_fill(absent, 0).abs().amax((-2, -1)) / unit
        spread = (share * beside.square()).sum((-2, -1)).sqrt()
        eps = torch.finfo(points.dtype).eps
        same = spread <= points.shape[-2] * eps * largest
        rounding = eps * largest / spread.masked_fill(same, 1)
    beside = torch.where(same[..., None, None], 0, beside)
    return middle, beside, unit, rounding.masked_fill(same, 0)


def _determinant(matrix: Tensor) -> Tensor:
    if matrix.shape[-1] != 3:
        return torch.linalg.det(matrix)
    first, second, third = matrix.unbind(-2)
    return (torch.linalg.cross(first, second) * third).sum(-1)


def _gap(s: Tensor) -> Tensor:
    """(σₙ₋₁ + σₙ)/σ₁ of signed σ (*, n); in one dimension there is one rotation alone."""
    if s.shape[-1] == 1:
        return torch.full_like(s[..., 0], 2)
    largest = s[..., 0]
    zero = largest == 0
    gap = (s[..., -2] + s[..., -1]) / largest.masked_fill(zero, 1)
    tolerance = rank_tolerance(s.shape[-1], s.dtype)
    return gap.masked_fill(zero | (gap <= tolerance), 0)


def _warn(gap: Tensor, count: int, size: int) -> None:
    unique = gap != 0
    if not unique.all():
        few = f" ({count} points in {size} dimensions: points are rows)" if count < size else ""
        warnings.warn(
            f"kabsch: the rotation is not unique{name_samples(~unique)}{few}: the points are on a "
            "line, all the same, or a mirror image; one of the nearest is returned, without the "
            "part of the gradient that is not defined; see `gap` of the result",
            UserWarning,
            stacklevel=3,
        )
