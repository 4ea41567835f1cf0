"""Changes of a backbone's stages: the stride of the last one, and which is the last."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def set_last_stride(backbone: nn.Module, name: str, stride: int) -> None:
    """Give the last stage of a ResNet stride 1, as MPN-COV's have: 14×14 positions at 224×224.

    Strided convolutions of the first block of `layer4` get stride 1, and its pooling that halves
    the map is left out, with no dilation (timm's `output_stride` dilates). No parameter changes.

    Raises:
        ValueError: a stride other than 1, or a backbone without such a stage.
    """
    if stride != 1:
        raise ValueError(
            f"last_stride must be 1, or None to leave the backbone as is; got {stride}"
        )
    stage = getattr(backbone, "layer4", None)
    if not isinstance(stage, nn.Sequential):
        raise ValueError(
            f"backbone {name!r} has no stage layer4 whose stride could be set: last_stride=1 is "
            "for ResNets (resnet, resnext, wide_resnet, seresnet, resnest, res2net, …); some other "
            "families take timm's output_stride=16, which dilates: pass it in place of last_stride"
        )
    changed = False
    for parent in list(stage[0].modules()):
        for key, layer in list(parent.named_children()):
            if getattr(layer, "stride", 1) in (1, (1,), (1, 1)):
                continue
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
            elif isinstance(layer, nn.AvgPool2d) and layer.padding == 1:
                layer.stride = 1  # a 3×3 average that keeps the size without its stride
            elif next(layer.parameters(), None) is None:
                setattr(parent, key, nn.Identity())
            else:
                continue
            changed = True
    if not changed:
        raise ValueError(
            f"backbone {name!r}: its last stage has stride 1 already (output_stride does that); "
            "pass last_stride or output_stride, not both"
        )


def keep_stages(backbone: nn.Module, name: str, stage: int) -> None:
    """Leave out what follows a stage, so that its output is what is pooled.

    Earlier stages have more positions and fewer channels: at 64×64 the stage at stride 16 of an
    EfficientNet has 4×4 positions of 112 channels where its last has 2×2 of 1280. Stages are those
    of timm's `feature_info`, counted from 0. Layers that prepare the last features for the
    classifier (a closing norm or convolution) are left out too.

    Raises:
        ValueError: a stage that the backbone does not have, or a backbone that cannot be cut.
    """
    source: Any = backbone  # whose attributes nn.Module does not declare
    prune = getattr(backbone, "prune_intermediate_layers", None)
    stages: Sequence[Any] = list(getattr(backbone, "feature_info", ()))
    if prune is None or not stages or not isinstance(stages[0], dict):
        raise ValueError(
            f"backbone {name!r} cannot be cut after a stage (timm gives it no "
            "prune_intermediate_layers); leave feature_stage out"
        )
    if not 0 <= stage < len(stages):
        told = ", ".join(
            f"{number} ({info['num_chs']} channels, stride {info['reduction']})"
            for number, info in enumerate(stages)
        )
        raise ValueError(f"backbone {name!r} has no stage {stage}; feature_stage is one of {told}")
    prune([stage], prune_norm=True, prune_head=True)
    source.num_features = stages[stage]["num_chs"]
