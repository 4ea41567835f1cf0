"""The model of a configuration, for training and for prediction, which needs no Lightning."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from covpool.models import CovPoolModel, create_model
from covpool.train.config import RunConfig
from covpool.train.sampling import combine_seeds
from covpool.train.schedule import MethodSchedule


def build_model(
    config: RunConfig,
    schedule: MethodSchedule,
    *,
    classes: int,
    channels: int,
    image_size: int,
    pretrained: bool,
) -> CovPoolModel:
    """The model of a configuration, its weights drawn from the seed, tried on blank images.

    Raises:
        ValueError: the backbone cannot be built so, or cannot take images of this size.
    """
    choice = config.model
    torch.manual_seed(combine_seeds(config.train.seed))
    try:
        model = create_model(
            choice.backbone,
            classes,
            method=schedule.method_at(0),
            pretrained=pretrained,
            reduced_channels=choice.reduced_channels,
            last_stride=choice.last_stride,
            feature_stage=choice.feature_stage,
            hidden_features=choice.hidden_features,
            gap_reduction=choice.gap_reduction,
            in_chans=channels,
            image_size=image_size,
            drop_rate=choice.drop_rate,
            **choice.backbone_options,
        )
        with torch.no_grad():
            model.eval()(torch.zeros(2, channels, image_size, image_size))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"backbone {choice.backbone!r} with options {choice.backbone_options} cannot take "
            f"{image_size}×{image_size} images ({error}); choose another data.image_size, backbone "
            "or options"
        ) from error
    return model.train()


def single_valued_layers(model: CovPoolModel, channels: int, image_size: int) -> list[str]:
    """The names of the batch norms that see one value of each channel where the batch is one image:
    those after the pooling, and those on maps of one position."""
    found: list[str] = []

    def look(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            found.append(name)

    hooks = [
        layer.register_forward_pre_hook(partial(look, name))
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
    ]
    training = model.training
    weight = next(model.parameters())
    image = torch.zeros(1, channels, image_size, image_size).to(weight)
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found
