"""Training images' augmentation, each a pure function of the picture and of its position.

The position is (seed, epoch, number), so that a resumed run sees what an uninterrupted one would,
whatever processes read.
"""

import random
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from covpool.data.config import DataError
from covpool.data.keywords import keywords, made_by_timm
from covpool.data.preprocessing import Preprocessing

SHIFT = 1 / 12
"""The furthest shift of the `shift` augmentation, as a share of the side."""

ERASING, MIXING = 1, 2
"""What seeds end with that are not the augmentation's own."""

Position = tuple[int, int, int]
Augmentation = Callable[[Tensor, Position], Tensor]
"""From (channels, H, W) uint8 and (seed, epoch, number) to the network's input."""


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


def _own_generator(position: Position) -> random.Random:
    return random.Random("-".join(map(str, position)))


class Plain:
    """The centre crop of the evaluation."""

    def __init__(self, preprocessing: Preprocessing, options: Mapping[str, Any]) -> None:
        self.preprocessing = preprocessing

    def __call__(self, image: Tensor, position: Position) -> Tensor:
        return self.preprocessing.normalise(self.preprocessing.centre(image))


class Flip(Plain):
    """The centre crop of the evaluation, mirrored at random."""

    def __call__(self, image: Tensor, position: Position) -> Tensor:
        centre = self.preprocessing.centre(image)
        mirrored = _own_generator(position).random() < 0.5
        return self.preprocessing.normalise(centre.flip(-1) if mirrored else centre)


class Shift(Plain):
    """The centre crop of the evaluation, shifted by up to a twelfth of its side."""

    def __call__(self, image: Tensor, position: Position) -> Tensor:
        centre = super().__call__(image, position)
        size = centre.shape[-1]
        furthest = max(1, round(SHIFT * size))
        generator = _own_generator(position)
        top, left = generator.randint(0, 2 * furthest), generator.randint(0, 2 * furthest)
        padded = functional.pad(centre[None], [furthest] * 4, mode="replicate")[0]
        return padded[:, top : top + size, left : left + size]


class Crop(Plain):
    """A random crop of random size and aspect ratio, mirrored at random."""

    def __init__(self, preprocessing: Preprocessing, options: Mapping[str, Any]) -> None:
        super().__init__(preprocessing, options)
        from torchvision.transforms import v2

        size = preprocessing.image_size
        self.transform = v2.Compose(
            [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        )

    def __call__(self, image: Tensor, position: Position) -> Tensor:
        with seeded(*position):
            image = self.transform(image)
        return self.preprocessing.normalise(image)


class Timm:
    """timm's training transform, with the options of its `create_transform`."""

    OURS = (
        *("input_size", "is_training", "mean", "std", "normalize"),
        # These would return something other than one standardised tensor.
        *("use_prefetcher", "separate", "tf_preprocessing"),
        *("naflex", "patch_size", "max_seq_len", "patchify"),
        *("patchify_channels_last", "patchify_flatten"),
    )
    """What is not for the user to choose."""

    def __init__(self, preprocessing: Preprocessing, options: Mapping[str, Any]) -> None:
        from timm.data.transforms_factory import create_transform

        if preprocessing.channels != 3:
            raise DataError(
                "data.augment timm works on colours, and these images are grey; read them in "
                "colour by --data.channels 3, or choose another data.augment"
            )
        chosen = keywords("data.augment_options", options, create_transform, ours=self.OURS)
        size = preprocessing.image_size
        with made_by_timm(f"a transform of data.augment_options {dict(options)}"):
            # A pair of transforms with the option `separate` alone, which is not for the user.
            self.transform: Any = create_transform(
                (3, size, size),
                is_training=True,
                mean=preprocessing.mean,
                std=preprocessing.std,
                **chosen,
            )
            self(torch.zeros(3, size, size, dtype=torch.uint8), (0, 0, 0))

    def __call__(self, image: Tensor, position: Position) -> Tensor:
        from torchvision.transforms.v2.functional import to_pil_image

        with seeded(*position):
            return self.transform(to_pil_image(image))


class Erasing:
    """Another augmentation, then timm's random erasing.

    Args:
        before: gives the standardised image.
        probability: that a rectangle of it is erased.
        options: of timm's `RandomErasing`.

    Raises:
        ValueError: options that it does not take.
    """

    def __init__(
        self, before: Augmentation, probability: float, options: Mapping[str, Any]
    ) -> None:
        from timm.data.random_erasing import RandomErasing

        ours = ("probability", "device", "num_splits")
        chosen = keywords("data.erasing_options", options, RandomErasing, ours=ours)
        self.before = before
        with made_by_timm(f"data.random_erasing of data.erasing_options {dict(options)}"):
            self.erase = RandomErasing(probability, device="cpu", **chosen)
            self._erased(torch.zeros(3, 8, 8), (0, 0, 0))

    def __call__(self, image: Tensor, position: Position) -> Tensor:
        return self._erased(self.before(image, position), position)

    def _erased(self, image: Tensor, position: Position) -> Tensor:
        with seeded(*position, ERASING):
            return self.erase(image)


AUGMENTATIONS: Mapping[str, Callable[[Preprocessing, Mapping[str, Any]], Augmentation]] = {
    "crop": Crop,
    "flip": Flip,
    "shift": Shift,
    "timm": Timm,
    "none": Plain,
}
"""Augmentations by the name that `data.augment` takes."""
