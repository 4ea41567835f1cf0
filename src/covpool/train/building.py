"""The model of a configuration, for training and for prediction, which needs no Lightning."""

import torch

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
            method=schedule.method_at(0) or "gap",
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
