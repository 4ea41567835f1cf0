"""Normalisations by a scalar function of the eigenvalues, f(Σ)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from covpool.linalg.api import matrix_function
from covpool.linalg.functions import LOG, POWER, ScalarFunction
from covpool.linalg.methods import METHODS, Method, get_method
from covpool.linalg.products import NoProductForm
from covpool.linalg.spectrum import symmetric_part
from covpool.pooling import cov_function, covariance
from covpool.poolings.base import Pooling, require
from covpool.poolings.functions import (
    Shifted,
    chebyshev_log,
    chebyshev_of_matrix,
    heat_diffusion,
    max_exp,
)
from covpool.poolings.matrix import Normalisation, matrix_pooling
from covpool.poolings.representations import trace


class Plain(nn.Module):
    """Σ itself."""

    def forward(self, features: Tensor) -> Tensor:
        return covariance(features)


class Root(Normalisation):
    """√Σ by a method, over a constant: 1/scale · (√Σ − shift · I).

    Args:
        method: a name of `METHODS` or a row.
        scale: θ of √Σ/θ.
        minus_identity: whether it is (√Σ − I)/θ.
    """

    def __init__(
        self,
        *,
        method: str | Method = "exact",
        scale: float = 1.0,
        minus_identity: bool = False,
    ) -> None:
        super().__init__()
        self.method = get_method(method)
        self.scale, self.minus_identity = scale, minus_identity

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        found = super().in_matrix_products(dtype)
        return found if self.method.forward.product_steps(dtype) is None else None

    def forward(self, features: Tensor) -> Tensor:
        root = self.root(features, self.method)
        if self.minus_identity:
            root = root - torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        return root / self.scale


class Power(Normalisation):
    """Σ^α for a constant α in (0, 1]."""

    def __init__(self, *, exponent: float = 0.5) -> None:
        super().__init__()
        require(0 < exponent <= 1, "exponent", "in (0, 1]", exponent)
        self.exponent = exponent

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        return roots_alone(super(), self.exponent, dtype)

    def forward(self, features: Tensor) -> Tensor:
        if self.products is not None:
            return self.root(features)
        return cov_function(features, bound_power(self.exponent, features))


class LearnedPower(Normalisation):
    """Σ^α for a learned α in (0, 1), the logistic function of the parameter.

    Where N − 1 < C it is Xc K^(α − 1) Xcᵀ / N of the Gram matrix K = XcᵀXc / N.
    """

    def __init__(self, *, exponent: float = 0.5) -> None:
        super().__init__()
        require(0 < exponent < 1, "exponent", "in (0, 1)", exponent)
        self.logit = nn.Parameter(torch.tensor(exponent).logit())

    @property
    def exponent(self) -> Tensor:
        """The α in use."""
        return self.logit.sigmoid()

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        raise NoProductForm(
            f"the learned power {self.exponent.item():.3g}; power, of the constant 0.5, has one"
        )

    def forward(self, features: Tensor) -> Tensor:
        wide = features.to(torch.promote_types(features.dtype, torch.float64))
        centred = (wide - wide.mean(-1, keepdim=True)) / wide.shape[-1] ** 0.5
        exponent = self.exponent.to(wide.dtype)
        if wide.shape[-1] - 1 < wide.shape[-2]:
            gram = centred.mT @ centred
            inner = matrix_function(gram, "power", parameter=exponent - 1, check=False)
            return (centred @ inner @ centred.mT).to(features.dtype)
        result = matrix_function(centred @ centred.mT, "power", parameter=exponent)
        return result.to(features.dtype)


class Logarithm(Normalisation):
    """log(Σ + εI)."""

    def __init__(self, *, epsilon: float = 1e-3) -> None:
        super().__init__()
        require(epsilon > 0, "epsilon", "positive", epsilon)
        self.function = Shifted(LOG, epsilon)

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        raise NoProductForm("the logarithm; chebyshev-log, a polynomial of the covariance, has one")

    def forward(self, features: Tensor) -> Tensor:
        return cov_function(features, self.function)


class OfUnitTrace(Normalisation):
    """f(Σ/(tr Σ + κ)) of a function of eigenvalues in [0, 1]; `function` gives it for tensors."""

    def __init__(self, function: Callable[[Tensor], ScalarFunction], kappa: float) -> None:
        super().__init__()
        require(kappa > 0, "kappa", "positive", kappa)
        self.function, self.kappa = function, kappa

    def forward(self, features: Tensor) -> Tensor:
        scaled = features * (trace(features) + self.kappa).rsqrt()
        if self.products is not None:
            return self.product_form(scaled)
        return cov_function(scaled, self.function(scaled))

    def product_form(self, scaled: Tensor) -> Tensor:
        """The same in matrix products."""
        return self.root(scaled)


class MaxExp(OfUnitTrace):
    """I − (I − ρ)^η, ρ = Σ/(tr Σ + κ)."""

    def __init__(self, *, eta: float = 20.0, kappa: float = 1e-6) -> None:
        require(eta > 1, "eta", "above 1", eta)
        super().__init__(partial(_same, max_exp(eta)), kappa)
        self.eta = eta

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        if self.eta != int(self.eta):
            raise NoProductForm(f"the power {self.eta:g}; whole numbers eta have one")
        super().in_matrix_products(dtype)
        return "products"

    def product_form(self, scaled: Tensor) -> Tensor:
        matrix = self.wide(scaled)
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        found = identity - torch.linalg.matrix_power(identity - matrix, int(self.eta))
        return symmetric_part(found).to(scaled.dtype)


class Gamma(OfUnitTrace):
    """ρ^γ, ρ = Σ/(tr Σ + κ)."""

    def __init__(self, *, gamma: float = 0.5, kappa: float = 1e-6) -> None:
        require(0 < gamma <= 1, "gamma", "in (0, 1]", gamma)
        super().__init__(partial(bound_power, gamma), kappa)
        self.gamma = gamma

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        return roots_alone(super(), self.gamma, dtype)


class HeatDiffusion(OfUnitTrace):
    """exp(−t ρ⁻¹), 0 on the null space, ρ = Σ/(tr Σ + κ)."""

    def __init__(self, *, time: float = 0.01, kappa: float = 1e-6) -> None:
        require(time > 0, "time", "positive", time)
        super().__init__(partial(_same, heat_diffusion(time)), kappa)

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        raise NoProductForm("exp(−t/λ); maxexp has one")


class ChebyshevLogarithm(Normalisation):
    """log(w Σ + (1 − w) s I) by p(w Σ/s + (1 − w) I) + log(s) I, p a Chebyshev series of log.

    s is the Frobenius norm of Σ, which no eigenvalue exceeds: all lie in the interval of the
    series, [1 − w, 1], on which it is off by 0.093 at most for the default degree and weight, and
    by 0.006 for degree 16.

    As published s is the mean eigenvalue tr Σ/C, and the interval [0.05, 3.5]. That is a logarithm
    only where all eigenvalues are in [0.031, 3.55] times their mean, within 0.16: it takes more
    positions than channels, and a flat spectrum. Below, it is off by up to 0.73, at 0. Above, the
    polynomial falls as its eighth power: it is off by 1 at 4 means, 84 at 5, 4e4 at 8, 3e8 at 20.
    Maps of 64 channels and 36 positions after a ReLU have their largest eigenvalue at 5 to 30
    means, so that this one direction is all that the result shows.

    A trace below 1e-12 C counts as that.

    Args:
        degree: of the polynomial.
        weight: w.
        as_published: scale by the mean eigenvalue.
    """

    def __init__(
        self, *, degree: int = 8, weight: float = 0.98, as_published: bool = False
    ) -> None:
        super().__init__()
        require(isinstance(degree, int) and degree >= 1, "degree", "at least 1", degree)
        require(0 < weight < 1, "weight", "in (0, 1)", weight)
        low, high = (0.05, 3.5) if as_published else (1 - weight, 1.0)
        self.series = degree, low, high, weight
        self.function = chebyshev_log(*self.series)
        self.as_published = as_published

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        super().in_matrix_products(dtype)
        return "products"

    def forward(self, features: Tensor) -> Tensor:
        channels = features.shape[-2]
        scale = (trace(features) / channels).clamp_min(1e-12)
        scaled = features * scale.rsqrt()
        if not self.as_published:
            # With a mean eigenvalue of 1 the norm is √C or more; below 1 only near a zero trace.
            norm = vector_norm(covariance(scaled), dim=(-2, -1), keepdim=True).clamp_min(1)
            scaled, scale = scaled * norm.rsqrt(), scale * norm
        identity = torch.eye(channels, dtype=features.dtype, device=features.device)
        if self.products is None:
            return cov_function(scaled, self.function) + scale.log() * identity
        found = chebyshev_of_matrix(self.wide(scaled), *self.series)
        return symmetric_part(found).to(features.dtype) + scale.log() * identity


def _same(function: ScalarFunction, like: Tensor) -> ScalarFunction:
    return function


def roots_alone(owner: Any, exponent: float, dtype: torch.dtype) -> str | None:
    """`in_matrix_products` of a power: the base class's of `owner` where it is the root."""
    if exponent != 0.5:
        raise NoProductForm(f"the power {exponent:g}; 0.5, the square root, has one")
    return owner.in_matrix_products(dtype)


def bound_power(exponent: float, like: Tensor) -> ScalarFunction:
    return POWER.bind(torch.tensor(exponent, dtype=torch.float64, device=like.device))


_MPN_COV = (
    "Li, Xie, Wang, Zuo: Is second-order information helpful for large-scale visual recognition? "
    "ICCV 2017"
)
_RIEMANNIAN = (
    "Chen, Song, Wu, Liu, Sebe: Understanding matrix function normalizations in covariance "
    "pooling through the lens of Riemannian geometry, ICLR 2025"
)
_KONIUSZ = (
    "Koniusz, Zhang: Power normalizations in fine-grained image, few-shot image and graph "
    "classification, IEEE TPAMI 44(2), 2022"
)
_AFFINE = (
    "An affine map before a linear classifier leaves what it can learn unchanged: it differs from "
    "the root in initial scale, step size and weight decay only."
)
_FROM_MEMORY = "The formula and its constant are those commonly given; the paper was not at hand."


def root_of(method: Method) -> Pooling:
    """The square root of the covariance by a method, whose constants are the row's too."""
    return matrix_pooling(
        method.name,
        Root,
        constants={"method": method},
        normalisation="√Σ",
        paper=method.reference,
        description=method.description,
        caution=method.caution,
    )


ROOTS: tuple[Pooling, ...] = tuple(map(root_of, METHODS.values()))
"""The square root by every method: generated from `METHODS`."""

SPECTRAL: tuple[Pooling, ...] = (
    matrix_pooling(
        "covariance",
        Plain,
        normalisation="none",
        paper=_MPN_COV,
        description="the plain covariance: the baseline of every normalisation",
    ),
    matrix_pooling(
        "power",
        Power,
        normalisation="Σ^α, α constant",
        paper=_MPN_COV,
        description="a fixed power of the covariance (0.5: the root), of which the paper found "
        "0.5 the best",
    ),
    matrix_pooling(
        "power-learned",
        LearnedPower,
        normalisation="Σ^α, α learned",
        paper="Engin, Wang, Zhou, Liu: DeepKSPD: learning kernel-matrix-based SPD representation "
        "for fine-grained image recognition, ECCV 2018",
        description="a power of the covariance, whose exponent in (0, 1) is learned from 0.5 on",
        caution="No published head with its code was found that learns the exponent; the logistic "
        "parametrisation is ours. Weight decay pulls the exponent towards 0.5.",
    ),
    matrix_pooling(
        "log-e",
        Logarithm,
        normalisation="log(Σ + εI)",
        paper="Ionescu, Vantzos, Sminchisescu: Matrix backpropagation for deep networks with "
        "structured layers, ICCV 2015",
        description="the logarithm with ε on the diagonal, which decides where Σ is singular",
        caution="The paper pools the uncentred second moment (representation='second-moment'); "
        "its ε is not verified. Every null direction contributes log ε: with fewer positions than "
        "channels ε decides, and with it the features' scale, unless ε is near the mean "
        "eigenvalue.",
    ),
    matrix_pooling(
        "chebyshev-log",
        ChebyshevLogarithm,
        normalisation="log by a Chebyshev series",
        paper="Rahman et al.: Orthogonal polynomial approximation for matrix log normalization in "
        "global covariance pooling, 2026",
        description="the logarithm by a polynomial of degree 8, of Σ over its Frobenius norm",
        caution="The paper scales Σ by its mean eigenvalue, for a series on [0.05, 3.5]. With "
        "fewer positions than channels the largest eigenvalue is far beyond, where the polynomial "
        "is no logarithm (off by 4e4 at 8 means), and that one direction is all that the vector "
        "shows. Here all eigenvalues are inside, and as_published=True reproduces the other.",
    ),
    matrix_pooling(
        "pow-tmlr",
        Root,
        constants={"scale": 0.5, "minus_identity": True},
        normalisation="(Σ^½ − I)/½",
        paper=_RIEMANNIAN,
        description="the logarithm at the identity under the power-Euclidean metric",
        caution=_AFFINE + " The code computes the root by isqrt-cov in float64: method.",
    ),
    matrix_pooling(
        "scalepow-emlr",
        Root,
        constants={"scale": 0.5},
        normalisation="Σ^½/½",
        paper=_RIEMANNIAN,
        description="twice the root",
        caution=_AFFINE + " The code computes the root by isqrt-cov in float64: method.",
    ),
    matrix_pooling(
        "maxexp",
        MaxExp,
        representation="second-moment",
        normalisation="I − (I − ρ)^η, ρ of unit trace",
        paper=_KONIUSZ,
        description="spectral MaxExp, whose gradient is bounded by η over the trace",
        caution=_FROM_MEMORY + " Coordinates are not appended to the features.",
    ),
    matrix_pooling(
        "gamma",
        Gamma,
        representation="second-moment",
        normalisation="ρ^γ, ρ of unit trace",
        paper=_KONIUSZ,
        description="spectral Gamma: a power of the second moment of unit trace",
        caution=_FROM_MEMORY + " Coordinates are not appended to the features.",
    ),
    matrix_pooling(
        "hdp",
        HeatDiffusion,
        representation="second-moment",
        normalisation="exp(−t ρ⁻¹), ρ of unit trace",
        paper=_KONIUSZ,
        description="time-reversed heat diffusion, 0 on the null space",
        caution=_FROM_MEMORY + " Coordinates are not appended to the features.",
    ),
    matrix_pooling(
        "gaussian",
        Root,
        representation="gaussian",
        normalisation="√",
        paper="Wang, Li, Zhang: G²DeNet: global Gaussian distribution embedding network and its "
        "application to visual recognition, CVPR 2017",
        description="the root of [Σ + μμᵀ, μ; μᵀ, 1]: mean and covariance together",
        caution="Not free of the features' scale: the corner 1 sets their unit.",
    ),
)
"""The other scalar functions, and the other representation of the root."""
