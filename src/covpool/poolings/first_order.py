"""First-order poolings: means, maxima, generalised means, and timm's attention pools."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from covpool.poolings.base import Pooling, PoolingModule, require


class Mean(PoolingModule):
    """The mean over positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_features = channels

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Maximum(Mean):
    """The maximum over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class MeanAndMaximum(Mean):
    """Half the sum of mean and maximum over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x.mean((2, 3)) + x.amax((2, 3)))


class GeneralisedMean(Mean):
    """(mean over positions of max(x, ε)^p)^(1/p), p learned.

    Args:
        channels: C.
        exponent: p at the start.
        epsilon: ε; what is below it counts as that, with gradient 0.
    """

    def __init__(self, channels: int, *, exponent: float = 3.0, epsilon: float = 1e-6) -> None:
        super().__init__(channels)
        require(exponent > 0, "exponent", "positive", exponent)
        require(epsilon > 0, "epsilon", "positive", epsilon)
        self.exponent = nn.Parameter(torch.tensor(float(exponent)))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        p = self.exponent.to(x.dtype)
        logs = p * x.clamp_min(self.epsilon).log().flatten(2)
        return ((logs.logsumexp(-1) - math.log(logs.shape[-1])) / p).exp()


class TimmPool(Mean):
    """A pool of timm's, `layer`, by what it takes: a map (B, C, H, W), or tokens (B, N, C)."""

    def __init__(self, channels: int, layer: nn.Module, *, tokens: bool) -> None:
        super().__init__(channels)
        self.layer, self.tokens = layer, tokens

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).mT if self.tokens else x)


def _timm(channels: int, name: str, *, tokens: bool = False, **arguments: Any) -> TimmPool:
    import timm.layers

    make: Callable[..., nn.Module] = getattr(timm.layers, name)
    return TimmPool(channels, make(**arguments), tokens=tokens)


def simpool(channels: int, *, num_heads: int = 1) -> TimmPool:
    return _timm(channels, "SimPool2d", dim=channels, num_heads=_heads(channels, num_heads))


def lse_plus(channels: int, *, r: float = 10.0) -> TimmPool:
    return _timm(channels, "LsePlus2d", r=r)


def attention_latent(channels: int, *, num_heads: int = 8, mlp_ratio: float = 4.0) -> TimmPool:
    return _timm(
        channels,
        "AttentionPoolLatent",
        tokens=True,
        in_features=channels,
        num_heads=_heads(channels, num_heads),
        mlp_ratio=mlp_ratio,
    )


def attention_rotary(channels: int, *, num_heads: int = 8) -> TimmPool:
    heads = _heads(channels, num_heads)
    require(channels % 4 == 0, "channels", "a multiple of 4", channels)
    fitting = [number for number in range(1, channels + 1) if channels % (4 * number) == 0]
    requirement = f"one of {', '.join(map(str, fitting))}, as {channels} channels / num_heads must "
    require(heads in fitting, "num_heads", f"{requirement}be a multiple of 4", heads)
    return _timm(
        channels, "RotAttentionPool2d", in_features=channels, num_heads=heads, head_dim=None
    )


def _heads(channels: int, heads: int) -> int:
    divides = isinstance(heads, int) and heads >= 1 and channels % heads == 0
    require(divides, "num_heads", f"a whole number that divides the {channels} channels", heads)
    return heads


def _row(name: str, make: Callable[..., PoolingModule], **words: Any) -> Pooling:
    return Pooling(name=name, representation="first order", make=make, reduced=False, **words)


_TIMM = "timm (PyTorch Image Models), layer "

FIRST_ORDER: tuple[Pooling, ...] = (
    _row(
        "gap",
        Mean,
        paper="Lin, Chen, Yan: Network in network, ICLR 2014",
        description="the mean over positions: the baseline",
    ),
    _row(
        "max",
        Maximum,
        paper=_TIMM + "SelectAdaptivePool2d",
        description="the maximum over positions",
    ),
    _row(
        "avgmax",
        MeanAndMaximum,
        paper=_TIMM + "SelectAdaptivePool2d",
        description="half the sum of mean and maximum",
    ),
    _row(
        "gem",
        GeneralisedMean,
        paper="Radenović, Tolias, Chum: Fine-tuning CNN image retrieval with no human annotation, "
        "IEEE TPAMI 41(7), 2019",
        description="the generalised mean, of an exponent that is learned from 3 on",
        caution="For features that are not negative, as after a ReLU.",
    ),
    _row(
        "simpool",
        simpool,
        paper="Psomas, Kakogeorgiou, Karantzalos, Avrithis: Keep it SimPool: who said supervised "
        "transformers suffer from attention deficit? ICCV 2023",
        description="attention by the mean as the query, timm's SimPool2d",
    ),
    _row(
        "lse-plus",
        lse_plus,
        paper=_TIMM + "LsePlus2d",
        description="log-mean-exp over positions, of a sharpness that is learned from 10 on",
    ),
    _row(
        "attention-latent",
        attention_latent,
        paper="Zhai, Kolesnikov, Houlsby, Beyer: Scaling vision transformers, CVPR 2022",
        description="attention by a learned query, timm's AttentionPoolLatent",
    ),
    _row(
        "attention-rotary",
        attention_rotary,
        paper="Radford et al.: Learning transferable visual models from natural language "
        "supervision, ICML 2021",
        description="attention by the mean, with rotary positions, timm's RotAttentionPool2d",
        caution="CLIP's own pool has learned positions for one size of maps.",
    ),
)
