"""Labelled images as the network's input, and where their pixels come from."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from covpool.data.augmentation import AUGMENTATIONS, Augmentation, Erasing
from covpool.data.preprocessing import Preprocessing
from covpool.data.reading import LARGEST_BYTES, open_file, read_image


class Source(Protocol):
    """Where raw images come from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """(channels, H, W) uint8."""
        ...

    def name(self, index: int) -> str:
        """What to call an image in messages: its path, where it is a file."""
        ...

    def marks(self, root: Path) -> Iterator[bytes]:
        """For each image, what tells it from others, wherever the root lies; cheap to find."""
        ...

    def content(self, index: int) -> bytes:
        """The image as it is stored: a file's bytes, or pixels."""
        ...

    def length(self, index: int) -> int | None:
        """How long its content is, where that is known without reading it."""
        ...

    def select(self, indices: Sequence[int]) -> Self:
        """Some of the images."""
        ...

    def with_channels(self, channels: int) -> Self:
        """The same images with 1 channel or with 3."""
        ...


class EncodedSource(Source, Protocol):
    """Raw images that are decoded when they are asked for."""

    def open(self, index: int) -> IO[bytes]:
        """The image as it is stored."""
        ...

    def content(self, index: int) -> bytes:
        with self.open(index) as file:
            return file.read()


@dataclass(frozen=True)
class Files(EncodedSource):
    """Images in files."""

    paths: list[str]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.paths[index], self.channels)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int) -> IO[bytes]:
        return open_file(self.paths[index], LARGEST_BYTES)

    def marks(self, root: Path) -> Iterator[bytes]:
        for path in self.paths:
            yield os.fsencode(Path(path).relative_to(root).as_posix())

    def length(self, index: int) -> int | None:
        return os.path.getsize(self.paths[index])

    def select(self, indices: Sequence[int]) -> Self:
        return replace(self, paths=[self.paths[index] for index in indices])

    def with_channels(self, channels: int) -> Self:
        return replace(self, channels=channels)


@dataclass(frozen=True)
class Arrays(Source):
    """Images in memory, (n, channels, H, W) uint8: all, or those of some numbers."""

    images: Tensor
    numbers: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.images if self.numbers is None else self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[self._number(index)]

    def _number(self, index: int) -> int:
        return index if self.numbers is None else self.numbers[index]

    def name(self, index: int) -> str:
        return f"image {self._number(index)}"

    def marks(self, root: Path) -> Iterator[bytes]:
        for index in range(len(self)):
            yield content_digest(self.content(index))

    def content(self, index: int) -> bytes:
        return self[index].numpy().tobytes()

    def length(self, index: int) -> int | None:
        return self.images.shape[1:].numel()

    def select(self, indices: Sequence[int]) -> Self:
        return replace(self, numbers=[self._number(index) for index in indices])

    def with_channels(self, channels: int) -> Self:
        if self.images.shape[1] == channels:
            return self
        if channels == 3:
            return replace(self, images=self.images.expand(-1, 3, -1, -1))
        # ITU-R 601-2 luma, as Pillow's conversion to grey.
        weights = torch.tensor([299.0, 587.0, 114.0])[None, :, None, None] / 1000
        grey = (self.images * weights).sum(1, keepdim=True).round().to(torch.uint8)
        return replace(self, images=grey)

    def statistics(self, about: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel's values in [0, 1], over about so many images."""
        chosen = list(range(0, len(self), max(1, len(self) // about)))
        sample = self.images[[self._number(index) for index in chosen]].to(torch.float32) / 255
        std, mean = torch.std_mean(sample, dim=(0, 2, 3))
        return tuple(mean.tolist()), tuple(std.tolist())


def content_digest(content: bytes) -> bytes:
    """What stands for an image's content where equal ones are looked for."""
    return hashlib.sha256(content).digest()


class Images(Dataset[tuple[Tensor, int]]):
    """Labelled images, as the network's input.

    Indexed by a number, or by (epoch, number) where images are augmented: the augmentation is a
    pure function of (seed, epoch, number).

    Args:
        source: the raw images.
        labels: a class number for each.
        preprocessing: how an image becomes the network's input.
        augment: None for evaluation, else one of `AUGMENTATIONS`.
        augment_options: of that augmentation.
        erasing: the probability of timm's random erasing after it, and its options.
        seed: of the augmentation.

    Raises:
        ValueError: options that the augmentation does not take.
    """

    def __init__(
        self,
        source: Source,
        labels: list[int],
        preprocessing: Preprocessing,
        *,
        augment: str | None = None,
        augment_options: Mapping[str, Any] | None = None,
        erasing: tuple[float, Mapping[str, Any]] = (0.0, {}),
        seed: int = 0,
    ) -> None:
        assert len(source) == len(labels)
        self.source = source
        self.labels = labels
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed
        self._augmentation: Augmentation | None = None
        if augment is not None:
            self._augmentation = AUGMENTATIONS[augment](preprocessing, augment_options or {})
            if erasing[0]:
                self._augmentation = Erasing(self._augmentation, *erasing)

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self, root: str | None) -> str:
        """SHA-256 of labels and marks in order; the same where the root was moved as a whole.

        It does not read files through: one that was changed in its place goes unnoticed.
        """
        found = hashlib.sha256()
        marks = self.source.marks(Path(os.path.expanduser(root or ".")))
        for label, mark in zip(self.labels, marks, strict=True):
            found.update(f"{label}/".encode() + mark + b"\0")
        return found.hexdigest()

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        number = range(len(self))[number]
        image, label = self.source[number], self.labels[number]
        if self._augmentation is None:
            return self.preprocessing(image), label
        return self._augmentation(image, (self.seed, epoch, number)), label
