"""Decoding image files."""

from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from covpool.data.config import DataError
from covpool.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

REMEDY = "repair or remove it, or train without such files by --data.skip_damaged true"


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


def read_image(file: str | Path | IO[bytes], channels: int, name: str | None = None) -> Tensor:
    """The file's picture as (channels, H, W) uint8.

    Args:
        file: a path, or an open file.
        channels: 1 for grey, 3 for colour.
        name: what to call an open file in messages.

    Raises:
        DataError: no such file, not an image, or a damaged one.
    """
    from PIL import Image

    name = str(file) if name is None else name
    try:
        with Image.open(file) as image:
            image.load()
            return to_tensor(image, channels)
    except FileNotFoundError:
        raise DataError(f"no such image file: {name}") from None
    except MemoryError:
        raise
    # Decoders raise what they like on damaged files: struct.error, SyntaxError, IndexError, …
    except Exception as error:
        raise DataError(f"cannot read image {name}: {cause(error)}; {REMEDY}") from error


def cause(error: BaseException) -> str:
    """Why an image cannot be read, without its path, which Pillow repeats."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def load_image(path: str | Path, preprocessing: Preprocessing) -> Tensor:
    """An image file as the network's input, for prediction: what `Preprocessing` makes of it.

    Raises:
        DataError: no such file, not an image, or a damaged one.
    """
    return preprocessing(read_image(path, preprocessing.channels))
