"""`create_model`: a model by the name of its backbone."""

from collections.abc import Mapping
from typing import Any, Literal

from covpool.head import check_head
from covpool.linalg.methods import Method
from covpool.linalg.names import PoolingName
from covpool.models.backbones import load_backbone
from covpool.models.network import CovPoolModel
from covpool.poolings import Pooling, method_or_pooling


def create_model(
    backbone: str,
    num_classes: int,
    *,
    method: PoolingName | Method | Pooling = "exact",
    pretrained: bool = False,
    reduced_channels: int | Literal["auto"] | None = "auto",
    last_stride: int | None = None,
    feature_stage: int | None = None,
    hidden_features: int | Literal["matched"] | None = None,
    gap_reduction: bool = False,
    in_chans: int = 3,
    image_size: int | None = None,
    drop_rate: float = 0.0,
    method_constants: Mapping[str, Any] | None = None,
    **backbone_kwargs: Any,
) -> CovPoolModel:
    """An image classifier with covariance pooling.

    Args:
        backbone: a name of timm's with a spatial feature map ("resnet50", "resnet50.a1_in1k",
            "vit_small_patch16_224", …), "alexnet", or "small-convnet".
        num_classes: classes, at least 1 (`model.reset_classifier(0)` removes the classifier).
        method: the pooling: a name of `METHODS` or a row, which pools the square root of the
            covariance; a name of `POOLINGS` or a row, such as "gap", global average pooling of the
            backbone's features without reduction: the baseline.
        pretrained: load timm's (torchvision's for AlexNet) weights into the backbone.
        reduced_channels: channels after the 1×1 convolution. "auto": 256, the paper's, where the
            backbone has 256 or more, else no reduction; none for poolings that are published
            without (`POOLINGS[name].reduced`). A number is always obeyed; None means no reduction.
            Unused for "gap" without `gap_reduction`.
        last_stride: 1 sets the strides of a ResNet's last stage to 1, without dilation: MPN-COV's
            14×14 positions at 224×224. None leaves the backbone as it is.
        feature_stage: pool the output of this stage, counted from 0 as in timm's `feature_info`,
            and leave out what follows it: more positions and fewer channels. None: the last
            features.
        hidden_features: width of a hidden layer (linear, batch norm, ReLU) between the pooled
            vector and the classifier. "matched", for "gap" alone: the width with which the head
            has as many parameters as that of covariance pooling, so that the two can be compared
            without a difference in capacity. None: no such layer.
        gap_reduction: for "gap" alone: average what covariance pooling pools, the channels after
            the 1×1 convolution, batch norm and ReLU. The baseline that differs in the pooling and
            in nothing before it.
        in_chans: channels of the images.
        image_size: side of the images; None: the backbone's own. Needed where the backbone is
            built for one size (most transformers) and the images have another.
        drop_rate: dropout before the classifier, in [0, 1).
        method_constants: constants of the pooling, such as {"degree": 50} for "svd-taylor".
        **backbone_kwargs: arguments of timm's `create_model`, such as `output_stride`,
            `drop_path_rate`, `pretrained_cfg_overlay`; of `SmallConvNet`: `width`.

    Raises:
        ValueError: an unknown name or an argument out of its range.

    >>> import covpool, torch
    >>> model = covpool.create_model("small-convnet", num_classes=24, method="svd-pade", in_chans=1)
    >>> model(torch.rand(2, 1, 48, 48)).shape
    torch.Size([2, 24])
    """
    for name, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    check_head(
        method=method,
        reduced_channels=reduced_channels,
        hidden_features=hidden_features,
        gap_reduction=gap_reduction,
        drop_rate=drop_rate,
    )
    row = method_or_pooling(method)
    if method_constants:
        row = row.replace(**method_constants)
    body = load_backbone(
        backbone,
        pretrained=pretrained,
        in_chans=in_chans,
        image_size=image_size,
        last_stride=last_stride,
        feature_stage=feature_stage,
        **backbone_kwargs,
    )
    return CovPoolModel(
        body,
        num_classes,
        method=row,
        reduced_channels=reduced_channels,
        hidden_features=hidden_features,
        gap_reduction=gap_reduction,
        in_chans=in_chans,
        image_size=image_size,
        drop_rate=drop_rate,
    )
