"""Brownian distance covariance of the channels."""

import torch
from torch import Tensor, nn

from covpool.pooling import triu_vector
from covpool.poolings.base import Pooling, PoolingModule, require


class BrownianDistance(PoolingModule):
    """Distances between channels, centred over rows and columns: their upper triangle.

    D² = ‖xᵢ − xⱼ‖² between the channels' maps as points of R^N, D = √(eᵗ D²/(2N) + ε), less row and
    column means, plus the whole mean. t is learned from 0 on.

    Args:
        channels: C.
        epsilon: ε, which bounds the gradient where two channels are the same.
    """

    def __init__(self, channels: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        require(epsilon > 0, "epsilon", "positive", epsilon)
        self.out_features = channels * (channels + 1) // 2
        self.temperature = nn.Parameter(torch.zeros(()))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        features = x.flatten(2)
        # Distances stay the same, and large means no longer cancel.
        features = features - features.mean(1, keepdim=True)
        products = features @ features.mT / (2 * features.shape[-1])
        lengths = products.diagonal(dim1=-2, dim2=-1)
        squares = (lengths[..., :, None] + lengths[..., None, :] - 2 * products).clamp_min(0)
        distances = (self.temperature.to(x.dtype).exp() * squares + self.epsilon).sqrt()
        rows = distances.mean(-1, keepdim=True)
        return triu_vector(distances - rows - rows.mT + rows.mean(-2, keepdim=True))


DISTANCE: tuple[Pooling, ...] = (
    Pooling(
        name="bdc",
        representation="distances between channels",
        normalisation="centring of rows and columns",
        make=BrownianDistance,
        paper="Xie, Long, Lv, Wang, Li: Joint distribution matters: deep Brownian distance "
        "covariance for few-shot classification, CVPR 2022",
        description="Brownian distance covariance: distances between channels, centred twice",
        caution="The published temperature starts at log(1/(2N)) for the N of the training maps; "
        "here the division by 2N is part of the formula, and it starts at 0. The authors put "
        "dropout of 0.5 to 0.8 on the vector: drop_rate.",
    ),
)
