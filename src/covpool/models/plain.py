"""Backbones that timm does not have: AlexNet, and a small network for small images.

They answer to what this package uses of timm's interface: `forward_features`, `num_features`,
`pretrained_cfg`, `group_matcher`.
"""

from itertools import pairwise
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import adapt_input_conv
from torch import Tensor, nn

SMALL_CONVNET = "small-convnet"
ALEXNET = "alexnet"


class PlainBackbone(nn.Module):
    """A sequence of layers, `features`, from images (B, in_chans, H, W) to (B, C, H', W')."""

    def __init__(
        self, features: nn.Sequential, num_features: int, pretrained_cfg: dict[str, Any]
    ) -> None:
        super().__init__()
        self.features = features
        self.num_features = num_features
        self.pretrained_cfg = pretrained_cfg

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"blocks": r"^features\.(\d+)"}


class SmallConvNet(PlainBackbone):
    """Three 3×3 convolutions for images of about 48×48, trained from scratch within a minute.

    Convolution + batch norm + ReLU three times, max-pooling by 2 after the first two, so that the
    map has a quarter of the image's height and width: (B, in_chans, 48, 48) → (B, width, 12, 12).
    Few channels and many positions: a covariance of full rank.

    Args:
        in_chans: channels of the images.
        width: channels of the feature map; the layers have width/2, width, width.

    Raises:
        ValueError: width below 1.
    """

    def __init__(self, in_chans: int = 3, width: int = 32) -> None:
        if width < 1:
            raise ValueError(f"{SMALL_CONVNET}: width must be at least 1, got {width}")
        channels = (in_chans, (width + 1) // 2, width, width)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(channels)):
            convolution = nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if index < 2:
                layers.append(nn.MaxPool2d(2))
        super().__init__(
            nn.Sequential(*layers),
            num_features=width,
            pretrained_cfg={
                "architecture": SMALL_CONVNET,
                "input_size": (in_chans, 48, 48),
                "first_conv": "features.0",
            },
        )
        # A quarter faster on one core; results in either format are equal up to rounding.
        self.to(memory_format=torch.channels_last)


def alexnet(in_chans: int, pretrained: bool) -> PlainBackbone:
    """torchvision's AlexNet up to its last convolution.

    Without the last max-pooling the map is (256, 13, 13) at 224×224, as in the paper; with it, it
    would be (256, 6, 6), whose covariance has rank 35 at most.

    Args:
        in_chans: channels of the images; pretrained filters of the first layer are adapted as timm
            does for its own models.
        pretrained: whether to load torchvision's ImageNet weights.
    """
    from torchvision import models

    weights = models.AlexNet_Weights.IMAGENET1K_V1 if pretrained else None
    features = models.alexnet(weights=weights).features[:-1]
    if in_chans != 3:
        old: Any = features[0]
        new = nn.Conv2d(in_chans, 64, kernel_size=11, stride=4, padding=2)
        if pretrained:
            weight = adapt_input_conv(in_chans, old.weight.detach())
            new.load_state_dict({"weight": weight, "bias": old.bias.detach()})
        features[0] = new
    cfg = {
        "architecture": ALEXNET,
        "input_size": (in_chans, 224, 224),
        "interpolation": "bilinear",
        "crop_pct": 224 / 256,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "features.0",
    }
    return PlainBackbone(features, num_features=256, pretrained_cfg=cfg)
