"""Registration with timm: `timm.create_model("covpool_resnet50", num_classes=200)`.

One table of backbones and one loop. Any other backbone gets a covariance head from
`covpool.create_model`. Arguments are the same, but for two: `num_classes` is 1000 unless given
(0: no classifier), as timm has it, and timm drops arguments that are None, so that
`reduced_channels=None` counts as "auto" here.
"""

from collections.abc import Callable
from typing import Any

from timm.models import load_pretrained, register_model

from covpool.models.backbones import PREFIX
from covpool.models.factory import create_model
from covpool.models.network import CovPoolModel

REGISTERED: tuple[str, ...] = (
    "alexnet",
    "small-convnet",
    "vgg11_bn",
    "vgg16",
    "vgg16_bn",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet50d",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "seresnet50",
    "resnest50d",
    "res2net50_26w_4s",
    "densenet121",
    "densenet161",
    "regnety_008",
    "regnety_032",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "efficientnet_b3",
    "tf_efficientnet_lite0",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "convnextv2_tiny",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "deit3_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swin_base_patch4_window7_224",
)
"""The backbones that are registered, as covpool_NAME."""

SAVED_MODEL_SOURCES = ("hf-hub", "local-dir")
"""Where timm reads whole saved models from, rather than a backbone's weights."""


def _entry_point(backbone: str) -> Callable[..., CovPoolModel]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        num_classes: Any = None,
        **arguments: Any,
    ) -> CovPoolModel:
        # What timm's factory passes to its own builder, for which there is no use here.
        arguments.pop("pretrained_model_args", None)
        saved = isinstance(pretrained_cfg, dict) and (
            pretrained_cfg.get("source") in SAVED_MODEL_SOURCES
        )
        if saved:
            arguments.setdefault("in_chans", pretrained_cfg["input_size"][0])
        if num_classes is None:
            num_classes = int(pretrained_cfg["num_classes"]) if saved else 1000
        model = create_model(
            backbone,
            max(num_classes, 1),
            pretrained=pretrained and not saved,
            pretrained_cfg=None if saved else pretrained_cfg,
            **arguments,
        )
        if num_classes == 0:
            model.reset_classifier(0)
        if saved and pretrained:
            load_pretrained(model, pretrained_cfg, num_classes=num_classes, in_chans=model.in_chans)
        return model

    create.__name__ = create.__qualname__ = PREFIX + backbone.replace("-", "_")
    create.__doc__ = f"`covpool.create_model({backbone!r}, num_classes, …)`."
    return create


for _backbone in REGISTERED:
    _function = register_model(_entry_point(_backbone))
    globals()[_function.__name__] = _function
