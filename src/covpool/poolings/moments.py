"""Moment Probing's head: cross-covariances of neighbouring heads, convolved, and a first moment."""

from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from covpool.poolings.base import Pooling, PoolingModule, require
from covpool.poolings.cross import beside, cross_covariance


class CrossCovariances(PoolingModule):
    """MHC³: tokens → heads, cross-covariances of neighbours, two convolutions, and a first moment.

    The tokens are projected to heads · d features, each head through one layer norm; of the
    heads − 1 neighbouring pairs H_kᵀH_(k+1)/N is taken, centred, each column of length 1. As the
    channels of a map they go through two 3 × 3 convolutions of stride 2 with a GELU between.

    Args:
        channels: C.
        heads: at least 2.
        head_channels: d, at least 7.
        as_published: centre by one number for each head and sample, which is 0 but for rounding
            after the layer norm: an uncentred second moment.
        token_features: length of the class token, which is the first moment and stands first in
            the vector; 0: the mean over positions is.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 4,
        head_channels: int = 128,
        as_published: bool = False,
        token_features: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("heads", heads, 2), ("head_channels", head_channels, 7)):
            whole = isinstance(value, int) and value >= least
            require(whole, name, f"a whole number of at least {least}", value)
        self.shape = (heads, head_channels)
        self.as_published = as_published
        self.project = nn.Linear(channels, heads * head_channels)
        self.norm = nn.LayerNorm(head_channels)
        pairs = heads - 1
        self.convolutions = nn.ModuleList(
            nn.Conv2d(pairs, pairs, kernel_size=3, stride=2, bias=False) for _ in range(2)
        )
        side = head_channels
        for _ in self.convolutions:
            side = (side - 3) // 2 + 1
        self.out_features = pairs * side**2 + (token_features or channels)

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        features = x.flatten(2)
        tokens = self.norm(self.project(features.mT).unflatten(-1, self.shape))
        by_head = tokens.permute(0, 2, 3, 1)
        crossed = cross_covariance(by_head[:, :-1], by_head[:, 1:], as_published=self.as_published)
        first, second = self.convolutions
        convolved = second(gelu(first(normalize(crossed, dim=2))))
        return beside(features.mean(-1) if token is None else token, convolved.flatten(1))


MOMENTS: tuple[Pooling, ...] = (
    Pooling(
        name="moment-probing",
        representation="cross-covariances of neighbouring heads, and a first moment",
        normalisation="columns of length 1, two convolutions",
        make=CrossCovariances,
        reduced=False,
        class_token=True,
        paper="Gao, Wang, Lin, Zhu, Hu, Zhou: Tuning pre-trained model via moment probing, "
        "ICCV 2023",
        description="MHC³ beside the class token, or the mean where there is none",
        caution="As published this centres by one number for each head, which after the layer norm "
        "is no centring; here each channel by its mean, and as_published=True reproduces the "
        "other. The published head averages the logits of two classifiers: one of both is the same "
        "function. Meant for frozen backbones. ConvNeXts have a further layer norm there.",
    ),
)
