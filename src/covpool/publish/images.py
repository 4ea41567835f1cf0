"""The images on which exported files are compared with the network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from covpool.data import DataError, Preprocessing, load_image, open_images
from covpool.data.folders import image_files
from covpool.train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images as the network's input, (B, channels, H, W), and where they are from."""

    images: Tensor
    source: str


def sample_of_files(paths: Sequence[Path], preprocessing: Preprocessing, number: int) -> Sample:
    """Up to `number` images out of files and folders, evenly spread.

    Raises:
        ValueError, OSError: no such file, no images, or one that cannot be read.
    """
    for path in paths:
        if not path.exists():
            raise ValueError(f"--images {path} does not exist; give image files or folders")
    files = image_files(paths)
    preprocessing = replace(preprocessing, views="center")
    files = [files[index] for index in _spread(len(files), number)]
    images = torch.stack([load_image(file, preprocessing) for file in files])
    return Sample(images=images, source="given by --images")


def sample_of_run(config: RunConfig, preprocessing: Preprocessing, number: int) -> Sample:
    """Up to `number` test images of a run, evenly spread over the classes.

    Raises:
        ValueError: they cannot be opened; the message says what to give instead.
    """
    data = replace(config.data, views="center")  # a file takes one view at a time
    try:
        splits = open_images(data, preprocessing=preprocessing)
    except (DataError, OSError) as error:
        raise ValueError(
            f"the run's test images, to compare the exported files on, cannot be read ({error}); "
            "give others by --images FOLDER, or --formats safetensors"
        ) from error
    chosen = _spread(len(splits.test), number)
    images = torch.stack([splits.test[index][0] for index in chosen])
    return Sample(images=images, source=f"{config.data.evaluated_split} of {splits.name}")


def _spread(available: int, number: int) -> list[int]:
    """Up to `number` indices below `available`, evenly spaced."""
    count = min(available, number)
    return [index * available // count for index in range(count)]
