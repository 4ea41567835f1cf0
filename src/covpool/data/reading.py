"""Decoding image files.

Whoever made a file decides what is in it. So the formats are listed (Pillow would choose a decoder
by the content alone, and runs Ghostscript for PostScript), only regular files are opened, and what
a file may claim has limits, which are checked before anything is decoded.
"""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from covpool.data.config import DataError
from covpool.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

REMEDY = "repair or remove it, or leave such files out by --data.skip_damaged true"

FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}
"""The formats that are read, by Pillow's names, and how the names of their files end."""

LARGEST_PIXELS = 178_956_970
"""The number of pixels above which Pillow too refuses an image, unless it was told otherwise."""

LARGEST_RATIO = 100
"""How many times longer than its shorter side an image may be: resizing the shorter side to 512
then takes about 80 MB."""

LARGEST_BYTES = 2**30
"""What an image may take as a file: more than `LARGEST_PIXELS` of three bytes each."""

SPECIAL_FILES = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_file(path: str | Path, largest: int | None = None) -> IO[bytes]:
    """A regular file, opened for reading: a pipe would hang, and a device may never end.

    Args:
        path: where it is; links are followed.
        largest: refuse files of more bytes.

    Raises:
        OSError: no such file, not a regular one, or too large a one.
    """
    status = os.stat(path)
    kind = SPECIAL_FILES.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise OSError(errno.EINVAL, f"{kind}, not a file", str(path))
    if largest is not None and status.st_size > largest:
        taken = f"it takes {status.st_size} bytes, more than the {largest} of an image"
        raise OSError(errno.EFBIG, taken, str(path))
    return open(path, "rb")


@contextmanager
def open_picture(file: str | Path | IO[bytes]) -> Iterator["Image.Image"]:
    """A picture of one of `FORMATS`, not yet decoded, whose size is within the limits.

    Raises:
        Exception: what Pillow's readers raise, which may be anything; OSError, ValueError: the file
            or its size is refused.
    """
    from PIL import Image

    is_path = isinstance(file, str | Path)
    with (
        open_file(file, LARGEST_BYTES) if is_path else nullcontext(file) as content,
        Image.open(content, formats=tuple(FORMATS)) as image,
    ):
        check_size(*image.size)
        yield image


def check_size(width: int, height: int) -> None:
    """Raise a ValueError for a picture that is too large, or too long for its width."""
    if width * height > LARGEST_PIXELS:
        raise ValueError(f"{width}×{height} pixels, and at most {LARGEST_PIXELS} are read")
    if max(width, height) > LARGEST_RATIO * min(width, height):
        raise ValueError(
            f"{width}×{height} pixels: one side is more than {LARGEST_RATIO} times the other"
        )


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
    name = str(file) if name is None else name
    try:
        with open_picture(file) as image:
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
        return f"not an image, or of another format than {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def load_image(path: str | Path, preprocessing: Preprocessing) -> Tensor:
    """An image file as the network's input, for prediction: what `Preprocessing` makes of it.

    Raises:
        DataError: no such file, not an image, or a damaged one.
    """
    return preprocessing(read_image(path, preprocessing.channels))
