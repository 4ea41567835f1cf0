"""From a picture's pixels to the network's input: sizes, views and standardisation."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from covpool.data.config import DataError, Views
from covpool.data.types import check_types, check_value

RESIZE_RATIO = 256 / 224
"""Evaluation: the shorter side is this much longer than the centre crop (the paper's recipe)."""

LARGEST_SIDE = 4096
"""Of the size from which crops are taken; with more a single image takes gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the network's input; stored with a checkpoint, so that it predicts.

    Attributes:
        channels: 1 or 3.
        image_size: side of the square input.
        resize: length of the shorter side before the crop, or (height, width).
        mean: subtracted from each channel of values in [0, 1].
        std: what each channel is divided by then.
        views: the parts of an image over which the evaluation averages, as in `DataConfig`.

    Raises:
        DataError: a size to which the crop does not fit.
        ValueError: a value of another type, or out of its range.
    """

    channels: int
    image_size: int
    resize: int | tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: Views = "center"

    def __post_init__(self) -> None:
        check_types("preprocessing", self)
        sides = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        if self.image_size < 1 or max(sides) > LARGEST_SIDE:
            raise DataError(
                f"data.image_size {self.image_size} and data.resize {_plain(self.resize)} must be "
                f"from 1 to {LARGEST_SIDE}"
            )
        numbers = {self.channels, len(self.mean), len(self.std)}
        if numbers not in ({1}, {3}) or min(self.std) <= 0:
            raise DataError(
                f"channels {self.channels} must be 1 or 3, and mean {list(self.mean)} and std "
                f"{list(self.std)} as many numbers, those of std above 0"
            )
        shorter = min(sides)
        if shorter < self.image_size:
            raise DataError(
                f"data.resize {_plain(self.resize)} is smaller than the crop, data.image_size "
                f"{self.image_size}; give at least {self.image_size}"
            )
        if self.views == "ten-crop" and self.resize in (
            self.image_size,
            (self.image_size, self.image_size),
        ):
            raise DataError(
                f"data.views ten-crop with data.resize {_plain(self.resize)} would take the same "
                f"crop five times; give a data.resize above data.image_size {self.image_size}, "
                "or data.views mirror"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` described, of this version or an earlier one.

        Raises:
            ValueError: an entry that is missing, unknown or not as it must be.
        """
        check_value("preprocessing", values, dict[str, Any])
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ValueError(f"preprocessing is of another version: {error}") from error

    def normalise(self, image: Tensor) -> Tensor:
        """(..., channels, H, W) uint8 → float32, standardised."""
        mean = torch.tensor(self.mean).mul_(255)[:, None, None]
        scale = torch.tensor(self.std).mul_(255).reciprocal_()[:, None, None]
        return image.to(torch.float32).sub_(mean).mul_(scale)

    def resized(self, image: Tensor) -> Tensor:
        """(channels, H, W) uint8 at the size from which crops are taken."""
        sides = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        if image.shape[-2:] == (sides[0], sides[-1]):
            return image
        from torchvision.transforms.v2 import functional as transforms

        return transforms.resize(image, sides, antialias=True)

    def centre(self, image: Tensor) -> Tensor:
        """Resize and centre crop, (channels, H, W) uint8 → (channels, image_size, image_size)."""
        size = self.image_size
        resized = self.resized(image)
        if resized.shape[-2:] == (size, size):
            return resized
        from torchvision.transforms.v2 import functional as transforms

        return transforms.center_crop(resized, [size, size])

    def __call__(self, image: Tensor) -> Tensor:
        """The evaluation transform of a picture, (channels, H, W) uint8.

        Returns:
            float32, (channels, image_size, image_size); with several views, which
            `average_over_views` takes, (views, channels, image_size, image_size).
        """
        return self.normalise(VIEWS[self.views].cut(self, image))


def _plain(resize: int | tuple[int, int]) -> str:
    return str(resize if isinstance(resize, int) else list(resize))


def _mirror(preprocessing: Preprocessing, image: Tensor) -> Tensor:
    centre = preprocessing.centre(image)
    return torch.stack([centre, centre.flip(-1)])


def _ten_crop(preprocessing: Preprocessing, image: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as transforms

    size = preprocessing.image_size
    return torch.stack(transforms.ten_crop(preprocessing.resized(image), [size, size]))


@dataclass(frozen=True)
class Cut:
    """How many views an image gives, and what takes them: (channels, H, W) → the views."""

    number: int
    cut: Callable[[Preprocessing, Tensor], Tensor]


VIEWS: Mapping[str, Cut] = {
    "center": Cut(1, Preprocessing.centre),
    "mirror": Cut(2, _mirror),
    "ten-crop": Cut(10, _ten_crop),
}
"""The parts of a picture that an evaluation sees, by the name that `data.views` takes."""


def average_over_views(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A model's logits, averaged over the views of each image, which go through it together.

    Args:
        model: (batch, channels, H, W) → (batch, classes).
        images: (batch, channels, H, W), or (batch, views, channels, H, W).
    """
    if images.ndim == 4:
        return model(images)
    return model(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
