"""`open_images`: from a configuration to the two splits, whatever the layout."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from covpool.data.archives import ArchiveContents
from covpool.data.augmentation import AUGMENTATIONS
from covpool.data.config import DataConfig, DataError, Evaluate
from covpool.data.dataset import Arrays, Images, Source
from covpool.data.layouts import read_layout
from covpool.data.listing import Listing, check_classes, check_listing
from covpool.data.preprocessing import RESIZE_RATIO, Preprocessing
from covpool.data.selection import (
    AnySource,
    Labelled,
    drop_duplicates,
    hold_out_test,
    hold_out_validation,
    select_classes,
)
from covpool.text import printable

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's channels, which pretrained networks expect (torchvision)."""

DEFAULT_SIZE = 224

STATISTICS_IMAGES = 2000
"""How many images an archive's mean and deviation are of, about."""

logger = logging.getLogger("covpool.data")


@dataclass(frozen=True, kw_only=True)
class ImageSplits:
    """A data set, ready to train and test on.

    Attributes:
        name: for messages and file names.
        classes: class names; a label is an index into them.
        train: indexed by (epoch, number), augmented.
        test: what is evaluated, indexed by number.
        preprocessing: how an image becomes the network's input.
        evaluated: test, or validation where `test` holds images held out of the training split.
        skipped: a line for each damaged file that was left out.
        notes: lines that the user should see (a split that was made, files that were left out).
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    preprocessing: Preprocessing
    evaluated: Evaluate = "test"
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return self.preprocessing.channels

    @property
    def image_size(self) -> int:
        return self.preprocessing.image_size


def open_images(
    config: DataConfig,
    *,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSplits:
    """Open the images that a configuration names.

    Args:
        config: where they are and how they are read.
        seed: of the training images' augmentation.
        preprocessing: a trained network's, to evaluate it on other images; None derives it from
            the configuration and the images.
        progress: called with (files read, files in all) while files are checked.

    Raises:
        DataError: what cannot be used as it is, by name, and what to do about it.
    """
    name, contents = read_layout(config, progress)
    if isinstance(contents, Listing):
        return _from_listing(contents, config, seed, preprocessing, progress)
    title = name if config.root is None else Path(config.root).stem
    return _from_archive(title, contents, config, seed, preprocessing, progress)


def _from_archive(
    title: str,
    contents: ArchiveContents,
    config: DataConfig,
    seed: int,
    preprocessing: Preprocessing | None,
    progress: Callable[[int, int], None] | None,
) -> ImageSplits:
    for split, (_, labels) in (("train", contents.train), ("test", contents.test)):
        check_classes(str(config.root or title), contents.classes, split, labels)
    train, test = ((Arrays(images), labels) for images, labels in (contents.train, contents.test))
    classes, train, test, notes = select_classes(contents.classes, train, test, config)
    assert test is not None
    train, test, more = _evaluated(classes, train, test, config, progress)
    grey = contents.train[0].shape[1] == 1
    channels = _channels(config, grey) if preprocessing is None else preprocessing.channels
    train, test = _with_channels(train, channels), _with_channels(test, channels)
    if preprocessing is None:
        mean, std = train[0].statistics(about=STATISTICS_IMAGES)
        preprocessing = _preprocessing(
            config,
            channels,
            config.image_size or min(train[0].images.shape[-2:]),
            resize_ratio=1,
            mean=tuple(round(value, 4) for value in mean),
            std=tuple(round(max(value, 1 / 255), 4) for value in std),
        )
    return _splits(
        title,
        classes,
        train,
        test,
        replace(preprocessing, views=config.views),
        config,
        seed,
        augment="shift",
        notes=[*notes, *more],
    )


def _evaluated(
    classes: tuple[str, ...],
    train: Labelled[AnySource],
    test: Labelled[AnySource],
    config: DataConfig,
    progress: Callable[[int, int], None] | None,
) -> tuple[Labelled[AnySource], Labelled[AnySource], list[str]]:
    """Training images, those that the configuration has evaluated, and notes."""
    notes = []
    if config.evaluate == "validation":
        train, test, note = hold_out_validation(classes, train, config)
        notes.append(note)
    if config.drop_duplicates:
        test, note = drop_duplicates(classes, train, test, config, progress)
        notes.append(note)
    return train, test, notes


def _with_channels(labelled: Labelled[AnySource], channels: int) -> Labelled[AnySource]:
    source, labels = labelled
    return source.with_channels(channels), labels


def _from_listing(
    listing: Listing,
    config: DataConfig,
    seed: int,
    preprocessing: Preprocessing | None,
    progress: Callable[[int, int], None] | None,
) -> ImageSplits:
    def choose(grey: bool) -> Preprocessing:
        if preprocessing is not None:
            return replace(preprocessing, views=config.views)
        channels = _channels(config, grey)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if channels == 1:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        size = config.image_size or DEFAULT_SIZE
        return _preprocessing(config, channels, size, RESIZE_RATIO, mean, std)

    # Options that do not fit are refused before files are read, which may take long.
    classes, train, test, notes = select_classes(
        listing.classes, listing.train, listing.test, config
    )
    listing = replace(listing, classes=classes, train=train, test=test)
    augment = "crop" if config.augment == "auto" else config.augment
    AUGMENTATIONS[augment](choose(grey=False), config.augment_options)
    checked = check_listing(listing, config, progress)
    chosen = choose(checked.grey)
    train, test = checked.train, checked.test
    if test is None:
        assert listing.root is not None
        train, test, note = hold_out_test(classes, train, listing.root, config)
        notes.append(note)
    train, test, more = _evaluated(classes, train, test, config, progress)
    notes += more
    if checked.skipped:
        notes.append(f"left out {len(checked.skipped)} damaged file(s):")
        notes += [f"  {line}" for line in checked.skipped]
    notes += [f"passed over {count} {what}" for what, count in listing.passed_over.items() if count]
    splits = _splits(
        listing.name,
        classes,
        _with_channels(train, chosen.channels),
        _with_channels(test, chosen.channels),
        chosen,
        config,
        seed,
        augment="crop",
        notes=notes,
    )
    return replace(splits, skipped=checked.skipped)


def _channels(config: DataConfig, grey: bool) -> int:
    if config.channels != "auto":
        return config.channels
    colour = config.augment == "timm" or 3 in (len(config.mean or ()), len(config.std or ()))
    return 1 if grey and not colour else 3


def _preprocessing(
    config: DataConfig,
    channels: int,
    image_size: int,
    resize_ratio: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Preprocessing:
    """The options' preprocessing, and what is given here where they leave it open."""
    resize = config.resize
    if resize is None:
        resize = round(image_size * resize_ratio)
    elif not isinstance(resize, int):
        resize = (resize[0], resize[-1])
    return Preprocessing(
        channels=channels,
        image_size=image_size,
        resize=resize,
        mean=_per_channel("mean", config.mean, channels) or mean,
        std=_per_channel("std", config.std, channels) or std,
        views=config.views,
    )


def _per_channel(
    name: str, values: tuple[float, ...] | None, channels: int
) -> tuple[float, ...] | None:
    if values is None or len(values) == channels:
        return values and tuple(values)
    if len(values) == 1:
        return tuple(values) * channels
    raise DataError(
        f"data.{name} has {len(values)} values, and the images have {channels} channel; give one, "
        "or read the images in colour by --data.channels 3"
    )


def _splits(
    name: str,
    classes: tuple[str, ...],
    train: tuple[Source, list[int]],
    test: tuple[Source, list[int]],
    preprocessing: Preprocessing,
    config: DataConfig,
    seed: int,
    *,
    augment: str,
    notes: Sequence[str],
) -> ImageSplits:
    """Both splits as inputs; the augmentation is what is given here where the options leave it."""
    notes = [printable(note) for note in notes]
    for note in notes:
        logger.warning("%s", note)
    return ImageSplits(
        name=printable(name),
        classes=classes,
        train=Images(
            *train,
            preprocessing,
            augment=augment if config.augment == "auto" else config.augment,
            augment_options=config.augment_options,
            erasing=(config.random_erasing, config.erasing_options),
            seed=seed,
        ),
        test=Images(*test, preprocessing),
        preprocessing=preprocessing,
        evaluated=config.evaluate,
        notes=tuple(notes),
    )
