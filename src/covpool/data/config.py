"""What images to read and how; each option is one of `covpool train`'s, as --data.NAME."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from covpool.data.types import check_types


class DataError(ValueError):
    """Images that cannot be used as they are; the message names them and says what to do."""


_collected: ContextVar[list[DataError] | None] = ContextVar("collected", default=None)


def fault(message: str, cause: BaseException | None = None) -> None:
    """Raise a DataError; within `collecting_faults`, note it, so that the reader goes on without
    what is wrong. For a reader's faults after which there is more to look at."""
    error = DataError(message)
    error.__cause__ = cause
    faults = _collected.get()
    if faults is None:
        raise error
    # A file that is not there has been named where it was looked for.
    if not faults or not isinstance(cause, FileNotFoundError):
        faults.append(error)


@contextmanager
def collecting_faults() -> Iterator[list[DataError]]:
    """Within it, readers of data sets note what is wrong in this list, as far as they can go on."""
    faults: list[DataError] = []
    token = _collected.set(faults)
    try:
        yield faults
    finally:
        _collected.reset(token)


Channels = Literal["auto", 1, 3]
Augment = Literal["auto", "crop", "flip", "shift", "timm", "none"]
Views = Literal["center", "mirror", "ten-crop"]
Check = Literal["auto", "full", "headers", "none"]
Evaluate = Literal["test", "validation"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images."""

    name: str = "auto"
    """Layout: auto (told from the root), folder, archive, typefaces, imagenet, birds, dogs, cars,
    aircraft, or hfds/NAME, wds/NAME of timm's readers."""

    root: str | None = None
    """Folder of class folders, or of train/ and test/ (or val/) with class folders in each, or of
    a data set as published, or a NumPy archive (.npz); null: the embedded typefaces."""

    image_size: int | None = None
    """Side of the square images that the network sees; null: an archive's own, else 224."""

    resize: int | tuple[int, int] | None = None
    """Size from which the centre crop is taken: the shorter side, or [height, width]; null: 8/7 of
    image_size, for archives image_size."""

    mean: tuple[float, ...] | None = None
    """Mean of the channels' values in [0, 1]; null: ImageNet's, or an archive's own."""

    std: tuple[float, ...] | None = None
    """Deviation of the channels' values; null: ImageNet's, or an archive's own."""

    channels: Channels = "auto"
    """1 for grey, 3 for colour; auto: grey where every image is."""

    augment: Augment = "auto"
    """Training images: crop (random resized crop and mirror), flip (the evaluation's crop,
    mirrored at random), shift (by up to a twelfth, not mirrored), timm (its training transform),
    none; auto: crop for folders, shift for archives, whose images may be text."""

    augment_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm.data.create_transform with augment timm, as in
    --data.augment_options.auto_augment rand-m9-mstd0.5."""

    random_erasing: float = 0.0
    """Probability that a rectangle of a training image is erased, whatever the augmentation."""

    erasing_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm.data.RandomErasing, as in --data.erasing_options.mode pixel."""

    mixup: float = 0.0
    """Mixup of the images of a batch: alpha of the share's beta distribution, as 0.2; 0: none."""

    cutmix: float = 0.0
    """CutMix, a rectangle of another image of the batch: alpha, as 1; 0: none. With mixup too,
    each batch has one of them."""

    mixup_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm.data.Mixup, as in --data.mixup_options.switch_prob 0.3."""

    views: Views = "center"
    """Evaluation averages the logits over: center (one crop), mirror (the crop and its mirror
    image), ten-crop (corners and centre, and their mirror images)."""

    batch_size: int = 64
    """Images in a batch, over all devices together."""

    workers: int = 0
    """Processes that read images for each device; 0 reads in the training process."""

    check: Check = "auto"
    """Reading of image files before anything starts: in full, headers alone, or none; auto: in
    full up to 5,000 files or with skip_damaged, else headers."""

    skip_damaged: bool = False
    """Go on without files that cannot be read, naming each, instead of stopping."""

    test_fraction: float = 0.2
    """Share of each class that is held out where the folder has no test split."""

    split_seed: int = 0
    """Seed of what is held out; not the training's, so that runs share their test images."""

    evaluate: Evaluate = "test"
    """What is evaluated: test, or validation: training images that are held out in place of the
    test split, which is left alone, as for the choice of a learning rate."""

    validation_fraction: float = 0.2
    """Share of each class's training images that is held out with evaluate validation."""

    exclude_classes: tuple[str, ...] = ()
    """Classes to leave out of both splits: names, or patterns as in fa-*."""

    class_limit: int | None = None
    """Only the first so many of the classes, in the data set's order; null: all."""

    drop_duplicates: bool = False
    """Leave out of what is evaluated each image that equals a training image, of whatever class."""

    @property
    def evaluated_split(self) -> str:
        """What figures called "test" are of, for people."""
        return f"{self.evaluate} split"

    def __post_init__(self) -> None:
        check_types("data", self)
        if self.skip_damaged and self.check not in ("auto", "full"):
            raise ValueError(
                f"data.check must be full or auto with data.skip_damaged, not {self.check!r}: "
                "damage that it does not find would end the training"
            )
        for name, lowest in (("batch_size", 1), ("workers", 0), ("split_seed", 0)):
            value = getattr(self, name)
            if value < lowest:
                raise ValueError(f"data.{name} must be at least {lowest}, not {value!r}")
        if self.image_size is not None and self.image_size < 8:
            raise ValueError(f"data.image_size must be at least 8, not {self.image_size!r}")
        sides = self.resize if isinstance(self.resize, Sequence) else [self.resize]
        if self.resize is not None and not (
            len(sides) in (1, 2) and all(isinstance(side, int) and side >= 8 for side in sides)
        ):
            raise ValueError(
                "data.resize must be null, a length or [height, width] of at least 8, not "
                f"{self.resize!r}"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) not in (1, 3) or (name == "std" and min(values) <= 0):
                above = " above 0" if name == "std" else ""
                raise ValueError(
                    f"data.{name} must be null or 1 or 3 numbers{above}, not {list(values)}"
                )
        if self.augment_options and self.augment != "timm":
            raise ValueError(
                f"data.augment_options {self.augment_options} are timm's; they need data.augment "
                f"timm, not {self.augment!r}"
            )
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must be at least 0, not {getattr(self, name)!r}")
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"data.random_erasing must be in [0, 1], not {self.random_erasing!r}")
        for name, needs, on in (
            ("erasing_options", "data.random_erasing", self.random_erasing),
            ("mixup_options", "data.mixup or data.cutmix", self.mixup or self.cutmix),
        ):
            if getattr(self, name) and not on:
                raise ValueError(
                    f"data.{name} {getattr(self, name)} have no effect without {needs} above 0"
                )
        for name in ("test_fraction", "validation_fraction"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"data.{name} must lie in (0, 1), not {value!r}")
        if self.class_limit is not None and self.class_limit < 2:
            raise ValueError(
                f"data.class_limit must be null or at least 2, not {self.class_limit!r}"
            )
