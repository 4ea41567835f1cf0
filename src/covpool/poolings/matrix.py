"""The pooling of a symmetric matrix: regulariser, representation, normalisation, upper triangle."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from covpool.linalg.methods import METHODS, Method, get_method
from covpool.linalg.names import MethodName
from covpool.linalg.products import SUBSTITUTE
from covpool.linalg.tables import choose
from covpool.pooling import cov_pool, cov_pool_in_products, covariance, triu_vector
from covpool.poolings.base import NONE, Pooling, PoolingModule
from covpool.poolings.representations import REPRESENTATIONS, size


class Normalisation(nn.Module):
    """A module from features (B, C, N) to a symmetric matrix of their covariance.

    Attributes:
        products: the dtype of the matrix products that stand in for decompositions; None: none do.
    """

    products: torch.dtype | None = None

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        """Compute by matrix products alone from now on, see `covpool.exportable`.

        Returns:
            What stands in for a decomposition; None: there was none.

        Raises:
            NoProductForm: there is no such form; the message says what has one.
        """
        self.products = dtype
        return SUBSTITUTE

    def root(self, features: Tensor, method: MethodName | Method = "exact") -> Tensor:
        """√Σ by the method, or by what stands in for it."""
        if self.products is None:
            return cov_pool(features, method)
        row = get_method(method)
        if row.forward.product_steps(self.products) is None:
            return cov_pool_in_products(features, METHODS[SUBSTITUTE], self.products)
        return cov_pool_in_products(features, row)

    def wide(self, features: Tensor) -> Tensor:
        """Σ in the dtype of the products."""
        return covariance(features.to(self.products))


class MatrixPool(PoolingModule):
    """The upper triangle of a normalised matrix of a feature map's channels.

    Args:
        channels: C of the feature map.
        representation: a name of `REPRESENTATIONS`.
        normalisation: from features whose covariance is the matrix to the normalised matrix.
        regulariser: features → features, which are others in training alone.
    """

    def __init__(
        self,
        channels: int,
        representation: str,
        normalisation: nn.Module,
        regulariser: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.represent = choose("representation", representation, REPRESENTATIONS)
        self.normalisation = normalisation
        self.regulariser = regulariser or nn.Identity()
        rows = size(representation, channels)
        self.out_features = rows * (rows + 1) // 2
        # One position has no covariance, but a second moment.
        self.least_positions = 2 if representation == "covariance" else 1

    def forward(self, x: Tensor) -> Tensor:
        features = self.represent(self.regulariser(x.flatten(2)))
        return triu_vector(self.normalisation(features))


@dataclass(frozen=True)
class _Maker:
    """Makes a `MatrixPool` from all constants of its parts."""

    kind: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module] | None
    representation: str

    @property
    def __signature__(self) -> inspect.Signature:
        shown = inspect.Parameter(
            "representation", inspect.Parameter.KEYWORD_ONLY, default=self.representation
        )
        return inspect.Signature([shown, *_constants_of(self.kind), *_constants_of(self.dropout)])

    def __call__(self, channels: int, **given: Any) -> MatrixPool:
        representation = given.pop("representation", self.representation)
        regulariser = None
        if self.dropout is not None:
            own = {p.name: given.pop(p.name, p.default) for p in _constants_of(self.dropout)}
            regulariser = self.dropout(channels, **own)
        return MatrixPool(channels, representation, self.kind(**given), regulariser)


def matrix_pooling(
    name: str,
    kind: Callable[..., nn.Module],
    *,
    representation: str = "covariance",
    dropout: Callable[..., nn.Module] | None = None,
    constants: Mapping[str, Any] = NONE,
    **words: Any,
) -> Pooling:
    """The row of a `MatrixPool`, with the representation as one of its constants.

    Args:
        name: of the row.
        kind: makes the normalisation from its constants, which are keyword-only: a module from
            features (B, C, N) to a symmetric matrix of their covariance.
        representation: a name of `REPRESENTATIONS`.
        dropout: makes a regulariser of features (B, C, N) from the number of channels and its
            constants.
        constants: those that differ from the defaults.
        **words: further attributes of `Pooling`.
    """
    return Pooling(
        name=name,
        representation=representation,
        make=_Maker(kind, dropout, representation),
        chosen=dict(constants),
        **words,
    )


def _constants_of(kind: Callable[..., nn.Module] | None) -> list[inspect.Parameter]:
    found = () if kind is None else inspect.signature(kind).parameters.values()
    return [parameter for parameter in found if parameter.kind is parameter.KEYWORD_ONLY]
