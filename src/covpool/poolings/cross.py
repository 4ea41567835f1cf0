"""Cross-covariances of two projections of the features, and their approximate power normalisation:
the heads of SoT and So-ViT."""

import torch
from torch import Tensor, nn

from covpool.pooling import channel_reduction
from covpool.poolings.base import Pooling, PoolingModule, power, quotient, require


def cross_covariance(first: Tensor, second: Tensor, *, as_published: bool = False) -> Tensor:
    """W̄ R̄ᵀ / N of features (*, p, N) and (*, q, N), each channel without its mean.

    Args:
        as_published: subtract the mean of all channels from each, as SoT's code does.
    """
    dims = (-2, -1) if as_published else (-1,)
    first = first - first.mean(dims, keepdim=True)
    second = second - second.mean(dims, keepdim=True)
    return first @ second.mT / first.shape[-1]


class SingularValuePower(nn.Module):
    """svPN: the largest singular value to the power α, the others divided by σ₁^(1 − α).

    u = Mv₀/‖Mv₀‖, v = Mᵀu/‖Mᵀu‖ and s = uᵀMv approximate the largest triplet by steps from a
    learned v₀; M₁ = M − s u vᵀ; the result is s^α u vᵀ + M₁/(s^(1 − α) + ε). With several singular
    values, M is deflated again, always from v₀, and the rest is divided by the last s.

    One step gives about 0.75 σ₁ of a random 24 × 24 matrix.

    Args:
        columns: q of matrices (*, p, q), the length of v₀.
        exponent: α.
        singular_values: how many are taken off.
        iterations: steps for each.
    """

    def __init__(
        self,
        columns: int,
        *,
        exponent: float = 0.5,
        singular_values: int = 1,
        iterations: int = 1,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        require(0 < exponent <= 1, "exponent", "in (0, 1]", exponent)
        for name, value in (("singular_values", singular_values), ("iterations", iterations)):
            whole = isinstance(value, int) and value >= 1
            require(whole, name, "a whole number of at least 1", value)
        self.exponent, self.epsilon = exponent, epsilon
        self.singular_values, self.iterations = singular_values, iterations
        self.start = nn.Parameter(torch.randn(columns))

    def forward(self, matrix: Tensor) -> Tensor:
        result, rest, value = torch.zeros_like(matrix), matrix, torch.zeros_like(matrix)
        for _ in range(self.singular_values):
            right = self.start.to(matrix.dtype)[:, None]
            left = right
            for _ in range(self.iterations):
                left, _ = _unit(rest @ right)
                right, value = _unit(rest.mT @ left)
            direction = left @ right.mT
            rest = rest - value * direction
            result = result + power(value, self.exponent) * direction
        return result + rest / (power(value, 1 - self.exponent) + self.epsilon)


def _unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors (*, n, 1) over their length, or zero, and that length (*, 1, 1)."""
    length = power(vector.square().sum((-2, -1), keepdim=True), 0.5)
    return quotient(vector, length), length


class MultiHead(PoolingModule):
    """SoT's head: cross-covariances of several heads, and the class token beside them.

    The tokens are projected to 2 · heads · d features, W and R of each head; W̄ᵀR̄/N (d × d) is
    normalised by svPN (`normalise`), all heads with one v₀, and dropped out.

    Args:
        channels: C.
        heads: how many.
        head_channels: d.
        drop_rate: dropout of the vector.
        as_published: centre by one number for each head and sample.
        token_features: length of the class token, which stands first in the vector; 0: none.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 6,
        head_channels: int = 24,
        drop_rate: float = 0.5,
        as_published: bool = False,
        token_features: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("heads", heads), ("head_channels", head_channels)):
            whole = isinstance(value, int) and value >= 1
            require(whole, name, "a whole number of at least 1", value)
        require(0 <= drop_rate < 1, "drop_rate", "in [0, 1)", drop_rate)
        self.least_positions = 1 if as_published else 2
        self.shape = (2, heads, head_channels)
        self.as_published = as_published
        self.project = nn.Linear(channels, 2 * heads * head_channels, bias=False)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        self.normalise = SingularValuePower(head_channels)
        self.drop = nn.Dropout(drop_rate)
        self.out_features = heads * head_channels**2 + token_features

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        tokens = self.project(x.flatten(2).mT).mT.unflatten(1, self.shape)
        first, second = tokens.unbind(1)
        crossed = cross_covariance(first, second, as_published=self.as_published)
        return beside(token, self.drop(self.normalise(crossed).flatten(1)))


class TwoReductions(PoolingModule):
    """So-ViT's head: the cross-covariance of two reductions, and the class token beside it.

    Each reduction is a 1×1 convolution, batch norm and ReLU.

    Args:
        channels: C.
        first: p channels of the one.
        second: q of the other.
        drop_rate: dropout of the vector.
        token_features: as for `MultiHead`.
    """

    least_positions = 2

    def __init__(
        self,
        channels: int,
        *,
        first: int = 64,
        second: int = 48,
        drop_rate: float = 0.5,
        token_features: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("first", first), ("second", second)):
            whole = isinstance(value, int) and value >= 1
            require(whole, name, "a whole number of at least 1", value)
        require(0 <= drop_rate < 1, "drop_rate", "in [0, 1)", drop_rate)
        self.first = channel_reduction(channels, first)
        self.second = channel_reduction(channels, second)
        self.normalise = SingularValuePower(first)
        self.drop = nn.Dropout(drop_rate)
        self.out_features = first * second + token_features

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        crossed = cross_covariance(self.second(x).flatten(2), self.first(x).flatten(2))
        return beside(token, self.drop(self.normalise(crossed).mT.flatten(1)))


def beside(token: Tensor | None, vector: Tensor) -> Tensor:
    """The class token (B, T) and the vector in one."""
    return vector if token is None else torch.cat([token.to(vector.dtype), vector], 1)


_SUM = (
    "The published head adds the logits of two linear classifiers, of the class token and of the "
    "vector: one classifier of both, side by side, is the same function. Without a class token, "
    "the vector alone."
)

CROSS: tuple[Pooling, ...] = (
    Pooling(
        name="sot",
        representation="cross-covariance of projected tokens, by heads",
        normalisation="svPN",
        regulariser="dropout",
        make=MultiHead,
        reduced=False,
        class_token=True,
        paper="Xie, Zeng, Wang, Zhou, Li: SoT: delving deeper into classification head for "
        "transformer, 2021 (arXiv 2104.10935 v2)",
        description="cross-covariances of several heads beside the class token",
        caution="As published this centres by one number for each head; here each channel by its "
        "mean, and as_published=True reproduces the other. " + _SUM,
    ),
    Pooling(
        name="so-vit",
        representation="cross-covariance of two reductions",
        normalisation="svPN",
        regulariser="dropout",
        make=TwoReductions,
        reduced=False,
        class_token=True,
        paper="Xie, Zeng, Wang, Zhou, Li: So-ViT: mind visual tokens for vision transformer, 2021 "
        "(arXiv 2104.10935 v1)",
        description="the cross-covariance of two reductions beside the class token",
        caution=_SUM,
    ),
)
