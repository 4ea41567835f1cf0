"""Distances and divergences of covariances and density matrices, differentiable where they are 0.

`import covpool.distances` needs PyTorch alone. `DISTANCES` lists the metrics, each with its square:
`DISTANCES["stein"]` and `stein` are the same function. Matrices are (*, n, n), symmetric or complex
Hermitian, of any floating-point dtype and computed in float64; the batches of two broadcast.
Results are real, in the dtype of the input.

Values. Where two matrices are close, the textbook formulas subtract numbers of order one. Here
their difference A − B enters, which subtracts exactly, so a square has a relative error of about
κ(A) · 1e-15 however small it is: 1e-16 between matrices that are 1e-8 apart is right to its digits.

Derivatives. Squares, divergences and entropies are smooth at A = B, ties included: gradients and
second derivatives are right there, reverse and forward mode, to rounding errors in proportion to
the matrices. A distance that is not squared has a kink at 0, where its derivative counts as 0. For
ill-conditioned matrices that are far apart the gradient of `affine_invariant` has fewer digits than
its value: with κ = 1e4, 1e6 and 1e8 of both (4 × 4, random bases) it was off by up to 8e-12, 2e-8
and 6e-6 with respect to the first, and by 1e-9, 7e-6 and 0.2 with respect to the second.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from covpool.linalg import checks
from covpool.linalg.engine.singular import SINGULAR_VALUE_DECOMPOSITION
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.evaluate import evaluate
from covpool.linalg.functions import ENTROPY, LOG, SQRT, ScalarFunction
from covpool.linalg.functions.odd import POLAR
from covpool.linalg.precision import full_precision, range_unit
from covpool.linalg.rectangular import decompose, lifted
from covpool.linalg.spectrum import (
    inner_product,
    name_samples,
    of_kind,
    rank_tolerance,
    real_dtype,
    real_part,
    symmetric_part,
)
from covpool.linalg.tables import table
from covpool.linalg.transforms import unreadable
from covpool.pooling import cov_pool

__all__ = [
    "DISTANCES",
    "Distance",
    "affine_invariant",
    "bures_wasserstein",
    "fidelity",
    "frechet",
    "frechet_from_samples",
    "log_euclidean",
    "relative_entropy",
    "stein",
    "von_neumann_entropy",
]

NEAR = 1 / 2
"""How far A⁻¹B may be from the identity, to be taken as close: the formulas for close matrices lose
the digits of the condition number, the others those of the distance."""

Domain = Literal["λ ≥ 0", "λ > 0"]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A metric d of positive (semi-)definite matrices; called with two, it computes d or d².

    Attributes:
        name: its key in `DISTANCES`.
        formula: d², in words of the docs.
        domain: the eigenvalues for which it is finite; others are refused.
        square: (A, B) → d² of Hermitian float64 matrices of one shape.
        grows: whether d² of cA and cB is c times that of A and B; else it is the same.
        reference: the source.
    """

    name: str
    formula: str
    domain: Domain
    square: Callable[[Tensor, Tensor], Tensor]
    grows: bool = False
    reference: str

    def __call__(
        self, first: Tensor, second: Tensor, *, squared: bool = False, check: bool = True
    ) -> Tensor:
        """d(A, B), or its square, which is smooth at A = B.

        Args:
            first, second: (*, n, n), A and B; see the module.
            squared: whether the square is returned.
            check: whether to refuse matrices that are not finite, symmetric and of the domain, by
                index. Off, and inside torch.compile and torch.func transforms, singular matrices
                give NaN, infinities or the value on their range.

        Returns:
            (*), real.

        Raises:
            TypeError: not a tensor.
            ValueError: not square, of different size, and, with `check`, what it refuses.
        """
        a, b, dtype = _pair(self.name, first, second, (self.domain, self.domain), check)
        with full_precision(a):
            a, b, unit = _in_range(a, b, dtype, shrink=self.grows)
            value = self.square(a, b)
            if check and not unreadable(value) and not value.detach().isfinite().all():
                raise ValueError(
                    f"{self.name}: no finite value{name_samples(~value.isfinite())}; the "
                    "eigenvalues of A⁻¹B range further than float64 resolves: add a multiple of "
                    "the identity to both"
                )
            return _grown(value, unit**0.5 if self.grows else 1.0, squared).to(dtype)


def _pair(
    name: str, first: Tensor, second: Tensor, domains: tuple[Domain, Domain], check: bool
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both in float64 with one batch shape, and the real dtype of the result."""
    for which, matrix in (("first", first), ("second", second)):
        _check_shape(f"{name}: {which} matrix", matrix)
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"{name} needs matrices of one size, got shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    dtype = torch.promote_types(first.dtype, second.dtype)
    a = _single(f"{name}: first matrix", first, domains[0], check)
    b = _single(f"{name}: second matrix", second, domains[1], check)
    shape = _batch(name, first.shape[:-2], second.shape[:-2]) + first.shape[-2:]
    wide = torch.promote_types(a.dtype, b.dtype)
    return a.to(wide).expand(shape), b.to(wide).expand(shape), real_dtype(dtype)


def _largest(matrix: Tensor) -> Tensor:
    return matrix.detach().abs().amax((-2, -1), keepdim=True)


def _in_range(
    a: Tensor, b: Tensor, given: torch.dtype, *, shrink: bool
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Both over one unit, and that (*), a power of four, or 1.

    Args:
        shrink: whether the unit may exceed 1: the smaller of the two may then vanish beside the
            larger one, which a distance that depends on their ratio does not allow.
    """
    unit = _common_unit(given, _largest(a), _largest(b))
    if unit is None:
        return a, b, 1.0
    unit = unit if shrink else unit.clamp_max(1)
    return a / unit, b / unit, unit[..., 0, 0]


def _common_unit(given: torch.dtype, *largest: Tensor, power: int = 3) -> Tensor | None:
    """`range_unit` of what has these magnitudes (*, 1, 1), which the dtype `given` can hold."""
    most = reduce(torch.maximum, largest).to(given)
    return range_unit(most, torch.float64, power, readable=not unreadable(most))


def _grown(square: Tensor, unit: Tensor | float, squared: bool) -> Tensor:
    """d² or d of d² over the square of a unit: of d the root comes first, whose range is wider."""
    return square * unit * unit if squared else _root(square) * unit


def _batch(name: str, *shapes: torch.Size) -> torch.Size:
    """The shape to which these broadcast; where they do not, the first that does not is refused."""
    found = torch.Size()
    for shape in shapes:
        try:
            found = torch.broadcast_shapes(found, shape)
        except RuntimeError:
            raise ValueError(
                f"{name}: batch shapes {tuple(found)} and {tuple(shape)} do not broadcast"
            ) from None
    return found


def _check_shape(name: str, matrix: Tensor) -> None:
    checks.square(name, matrix, complex_too=True)
    if matrix.shape[-1] == 0:
        raise ValueError(f"{name} needs a size of 1 or more, got shape {tuple(matrix.shape)}")


def _single(name: str, matrix: Tensor, domain: Domain, check: bool) -> Tensor:
    """The Hermitian part in float64; matrices that are not of the domain are refused."""
    values = matrix.detach()
    if check and matrix.numel() and not unreadable(values):
        checks.entries(name, values, checks.exactly_symmetric(values))
        wide = symmetric_part(values.to(of_kind(torch.float64, values.dtype)))
        checks.positive_semidefinite_matrix(name, wide, values.dtype, None)
        if domain == "λ > 0":
            _refuse_singular(name, wide)
    return symmetric_part(matrix.to(of_kind(torch.float64, matrix.dtype)))


def _refuse_singular(name: str, matrix: Tensor) -> None:
    largest = matrix.abs().amax((-2, -1), keepdim=True)
    normalised = matrix / torch.where(largest > 0, largest, 1)
    least = rank_tolerance(matrix.shape[-1], matrix.dtype)
    bad = torch.linalg.cholesky_ex(normalised - least * _identity(matrix)).info != 0
    if bad.any():
        raise ValueError(
            f"{name} singular{name_samples(bad)}, where the distance is infinite; add a multiple "
            "of the identity, or take bures_wasserstein, which is finite there"
        )


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _trace(matrix: Tensor) -> Tensor:
    return real_part(matrix.diagonal(dim1=-2, dim2=-1)).sum(-1)


def _squares(values: Tensor) -> Tensor:
    """|x|² of each."""
    return real_part(values * values.conj())


def _norm_squared(matrix: Tensor) -> Tensor:
    return _squares(matrix).sum((-2, -1))


def _root(square: Tensor) -> Tensor:
    """√x with derivative 0 at 0, and 0 for what rounding has made negative."""
    positive = square > 0
    root = torch.where(positive, square, 1).sqrt()
    # This way round so that NaN stays NaN.
    return torch.where(positive | square.isnan(), root * torch.where(positive, 1, square), 0)


def _lifted(function: ScalarFunction, matrix: Tensor) -> Tensor:
    (found,) = evaluate(
        *("distances", (function,), matrix, (None,), "exact", None),
        check=False,
        return_info=False,
    )
    return found


class _Alignment(NamedTuple):
    """Of F and G (*, n, k): the sum of the singular values of FᴴG = W diag(h) Yᴴ, differentiable,

    ‖F − G U‖² with the unitary U that makes it least, W and h (*, k).
    """

    nuclear_norm: Tensor
    apart: Tensor
    w: Tensor
    h: Tensor


def _align(first: Tensor, second: Tensor) -> _Alignment:
    product = first.mH @ second
    triplets = decompose(product)
    # The derivative is the polar factor, ties or not, and that of the factor adds up to zero.
    nuclear_norm = inner_product(lifted(POLAR, None, triplets), product)
    unitary = (triplets.u @ triplets.vh).mH
    apart = _norm_squared(first.detach() - second.detach() @ unitary)
    return _Alignment(nuclear_norm, apart, triplets.u, triplets.s)


def _valued(smooth: Tensor, accurate: Tensor) -> Tensor:
    """The accurate value, detached, with the derivatives of the other."""
    return accurate.detach() + (smooth - smooth.detach())


def _bures_wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """tr A + tr B − 2 ‖√A √B‖_*, and as squares: ‖√A − √B U‖² with the best unitary U.

    With √A √B = W diag(h) Yᴴ, A = V diag(a) Vᴴ and Δ = B − A, that is for close matrices

        Σᵢⱼ |(Vᴴ Δ √A W)ᵢⱼ|² / (aᵢ + hⱼ)²,

    as D = √B U − √A solves √A Dᴴ + D (√B U)ᴴ = Δ.
    """
    p, q = _lifted(SQRT, a), _lifted(SQRT, b)
    found = _align(p, q)
    smooth = _trace(a) + _trace(b) - 2 * found.nuclear_norm
    with torch.no_grad():
        values, vectors = EIGENDECOMPOSITION(a)
        delta = b.detach() - a.detach()
        sums = values[..., :, None].clamp_min(0) + found.h[..., None, :]
        parts = (vectors.mH @ delta @ p.detach() @ found.w) / torch.where(sums > 0, sums, 1)
        near = torch.linalg.matrix_norm(delta) <= NEAR * values[..., 0]
        accurate = torch.where(near, _norm_squared(parts), found.apart)
    return _valued(smooth, accurate)


class _Mixed(NamedTuple):
    """A = V diag(a) Vᴴ and B = W diag(b) Wᴴ: a (*, n, 1), b (*, 1, n), V, W and Vᴴ (A − B) W.

    As (Vᴴ (f(A) − f(B)) W)ᵢⱼ = f[aᵢ, bⱼ] (Vᴴ (A − B) W)ᵢⱼ, a difference of functions comes from
    that of the matrices, however small.
    """

    a: Tensor
    b: Tensor
    left: Tensor
    right: Tensor
    difference: Tensor


def _mixed(first: Tensor, second: Tensor, function: ScalarFunction) -> _Mixed:
    a, v = EIGENDECOMPOSITION(first)
    b, w = EIGENDECOMPOSITION(second)
    a, b = (function.clip(x, x.shape[-1]) for x in (a, b))
    return _Mixed(a[..., :, None], b[..., None, :], v, w, v.mH @ (first - second) @ w)


def _log_euclidean(a: Tensor, b: Tensor) -> Tensor:
    difference = _lifted(LOG, a) - _lifted(LOG, b)
    with torch.no_grad():
        mixed = _mixed(a.detach(), b.detach(), LOG)
        larger, smaller = torch.maximum(mixed.a, mixed.b), torch.minimum(mixed.a, mixed.b)
        zero = larger == 0
        slopes = LOG.divided_difference(torch.where(zero, 1, larger), smaller)
        accurate = mixed.left @ (slopes * mixed.difference) @ mixed.right.mH
    return _norm_squared(_valued(difference, accurate))


class _Ratio(NamedTuple):
    """L⁻¹ B L⁻ᴴ, L⁻¹ (B − A) L⁻ᴴ and, as constants, singular values s of L⁻¹ M with left vectors u.

    A = L Lᴴ and B = M Mᴴ. The squares of s are the eigenvalues of the first, but they lose the
    digits of √(κ(A) κ(B)) alone, where the eigenvalues would lose those of κ(A) κ(B).
    """

    whitened: Tensor
    change: Tensor
    s: Tensor
    u: Tensor


def _ratio(a: Tensor, b: Tensor) -> _Ratio:
    factor = torch.linalg.cholesky_ex(a)[0]

    def congruence(matrix: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(factor, matrix, upper=False)
        return symmetric_part(torch.linalg.solve_triangular(factor, half.mH, upper=False))

    with torch.no_grad():
        other = torch.linalg.cholesky_ex(b.detach())[0]
        ratio = torch.linalg.solve_triangular(factor.detach(), other, upper=False)
        u, s, _ = SINGULAR_VALUE_DECOMPOSITION(ratio)
    return _Ratio(congruence(b), congruence(b - a), s, u)


def _affine_invariant(a: Tensor, b: Tensor) -> Tensor:
    """‖log(L⁻¹ B L⁻ᴴ)‖²; of close matrices log1p of the eigenvalues of L⁻¹ (B − A) L⁻ᴴ."""
    whitened, change, s, u = _ratio(a, b)
    logarithm = _lifted(LOG, whitened)
    with torch.no_grad():
        spectrum = EIGENDECOMPOSITION(whitened)[0]
        lost = (LOG.clip(spectrum, spectrum.shape[-1]) == 0).any(-1)[..., None, None]
        values, vectors = EIGENDECOMPOSITION(change)
        near = _within(values)[..., None]
        logarithms = torch.where(near, torch.log1p(values.clamp_min(-NEAR)), 2 * s.log())
        vectors = torch.where(near[..., None], vectors, u)
        accurate = (vectors * logarithms[..., None, :]) @ vectors.mH
        accurate = torch.where(lost, torch.nan, accurate)
    return _norm_squared(_valued(logarithm, accurate))


def _within(values: Tensor) -> Tensor:
    return (values.abs() < NEAR).all(-1)


def _log_determinant(matrix: Tensor) -> Tensor:
    factor = torch.linalg.cholesky_ex(matrix)[0]
    return 2 * real_part(factor.diagonal(dim1=-2, dim2=-1)).log().sum(-1)


def _stein(a: Tensor, b: Tensor) -> Tensor:
    """log det (A + B)/2 − ½ log det A B, which is ½ Σ log(1 + (s − 1/s)²/4) of the s of `_ratio`.

    Of close matrices (s − 1/s)² is μ²/(1 + μ), with μ the eigenvalues of L⁻¹ (B − A) L⁻ᴴ.
    """
    mean = _log_determinant(a / 2 + b / 2)
    smooth = mean - (_log_determinant(a) + _log_determinant(b)) / 2
    with torch.no_grad():
        found = _ratio(a.detach(), b.detach())
        values = EIGENDECOMPOSITION(found.change)[0]
        near = _within(values)[..., None]
        values = values.clamp_min(-NEAR)
        apart = torch.where(near, values.square() / (1 + values), (found.s - 1 / found.s).square())
        accurate = torch.log1p(apart / 4).sum(-1) / 2
    return _valued(smooth, accurate)


bures_wasserstein = Distance(
    name="bures-wasserstein",
    formula="tr A + tr B − 2 tr (A^(1/2) B A^(1/2))^(1/2)",
    domain="λ ≥ 0",
    square=_bures_wasserstein,
    grows=True,
    reference="Bhatia, Jain, Lim: On the Bures-Wasserstein distance between positive definite "
    "matrices, Expositiones Mathematicae 37, 2019",
)

log_euclidean = Distance(
    name="log-euclidean",
    formula="‖log A − log B‖²",
    domain="λ > 0",
    square=_log_euclidean,
    reference="Arsigny, Fillard, Pennec, Ayache: Log-Euclidean metrics for fast and simple "
    "calculus on diffusion tensors, Magnetic Resonance in Medicine 56, 2006",
)

affine_invariant = Distance(
    name="affine-invariant",
    formula="‖log(A^(−1/2) B A^(−1/2))‖²",
    domain="λ > 0",
    square=_affine_invariant,
    reference="Pennec, Fillard, Ayache: A Riemannian framework for tensor computing, "
    "International Journal of Computer Vision 66, 2006",
)

stein = Distance(
    name="stein",
    formula="log det (A + B)/2 − ½ log det A B",
    domain="λ > 0",
    square=_stein,
    reference="Sra: Positive definite matrices and the S-divergence, Proceedings of the AMS 144, "
    "2016",
)

DISTANCES: Mapping[str, Distance] = table(
    {row.name: row for row in (bures_wasserstein, log_euclidean, affine_invariant, stein)},
    kind="distance",
)


def von_neumann_entropy(matrix: Tensor, *, check: bool = True) -> Tensor:
    """−tr A log A of positive semi-definite matrices, with 0 log 0 = 0: (*, n, n) → (*).

    That is the von Neumann entropy where the trace is one; others are not normalised. Ties need no
    care. At deficient rank the derivative is that along changes that keep the rank.

    Args:
        matrix: (*, n, n), positive semi-definite; see the module.
        check: as for `Distance`.

    Returns:
        (*), real.

    Raises:
        TypeError: not a tensor.
        ValueError: not square and, with `check`, not finite, symmetric or positive semi-definite.

    Source: von Neumann, "Thermodynamik quantenmechanischer Gesamtheiten", Nachrichten von der
    Gesellschaft der Wissenschaften zu Göttingen, 1927.

    >>> import torch
    >>> von_neumann_entropy(torch.eye(2) / 2)  # log 2
    tensor(0.6931)
    """
    name = "von_neumann_entropy"
    _check_shape(name, matrix)
    with full_precision(matrix):
        found = _trace(_lifted(ENTROPY, _single(name, matrix, "λ ≥ 0", check)))
        return found.to(real_dtype(matrix.dtype))


def relative_entropy(first: Tensor, second: Tensor, *, check: bool = True) -> Tensor:
    """Quantum relative entropy D(A‖B) = tr A (log A − log B) − tr A + tr B: not symmetric, ≥ 0.

    The last two terms cancel for density matrices, whose trace is one; with them it is positive and
    smooth at A = B for other matrices too, and known as the von Neumann divergence.

    Rank deficiency: 0 log 0 = 0, so A may be singular. Where A has a part outside the range of B
    (more than n · finfo(float64).eps of its trace), D is inf, and the gradient that of the part
    within. Derivatives are those along changes that keep the rank.

    Args:
        first, second: (*, n, n), A and B, positive semi-definite; see the module.
        check: as for `Distance`.

    Returns:
        (*), real.

    Raises:
        TypeError: not a tensor.
        ValueError: as `Distance`.

    Source: Umegaki, "Conditional expectation in an operator algebra, IV", Kodai Mathematical
    Seminar Reports 14, 1962; of any trace: Dhillon, Tropp, "Matrix nearness problems with Bregman
    divergences", SIAM Journal on Matrix Analysis 29, 2007.
    """
    a, b, dtype = _pair("relative_entropy", first, second, ("λ ≥ 0", "λ ≥ 0"), check)
    with full_precision(a):
        a, b, unit = _in_range(a, b, dtype, shrink=True)
        crossed = real_part(a * _lifted(LOG, b).conj()).sum((-2, -1))
        smooth = -_trace(_lifted(ENTROPY, a)) - crossed - _trace(a) + _trace(b)
        with torch.no_grad():
            rho, sigma = a.detach(), b.detach()
            values, vectors = EIGENDECOMPOSITION(sigma)
            shares = real_part(vectors.conj() * (rho @ vectors)).sum(-2)
            null = LOG.clip(values, values.shape[-1]) == 0
            tolerance = rank_tolerance(values.shape[-1], rho.dtype)
            outside = torch.where(null, shares, 0).sum(-1) > tolerance * _trace(rho)
            # Where f = λ log λ, it is Σ f[aᵢ, bⱼ, bⱼ] |(Vᴴ (A − B) W)ᵢⱼ|², and no term is negative.
            mixed = _mixed(rho, sigma, LOG)
            y = torch.where(mixed.b > 0, mixed.b, 1)
            x = torch.where(mixed.a > 0, mixed.a, y)
            curvature = torch.where(mixed.a > 0, -ENTROPY.confluent_difference(y, x), 1 / y)
            parts = torch.where(mixed.b > 0, curvature, 0) * _squares(mixed.difference)
            beyond = torch.where(outside, math.inf, 0.0).to(values.dtype)
        return (_valued(smooth, parts.sum((-2, -1))) * unit + beyond).to(dtype)


def fidelity(first: Tensor, second: Tensor, *, check: bool = True) -> Tensor:
    """F(A, B) = (tr (A^(1/2) B A^(1/2))^(1/2))², for density matrices from 0 to 1.

    Its square root is also called fidelity. Near 1, the distance is in 1 − √F, which is half of
    `bures_wasserstein` squared for matrices of trace one, without cancellation. At deficient rank
    it is finite, its derivative along changes that keep the rank.

    Args:
        first, second: (*, n, n), positive semi-definite; see the module.
        check: as for `Distance`.

    Returns:
        (*), real.

    Raises:
        TypeError: not a tensor.
        ValueError: as `Distance`.

    Source: Uhlmann, "The 'transition probability' in the state space of a *-algebra", Reports on
    Mathematical Physics 9, 1976; Jozsa, "Fidelity for mixed quantum states", Journal of Modern
    Optics 41, 1994.
    """
    a, b, dtype = _pair("fidelity", first, second, ("λ ≥ 0", "λ ≥ 0"), check)
    with full_precision(a):
        return _align(_lifted(SQRT, a), _lifted(SQRT, b)).nuclear_norm.square().to(dtype)


def frechet(
    first_mean: Tensor,
    first_covariance: Tensor,
    second_mean: Tensor,
    second_covariance: Tensor,
    *,
    squared: bool = False,
    check: bool = True,
) -> Tensor:
    """The Fréchet distance of Gaussians, √(‖μ₁ − μ₂‖² + d²) with d of `bures_wasserstein`.

    The 2-Wasserstein distance of the two; its square is the FID of the features of images.

    Args:
        first_mean, second_mean: (*, n).
        first_covariance, second_covariance: (*, n, n), positive semi-definite.
        squared, check: as for `Distance`.

    Returns:
        (*), real.

    Raises:
        TypeError: not a tensor.
        ValueError: means that are not real or complex floating-point vectors of the covariances'
            size, and as `Distance`.

    Source: Dowson, Landau, "The Fréchet distance between multivariate normal distributions",
    Journal of Multivariate Analysis 12, 1982.
    """
    for which, mean, covariance in (
        ("first", first_mean, first_covariance),
        ("second", second_mean, second_covariance),
    ):
        checks.floating(f"frechet: {which} mean", mean, complex_too=True)
        checks.tensor(f"frechet: {which} covariance", covariance)
        if mean.ndim < 1 or mean.shape[-1:] != covariance.shape[-1:]:
            raise ValueError(
                f"frechet: {which} mean of shape {tuple(mean.shape)} does not go with a covariance "
                f"of shape {tuple(covariance.shape)}; needs (*, n) and (*, n, n)"
            )
        if check and not unreadable(mean):
            checks.finite(f"frechet: {which} mean", mean, sample_dims=1)
    name = "frechet"
    covariances = (first_covariance.shape[:-2], second_covariance.shape[:-2])
    _batch(name, first_mean.shape[:-1], second_mean.shape[:-1], *covariances)
    a, b, dtype = _pair(name, first_covariance, second_covariance, ("λ ≥ 0", "λ ≥ 0"), check)
    for mean in (first_mean, second_mean):
        dtype = torch.promote_types(dtype, real_dtype(mean.dtype))
    with full_precision(a):
        wide = of_kind(torch.float64, torch.promote_types(first_mean.dtype, second_mean.dtype))
        apart = (first_mean.to(wide) - second_mean.to(wide))[..., None, :]
        roots = (_largest(each).sqrt() for each in (a, b))
        unit = _common_unit(dtype, _largest(apart), *roots, power=6)
        if unit is None:
            unit = 1.0
        else:
            # Twice, as the square of the unit may be out of range.
            apart, a, b = apart / unit, a / unit / unit, b / unit / unit
            unit = unit[..., 0, 0]
        value = _norm_squared(apart) + _bures_wasserstein(a, b)
        return _grown(value, unit, squared).to(dtype)


def frechet_from_samples(
    first: Tensor,
    second: Tensor,
    *,
    correction: int = 1,
    squared: bool = False,
    check: bool = True,
) -> Tensor:
    """The Fréchet distance of two sets of features, by singular values of the samples themselves.

    With X and Y the centred samples over √(N − correction), tr (Σ₁^(1/2) Σ₂ Σ₁^(1/2))^(1/2) is
    the sum of the singular values of X Yᴴ: no product of covariances is formed, whose rounding
    loses half of the digits, and N < n samples are no special case.

    Args:
        first, second: (*, N, n) and (*, M, n), one sample in a row; N and M may differ.
        correction: N − correction divides the sum of squares: 1 as in numpy.cov, or 0.
        squared: as for `Distance`; the square is the FID.
        check: whether to refuse features that are not finite.

    Returns:
        (*), real, in the dtype of the input.

    Derivatives of second order are right, at A = B and where N ≤ n too; where N > n, those of the
    covariance's root are along changes that keep its rank.

    Raises:
        TypeError: not a tensor.
        ValueError: not floating point, no two dimensions, another n, n = 0, batches that do not
            broadcast, a `correction` that is no whole number from 0 on, no more samples than it
            and, with `check`, features that are not finite, by index.

    Source: as `frechet`; of the features of images Heusel, Ramsauer, Unterthiner, Nessler,
    Hochreiter, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium",
    NeurIPS 2017.

    >>> import torch
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> frechet_from_samples(x, x + torch.tensor([3.0, 4.0]))
    tensor(5.)
    """
    name = "frechet_from_samples"
    checks.require_integer(f"{name}: correction", correction, 0)
    for which, x in (("first", first), ("second", second)):
        checks.floating(f"{name}: {which} features", x, complex_too=True)
        if x.ndim < 2 or x.shape[-2] <= correction:
            raise ValueError(
                f"{name} needs features (*, N, n) of more than {correction} samples, got shape "
                f"{tuple(x.shape)}"
            )
        if x.shape[-1] == 0:
            raise ValueError(
                f"{name} needs features of a size of 1 or more, got shape {tuple(x.shape)}"
            )
        if check and not unreadable(x):
            checks.finite(f"{name}: {which} features", x, sample_dims=2)
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"{name} needs features of one size, got shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    _batch(name, first.shape[:-2], second.shape[:-2])
    given = torch.promote_types(first.dtype, second.dtype)
    wide = of_kind(torch.float64, given)
    with full_precision(first):
        unit = _common_unit(real_dtype(given), _largest(first), _largest(second), power=6)
        (mean, factor), (other_mean, other) = (
            _moments(x.to(wide) / (1 if unit is None else unit), correction)
            for x in (first, second)
        )
        apart = _squares(mean - other_mean).sum(-1)
        # With as many columns, a unitary matrix takes one nearest to the other.
        count = max(factor.shape[-1], other.shape[-1])
        factor, other = (pad(f, (0, count - f.shape[-1])) for f in (factor, other))
        found = _align(factor, other)
        smooth = _norm_squared(factor) + _norm_squared(other) - 2 * found.nuclear_norm
        value = apart + _valued(smooth, found.apart)
        along = 1.0 if unit is None else unit[..., 0, 0]
        return _grown(value, along, squared).to(real_dtype(given))


def _moments(x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """The mean (*, n), and F (*, n, k) with F Fᴴ the covariance, k = min(N, n)."""
    count, size = x.shape[-2:]
    mean = x.mean(-2)
    if count <= size:
        return mean, (x - mean[..., None, :]).mT * (count - correction) ** -0.5
    # With one batch dimension: four dimensions would be taken for images.
    flat = x.mT.reshape(math.prod(x.shape[:-2]), size, count)
    root = cov_pool(flat, check_finite=False).reshape(*x.shape[:-2], size, size)
    return mean, root * (count / (count - correction)) ** 0.5
