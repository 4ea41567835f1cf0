"""Images as tensors: decoding, preprocessing and augmentation."""

import random
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from covpool.data.config import DataError

if TYPE_CHECKING:
    from PIL import Image

RESIZE_RATIO = 256 / 224
"""Evaluation: the shorter side is this much longer than the centre crop (the paper's recipe)."""

SHIFT = 1 / 12
"""The furthest shift of the `shift` augmentation, as a share of the side."""

REMEDY = "repair or remove it, or train without such files by --data.skip_damaged true"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the network's input; stored with a checkpoint, so that it predicts.

    Attributes:
        channels: 1 or 3.
        image_size: side of the square input.
        resize: length of the shorter side before the centre crop.
        mean: subtracted from each channel of values in [0, 1].
        std: what each channel is divided by then.
    """

    channels: int
    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` described."""
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**arguments)

    def normalise(self, image: Tensor) -> Tensor:
        """(channels, H, W) uint8 → float32, standardised."""
        mean = torch.tensor(self.mean).mul_(255)[:, None, None]
        scale = torch.tensor(self.std).mul_(255).reciprocal_()[:, None, None]
        return image.to(torch.float32).sub_(mean).mul_(scale)

    def centre(self, image: Tensor) -> Tensor:
        """Resize and centre crop, (channels, H, W) uint8 → (channels, image_size, image_size)."""
        size = self.image_size
        if image.shape[-2:] == (size, size) == (self.resize, self.resize):
            return image
        from torchvision.transforms.v2 import functional as transforms

        resized = transforms.resize(image, [self.resize], antialias=True)
        return transforms.center_crop(resized, [size, size])

    def __call__(self, image: Tensor) -> Tensor:
        """The evaluation transform, (channels, H, W) uint8 → float32 input."""
        return self.normalise(self.centre(image))


def to_tensor(image: "Image.Image", channels: int) -> Tensor:
    """A picture as (channels, H, W) uint8: upright, over white where transparent, 8 bits."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; make it 8 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        # "I;16" says how deep it is; "I" has room for 32 bits, and files in it hold 8 or 16.
        depth = 65535 if image.mode != "I" or values.max(initial=0) > 255 else 255
        image = Image.fromarray(np.rint(values.clip(0, depth) * (255 / depth)).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1)


def read_image(path: str | Path, channels: int) -> Tensor:
    """The file's picture as (channels, H, W) uint8.

    Raises:
        DataError: no such file, not an image, or a damaged one.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return to_tensor(image, channels)
    except FileNotFoundError:
        raise DataError(f"no such image file: {path}") from None
    except MemoryError:
        raise
    # Decoders raise what they like on damaged files: struct.error, SyntaxError, IndexError, …
    except Exception as error:
        raise DataError(f"cannot read image {path}: {cause(error)}; {REMEDY}") from error


def cause(error: BaseException) -> str:
    """Why an image cannot be read, without its path, which Pillow repeats."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def load_image(path: str | Path, preprocessing: Preprocessing) -> Tensor:
    """An image file as the network's input (channels, image_size, image_size), for prediction.

    Raises:
        DataError: no such file, not an image, or a damaged one.
    """
    return preprocessing(read_image(path, preprocessing.channels))


class Source(Protocol):
    """Where raw images come from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """(channels, H, W) uint8."""
        ...


@dataclass(frozen=True)
class Files(Source):
    """Images in files."""

    paths: list[str]
    channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.paths[index], self.channels)


@dataclass(frozen=True)
class Arrays(Source):
    """Images in memory, (n, channels, H, W) uint8."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@contextmanager
def seeded(*parts: int):
    """Python's, NumPy's and torch's generators seeded from the parts, and restored afterwards."""
    # NumPy's legacy generator is what transforms of other libraries draw from (hence NPY002).
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    # A string is hashed by SHA-512 here, the same in every process and version.
    seed = random.Random("-".join(map(str, parts))).getrandbits(32)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    # torch.manual_seed would seed accelerators too, whose states are not restored here.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


class Images(Dataset[tuple[Tensor, int]]):
    """Labelled images, as the network's input.

    Indexed by a number, or by (epoch, number) where images are augmented: the augmentation is a
    pure function of (seed, epoch, number), so that a resumed run sees what an uninterrupted one
    would, whatever processes read.

    Args:
        source: the raw images.
        labels: a class number for each.
        preprocessing: how an image becomes the network's input.
        augment: "none" for evaluation, else as `DataConfig.augment`.
        seed: of the augmentation.
    """

    def __init__(
        self,
        source: Source,
        labels: list[int],
        preprocessing: Preprocessing,
        *,
        augment: Literal["crop", "shift", "none"] = "none",
        seed: int = 0,
    ) -> None:
        assert len(source) == len(labels)
        self.source = source
        self.labels = labels
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed
        if augment == "crop":
            from torchvision.transforms import v2

            size = preprocessing.image_size
            self._crop = v2.Compose(
                [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        number = range(len(self))[number]
        image = self.source[number]
        if self.augment == "crop":
            with seeded(self.seed, epoch, number):
                image = self._crop(image)
        else:
            image = self.preprocessing.centre(image)
        result = self.preprocessing.normalise(image)
        if self.augment == "shift":
            result = self._shifted(result, epoch, number)
        return result, self.labels[number]

    def _shifted(self, image: Tensor, epoch: int, number: int) -> Tensor:
        size = image.shape[-1]
        furthest = max(1, round(SHIFT * size))
        generator = random.Random(f"{self.seed}-{epoch}-{number}")
        top, left = generator.randint(0, 2 * furthest), generator.randint(0, 2 * furthest)
        padded = functional.pad(image[None], [furthest] * 4, mode="replicate")[0]
        return padded[:, top : top + size, left : left + size]
