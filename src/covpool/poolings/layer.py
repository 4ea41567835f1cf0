"""`Pool2d`: a row of `POOLINGS` as a layer."""

import torch
from torch import Tensor, nn

from covpool.linalg import checks
from covpool.linalg.checks import require_integer
from covpool.linalg.methods import Method
from covpool.linalg.names import PoolingName
from covpool.linalg.precision import full_precision
from covpool.linalg.transforms import as_leaf
from covpool.pooling import ONE_POSITION, channel_reduction
from covpool.poolings.base import Pooling
from covpool.poolings.table import get_pooling


class Pool2d(nn.Module):
    """Any pooling as a layer: (B, C, H, W) → (B, `out_features`).

    1×1 convolution, batch norm and ReLU to `reduced_channels`, if given, then the pooling. In
    graphs of torch.fx (torchvision's feature extractor) it is one node. Half precision, under
    autocast too, is pooled in float32 and comes back in the input's dtype.

    Args:
        in_channels: C of the input.
        pooling: a name of `POOLINGS`, a row, which `replace` gives with other constants, or a row
            of `METHODS`.
        reduced_channels: channels that are pooled; None pools the input's own.
        token_features: length of the class tokens (B, T) that `forward` is given beside the
            features; 0: none. For poolings with `class_token`.

    Raises:
        ValueError: a number of channels that is not whole or below 1, an unknown pooling, a
            constant out of its range, a class token for a pooling without; in `forward`, another
            shape than (B, in_channels, H, W), one position alone where nothing depends on it.

    Source: the row's `paper`.

    >>> import torch, covpool
    >>> layer = covpool.Pool2d(512, "dropcov", reduced_channels=64)
    >>> layer(torch.randn(8, 512, 7, 7)).shape
    torch.Size([8, 2080])
    """

    def __init__(
        self,
        in_channels: int,
        pooling: PoolingName | Method | Pooling,
        reduced_channels: int | None = None,
        *,
        token_features: int = 0,
    ) -> None:
        super().__init__()
        require_integer("Pool2d: in_channels", in_channels, 1)
        require_integer("Pool2d: token_features", token_features, 0)
        if reduced_channels is not None:
            require_integer("Pool2d: reduced_channels", reduced_channels, 1)
        self.row = get_pooling(pooling)
        if token_features and not self.row.class_token:
            raise ValueError(
                f"Pool2d: pooling {self.row.name!r} takes no class token, got token_features "
                f"{token_features}"
            )
        self.in_channels, self.token_features = in_channels, token_features
        self.reduction = channel_reduction(in_channels, reduced_channels)
        try:
            self.pooling = self.row.build(reduced_channels or in_channels, token_features)
        except ValueError as error:
            raise ValueError(f"pooling {self.row.name!r}: {error}") from error

    @property
    def out_features(self) -> int:
        """The length of the vector."""
        return self.pooling.out_features

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        leaf = as_leaf(self, x, *([] if token is None else [token]))
        if leaf is not None:
            return leaf
        self._check(x, token)
        features = self.reduction(x)
        dtype = torch.promote_types(features.dtype, torch.float32)
        extra = () if token is None else (token.to(dtype),)
        with full_precision(features):
            return self.pooling(features.to(dtype), *extra).to(features.dtype)

    def _check(self, x: Tensor, token: Tensor | None) -> None:
        checks.floating("Pool2d", x)
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"Pool2d needs features (B, {self.in_channels}, H, W), got {tuple(x.shape)}"
            )
        if x.shape[2] * x.shape[3] < self.pooling.least_positions:
            raise ValueError(f"Pool2d: {ONE_POSITION}; got features {tuple(x.shape)}")
        weight = next(self.pooling.parameters(), None)
        if weight is not None and weight.dtype != torch.promote_types(weight.dtype, torch.float32):
            raise ValueError(
                f"Pool2d: the weights of pooling {self.row.name!r} are {weight.dtype}, in which it "
                "is not computed; keep them in float32 by layer.pooling.float(), or use autocast"
            )
        given = 0 if token is None else token.shape[-1]
        if given != self.token_features:
            raise ValueError(
                f"Pool2d is made for class tokens of {self.token_features} numbers (0: none), got "
                f"{given}; token_features sets that"
            )

    def extra_repr(self) -> str:
        constants = "".join(f", {name}={value}" for name, value in self.row.chosen.items())
        return f"pooling={self.row.name!r}{constants}, out_features={self.out_features}"
