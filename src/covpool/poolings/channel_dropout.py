"""DropCov: channels dropped by how much they matter, in place of a normalisation."""

import math

import torch
from torch import Tensor, nn

from covpool.poolings.base import Pooling, require
from covpool.poolings.matrix import matrix_pooling
from covpool.poolings.spectral import Plain

REACH = 10.0
"""Multiple of the similarity, over log₂ C, that the probability of dropping falls by."""


class AdaptiveChannelDropout(nn.Module):
    """Features (B, C, N), in training alone with channels weighted and dropped.

    y = softmax over channels of a convolution (3 neighbours, no bias) of the channels' means; the
    features become X + y ∘ X; with c the row sums of their covariance,

        p = clamp(1 − 10/log₂ C · cos(y, c), 0, limit),

    the probability by which each channel of the sample is zeroed, the others being divided by
    1 − p. No gradient goes through p. At C = 64 it is mostly below 0.1 and often 0, so that little
    is dropped; at C = 256 it is 0.1 to 0.5.

    Args:
        channels: C, at least 2.
        limit: the largest p: with 1 nothing would be left of a sample whose cosine is 0 or less.
        as_published: take the mean cosine of the batch (and of this process alone), and limit 1.
    """

    def __init__(self, channels: int, *, limit: float = 0.9, as_published: bool = False) -> None:
        super().__init__()
        require(channels >= 2, "channels", "at least 2", channels)
        require(0 <= limit < 1, "limit", "in [0, 1)", limit)
        self.weigh = nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)
        self.reach = REACH / math.log2(channels)
        self.limit = 1.0 if as_published else limit
        self.as_published = as_published

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        weights = self.weigh(features.mean(-1)[:, None, :])[:, 0].softmax(-1)
        features = features + weights[..., None] * features
        keep = 1 - self.probability(features, weights)
        mask = torch.rand_like(features[..., 0]) < keep
        # Where nothing is kept the mask is zero, whatever it is divided by.
        return features * (mask / torch.where(keep > 0, keep, 1))[..., None].to(features.dtype)

    @torch.no_grad()
    def probability(self, features: Tensor, weights: Tensor) -> Tensor:
        """p (B, 1) of weighted features (B, C, N) and their weights (B, C)."""
        centred = features - features.mean(-1, keepdim=True)
        sums = (centred @ centred.sum(-2, keepdim=True).mT)[..., 0] / features.shape[-1]
        similarity = torch.cosine_similarity(weights, sums, dim=-1)[:, None]
        if self.as_published:
            similarity = similarity.mean(0, keepdim=True)
        return (1 - self.reach * similarity).clamp(0, self.limit)


CHANNEL_DROPOUT: tuple[Pooling, ...] = (
    matrix_pooling(
        "dropcov",
        Plain,
        regulariser="adaptive channel dropout",
        dropout=AdaptiveChannelDropout,
        paper="Wang, Gao, Zhang, Xie, Li, Hu: DropCov: a simple yet effective method for improving "
        "deep architectures, NeurIPS 2022",
        description="the plain covariance, in training of channels that are dropped the more the "
        "less they matter to it",
        caution="The published code takes one probability for the batch of a device, and drops "
        "everything where the cosine is 0 or less; here it is each sample's own, at most 0.9. "
        "as_published=True reproduces the other.",
    ),
)
