"""Normalisations by one number or one direction of the covariance, and the scaling eigen branch."""

import torch
from torch import Tensor, nn

from covpool.linalg.products import NoProductForm, largest_eigenvalue
from covpool.linalg.spectrum import symmetric_part
from covpool.pooling import cov_function, cov_pool, covariance
from covpool.poolings.base import Pooling, power, quotient, require
from covpool.poolings.matrix import Normalisation, matrix_pooling
from covpool.poolings.representations import eigenvalues
from covpool.poolings.spectral import bound_power, roots_alone


class _Scaled(Normalisation):
    """Σ^α over a number; α = 1 changes the scale alone."""

    def __init__(self, *, exponent: float = 1.0) -> None:
        super().__init__()
        require(0 < exponent <= 1, "exponent", "in (0, 1]", exponent)
        self.exponent = exponent

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        if self.exponent != 1:
            return roots_alone(super(), self.exponent, dtype)
        super().in_matrix_products(dtype)
        return "products"

    def powered(self, features: Tensor) -> Tensor:
        if self.exponent == 1:
            return covariance(features)
        if self.exponent == 0.5:
            return self.root(features)
        return cov_function(features, bound_power(self.exponent, features))


class LargestEigenvalue(_Scaled):
    """Σ^α/λ₁^α."""

    def forward(self, features: Tensor) -> Tensor:
        if self.products is None:
            largest = eigenvalues(features)[..., -1:, None]
        else:
            largest = largest_eigenvalue(self.wide(features))
        divisor = power(largest, self.exponent).to(features.dtype)
        return quotient(self.powered(features), divisor)


class Frobenius(_Scaled):
    """Σ^α/‖Σ^α‖, by the Frobenius norm."""

    def forward(self, features: Tensor) -> Tensor:
        result = self.powered(features)
        return quotient(*_normalised(result))


def _normalised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix by its largest entry, and the Frobenius norm of that: no square overflows."""
    largest = matrix.detach().abs().amax((-2, -1), keepdim=True)
    scaled = quotient(matrix, largest)
    return scaled, power(scaled.square().sum((-2, -1), keepdim=True), 0.5)


class RankOneUpdate(nn.Module):
    """Σ − ε sym(Σ v vᵀ), v = Σᵏ 1/‖Σᵏ 1‖ from the vector of ones; through which gradients go.

    Where the channels of every position sum to the same, as after a layer norm without weights, Σ 1
    is zero and v is the direction of rounding errors.
    """

    def __init__(self, *, epsilon: float = 0.5, iterations: int = 2) -> None:
        super().__init__()
        require(0 < epsilon <= 1, "epsilon", "in (0, 1]", epsilon)
        whole = isinstance(iterations, int) and iterations >= 1
        require(whole, "iterations", "a whole number of at least 1", iterations)
        self.epsilon, self.iterations = epsilon, iterations

    def forward(self, features: Tensor) -> Tensor:
        matrix = covariance(features)
        direction = torch.ones_like(matrix[..., :1])
        for _ in range(self.iterations):
            direction = matrix @ direction
            direction = quotient(*_normalised(direction))
        return matrix - self.epsilon * symmetric_part(matrix @ direction @ direction.mT)


class ScalingEigenBranch(Normalisation):
    """(1 + ‖√Σ exp(−Σ)‖) √Σ, by the Frobenius norm."""

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        raise NoProductForm("e^(−Σ); isqrt-cov and exact, of which it is a multiple, have one")

    def forward(self, features: Tensor) -> Tensor:
        found = eigenvalues(features)
        squares = (found * torch.exp(-2 * found)).sum(-1)[..., None, None]
        return (1 + power(squares, 0.5).to(features.dtype)) * cov_pool(features)


_MPN_COV = (
    "Li, Xie, Wang, Zuo: Is second-order information helpful for large-scale visual recognition? "
    "ICCV 2017"
)
_ROOT = "exponent=0.5 scales the root, as MPN-COV's matrix-ℓ2 and matrix-Fro do."

SCALINGS: tuple[Pooling, ...] = (
    matrix_pooling(
        "sigma-max",
        LargestEigenvalue,
        normalisation="Σ/λ₁",
        paper=_MPN_COV,
        description="the covariance over its largest eigenvalue: a change of scale alone",
        caution=_ROOT,
    ),
    matrix_pooling(
        "frobenius",
        Frobenius,
        normalisation="Σ/‖Σ‖",
        paper=_MPN_COV,
        description="the covariance over its Frobenius norm: a change of scale alone",
        caution=_ROOT,
    ),
    matrix_pooling(
        "root-sigma-max",
        LargestEigenvalue,
        constants={"exponent": 0.5},
        normalisation="Σ^½/λ₁^½",
        paper=_MPN_COV,
        description="MPN-COV's matrix-ℓ2: the root over its largest eigenvalue",
        caution="The paper's authors found it unsatisfactory and dropped it.",
    ),
    matrix_pooling(
        "root-frobenius",
        Frobenius,
        constants={"exponent": 0.5},
        normalisation="Σ^½/‖Σ^½‖",
        paper=_MPN_COV,
        description="MPN-COV's matrix-Fro: the root over its Frobenius norm",
        caution="The paper's authors found it unsatisfactory and dropped it.",
    ),
    matrix_pooling(
        "rank-one-update",
        RankOneUpdate,
        normalisation="Σ − ε sym(Σvvᵀ)",
        paper="Yu, Cai, Li: Toward faster and simpler matrix normalization via rank-1 update, "
        "ECCV 2020",
        description="the dominant direction shrunk, found by power iterations",
        caution="The formula is the one commonly given, made symmetric; ε, the number of "
        "iterations and the start (random there) are ours, as the paper was not at hand.",
    ),
    matrix_pooling(
        "seb",
        ScalingEigenBranch,
        normalisation="(1 + ‖Σ^½ e^(−Σ)‖) Σ^½",
        paper="Song, Sebe, Wang: On the eigenvalues of global covariance pooling for fine-grained "
        "visual recognition, IEEE TPAMI 2022",
        description="the scaling eigen branch in closed form: the root times one number a sample",
        caution="The published code divides matrices entry by entry, which gives this constant, or "
        "NaN where an entry is 0. No eigenvalue is amplified relative to another.",
    ),
)
