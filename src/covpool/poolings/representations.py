"""Representations: the symmetric matrix of a feature map, as the covariance of other features.

Each takes features (B, C, N) and gives features whose covariance is the matrix meant. So every
normalisation works on every representation, and from a Gram matrix where positions are few.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from covpool.linalg.decompositions import eigvalsh
from covpool.linalg.tables import table


def covariance(features: Tensor) -> Tensor:
    """Σ = Xc Xcᵀ / N: the features themselves."""
    return features


def second_moment(features: Tensor) -> Tensor:
    """X Xᵀ / N, uncentred: features Y with Y 1 = 0 and Y Yᵀ = X Xᵀ, of one position more.

    [X, 0] is reflected so that its last unit vector, to which it is orthogonal, becomes the
    direction of the ones. Centring then takes nothing away.
    """
    positions = features.shape[-1]
    root = (positions + 1) ** 0.5
    total = features.sum(-1, keepdim=True)
    reflected = torch.cat([features - total / (root * (root - 1)), total / root], -1)
    return reflected * (root / positions**0.5)


def gaussian(features: Tensor) -> Tensor:
    """[Σ + μμᵀ, μ; μᵀ, 1] of (C + 1) × (C + 1): the second moment of features and a row of ones."""
    return second_moment(torch.cat([features, torch.ones_like(features[..., :1, :])], -2))


REPRESENTATIONS: Mapping[str, Callable[[Tensor], Tensor]] = table(
    {"covariance": covariance, "second-moment": second_moment, "gaussian": gaussian},
    kind="representation",
)
"""The representations that are symmetric matrices, by name."""


def size(representation: str, channels: int) -> int:
    """The number of rows of the matrix."""
    return channels + 1 if representation == "gaussian" else channels


def trace(features: Tensor) -> Tensor:
    """tr Σ of the features' covariance, (B, 1, 1)."""
    centred = features - features.mean(-1, keepdim=True)
    return centred.square().mean(-1, keepdim=True).sum(-2, keepdim=True)


def eigenvalues(features: Tensor) -> Tensor:
    """The min(C, N) eigenvalues of the covariance that may not be zero, ascending: (B, m).

    Their gradients are finite at ties.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float64))
    centred = (features - features.mean(-1, keepdim=True)) / features.shape[-1] ** 0.5
    wide = centred.shape[-2] > centred.shape[-1]
    gram = centred.mT @ centred if wide else centred @ centred.mT
    return eigvalsh(gram).clamp_min(0)
