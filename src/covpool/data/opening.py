"""`open_images`: from a configuration to the two splits, whatever the layout."""

import difflib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from covpool.data.archives import ArchiveContents, embedded_typefaces, read_archive
from covpool.data.config import DataConfig, DataError
from covpool.data.dataset import RESIZE_RATIO, Arrays, Files, Images, Preprocessing
from covpool.data.folders import read_folder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's channels, which pretrained networks expect (torchvision)."""

DEFAULT_SIZE = 224

logger = logging.getLogger("covpool")


@dataclass(frozen=True, kw_only=True)
class ImageSplits:
    """A data set, ready to train and test on.

    Attributes:
        name: for messages and file names.
        classes: class names; a label is an index into them.
        train: indexed by (epoch, number), augmented.
        test: indexed by number.
        preprocessing: how an image becomes the network's input.
        skipped: a line for each damaged file that was left out.
        notes: lines that the user should see (a split that was made, files that were left out).
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    preprocessing: Preprocessing
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
    path = embedded_typefaces() if config.root is None else Path(config.root).expanduser()
    if not path.exists():
        raise DataError(f"data.root {config.root!r} does not exist; {_remedy(path)}")
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise DataError(
                f"data.root {config.root!r} is a file; give a folder of class folders, or an .npz "
                "archive"
            )
        return _from_archive(path, config, seed, preprocessing)
    return _from_folder(path, config, seed, preprocessing, progress)


def _remedy(missing: Path) -> str:
    siblings = missing.parent.iterdir() if missing.parent.is_dir() else ()
    near = difflib.get_close_matches(missing.name, [entry.name for entry in siblings], n=1)
    if near:
        return f"did you mean {str(missing.parent / near[0])!r}?"
    return "give a folder of class folders"


def _from_archive(
    path: Path, config: DataConfig, seed: int, preprocessing: Preprocessing | None
) -> ImageSplits:
    contents: ArchiveContents = read_archive(path)
    train, test = contents.train[0], contents.test[0]
    channels = train.shape[1] if config.channels == "auto" else config.channels
    if preprocessing is not None:
        channels = preprocessing.channels
    train, test = _with_channels(train, channels), _with_channels(test, channels)
    if preprocessing is None:
        own = min(train.shape[-2:])
        sample = train[:: max(1, len(train) // 2000)].to(torch.float32) / 255
        std, mean = torch.std_mean(sample, dim=(0, 2, 3))
        size = config.image_size or own
        preprocessing = Preprocessing(
            channels=channels,
            image_size=size,
            resize=size,
            mean=tuple(round(value, 4) for value in mean.tolist()),
            std=tuple(round(max(value, 1 / 255), 4) for value in std.tolist()),
        )
    augment = "shift" if config.augment == "auto" else config.augment
    return ImageSplits(
        name="typefaces" if config.root is None else path.stem,
        classes=contents.classes,
        train=Images(Arrays(train), contents.train[1], preprocessing, augment=augment, seed=seed),
        test=Images(Arrays(test), contents.test[1], preprocessing),
        preprocessing=preprocessing,
    )


def _with_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    # ITU-R 601-2 luma, as Pillow's conversion to grey.
    weights = torch.tensor([299.0, 587.0, 114.0])[None, :, None, None] / 1000
    return (images * weights).sum(1, keepdim=True).round().to(torch.uint8)


def _from_folder(
    path: Path,
    config: DataConfig,
    seed: int,
    preprocessing: Preprocessing | None,
    progress: Callable[[int, int], None] | None,
) -> ImageSplits:
    contents = read_folder(path, config, progress)
    if preprocessing is None:
        channels = config.channels
        if channels == "auto":
            channels = 1 if contents.grey else 3
        size = config.image_size or DEFAULT_SIZE
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if channels == 1:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        preprocessing = Preprocessing(
            channels=channels,
            image_size=size,
            resize=round(size * RESIZE_RATIO),
            mean=mean,
            std=std,
        )
    notes = [contents.note] if contents.note else []
    if contents.skipped:
        notes.append(f"left out {len(contents.skipped)} damaged file(s):")
        notes += [f"  {line}" for line in contents.skipped]
    if contents.ignored:
        notes.append(f"passed over {contents.ignored} file(s) that are no images by their ending")
    for note in notes:
        logger.warning("%s", note)
    augment: Any = "crop" if config.augment == "auto" else config.augment
    files = {
        split: Files(paths, preprocessing.channels)
        for split, (paths, _) in (("train", contents.train), ("test", contents.test))
    }
    return ImageSplits(
        name=path.resolve().name,
        classes=contents.classes,
        train=Images(files["train"], contents.train[1], preprocessing, augment=augment, seed=seed),
        test=Images(files["test"], contents.test[1], preprocessing),
        preprocessing=preprocessing,
        skipped=contents.skipped,
        notes=tuple(notes),
    )
