"""Mixup and CutMix of training batches, by timm."""

from timm.data.mixup import Mixup

from covpool.data.keywords import keywords, made_by_timm
from covpool.train.config import RunConfig

MODES = ("batch", "pair", "elem")
"""What timm's `Mixup` knows; any other word would be taken for the first."""

OURS = ("mixup_alpha", "cutmix_alpha", "label_smoothing", "num_classes", "multi_label")


def make_mixup(config: RunConfig, classes: int) -> Mixup | None:
    """timm's mixing of a batch; None where the configuration has none.

    It changes the images in place, draws from NumPy's generator, and gives each image's shares of
    the classes, (B, classes), without the smoothing that the loss adds.

    Raises:
        ValueError: options that it does not take.
    """
    data = config.data
    if not (data.mixup or data.cutmix):
        return None
    options = keywords("data.mixup_options", data.mixup_options, Mixup, ours=OURS)
    if options.get("mode", "batch") not in MODES:
        raise ValueError(
            f"data.mixup_options.mode must be one of {', '.join(MODES)}, not {options['mode']!r}"
        )
    with made_by_timm(f"data.mixup of data.mixup_options {data.mixup_options}"):
        return Mixup(
            mixup_alpha=data.mixup,
            cutmix_alpha=data.cutmix,
            label_smoothing=0.0,
            num_classes=classes,
            **options,
        )
