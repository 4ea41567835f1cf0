"""What images to read and how; each option is one of `covpool train`'s, as --data.NAME."""

from dataclasses import dataclass
from typing import Literal, get_args


class DataError(ValueError):
    """Images that cannot be used as they are; the message names them and says what to do."""


Channels = Literal["auto", 1, 3]
Augment = Literal["auto", "crop", "shift", "none"]
Check = Literal["auto", "full", "headers", "none"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images."""

    root: str | None = None
    """Folder of class folders, or of train/ and test/ (or val/) with class folders in each, or a
    NumPy archive (.npz); null: the embedded typefaces."""

    image_size: int | None = None
    """Side of the square images that the network sees; null: an archive's own, else 224."""

    channels: Channels = "auto"
    """1 for grey, 3 for colour; auto: grey where every image is."""

    augment: Augment = "auto"
    """Training images: crop (random resized crop and mirror), shift (by up to a twelfth, not
    mirrored); auto: crop for folders, shift for archives, whose images may be text."""

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
    """Seed of that split; not the training's, so that runs share their test images."""

    def __post_init__(self) -> None:
        for name, kind in (("channels", Channels), ("augment", Augment), ("check", Check)):
            value = getattr(self, name)
            if value not in get_args(kind):
                choices = ", ".join(map(str, get_args(kind)))
                raise ValueError(f"data.{name} must be one of {choices}, not {value!r}")
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
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"data.test_fraction must lie in (0, 1), not {self.test_fraction!r}")
