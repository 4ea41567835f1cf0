"""The pooling of a symmetric matrix: regulariser, representation, normalisation, upper triangle."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from covpool.linalg.tables import choose
from covpool.pooling import triu_vector
from covpool.poolings.base import NONE, Pooling, PoolingModule
from covpool.poolings.representations import REPRESENTATIONS, size


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


def matrix_pooling(
    name: str,
    kind: Callable[..., nn.Module],
    *,
    representation: str = "covariance",
    regulariser: str = "none",
    dropout: Callable[..., nn.Module] | None = None,
    constants: Mapping[str, Any] = NONE,
    **words: Any,
) -> Pooling:
    """The row of a `MatrixPool`, with the representation as one of its constants.

    Args:
        name: of the row.
        kind: makes the normalisation from its constants, which are keyword-only.
        representation: a name of `REPRESENTATIONS`.
        regulariser: what `dropout` is, in a few words.
        dropout: makes the regulariser from the number of channels and its constants.
        constants: those that differ from the defaults.
        **words: further attributes of `Pooling`.
    """
    own, dropped = _constants_of(kind), [] if dropout is None else _constants_of(dropout)

    def make(channels: int, **given: Any) -> MatrixPool:
        chosen = given.pop("representation", representation)
        rest = {key: given.pop(key) for key in [p.name for p in dropped] if key in given}
        regularise = None if dropout is None else dropout(channels, **rest)
        return MatrixPool(channels, chosen, kind(**given), regularise)

    shown = inspect.Parameter(
        "representation", inspect.Parameter.KEYWORD_ONLY, default=representation
    )
    made: Any = make
    made.__signature__ = inspect.Signature([shown, *own, *dropped])
    return Pooling(
        name=name,
        representation=representation,
        regulariser=regulariser,
        make=make,
        chosen=constants,
        **words,
    )


def _constants_of(kind: Callable[..., nn.Module]) -> list[inspect.Parameter]:
    found = inspect.signature(kind).parameters.values()
    return [parameter for parameter in found if parameter.kind is parameter.KEYWORD_ONLY]
