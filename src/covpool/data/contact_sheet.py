"""Small pictures of images: a data set's on one sheet, or each for a page that shows it."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from covpool.data.config import DataError
from covpool.data.dataset import Source
from covpool.data.listing import Progress
from covpool.text import printable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

SIDE = 64
GAP = 2
TITLE = 16


def draw_contact_sheet(
    source: Source,
    labels: list[int],
    classes: Sequence[str],
    path: Path,
    *,
    images: int = 4,
    progress: Progress | None = None,
) -> None:
    """Write a PNG with a few images of each class under its name.

    The images are spread evenly over those of the class; one that cannot be read leaves a cross.

    Args:
        source: the images.
        labels: a class number for each.
        classes: class names.
        path: file to write.
        images: how many of each class.
        progress: called with (classes drawn, classes in all).
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    width, height = images * (SIDE + GAP) + 3 * GAP, TITLE + SIDE + 3 * GAP
    columns = max(1, round(math.sqrt(len(classes) * height / width)))
    rows = math.ceil(len(classes) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    # Pillow's own has no letters with accents.
    font = ImageFont.truetype(
        Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11
    )
    of_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        of_class[label].append(index)
    for label, name in enumerate(map(printable, classes)):
        row, column = divmod(label, columns)
        left, top = column * width + GAP, row * height + GAP
        while name and pen.textlength(name, font) > width - 3 * GAP:
            name = name[:-2].rstrip("…") + "…" if len(name) > 2 else ""
        pen.text((left, top), name, "black", font)
        for position, index in enumerate(_spread(of_class[label], images)):
            corner = (left + position * (SIDE + GAP), top + TITLE)
            picture = _thumbnail(source, index)
            if picture is None:
                far = (corner[0] + SIDE - 1, corner[1] + SIDE - 1)
                pen.line((*corner, *far), "red")
                pen.line((corner[0], far[1], far[0], corner[1]), "red")
            else:
                sheet.paste(picture, corner)
        if progress is not None:
            progress(label + 1, len(classes))
    sheet.save(path, format="PNG")


def _spread(indices: list[int], count: int) -> Iterator[int]:
    count = min(count, len(indices))
    return (indices[position * len(indices) // count] for position in range(count))


def _thumbnail(source: Source, index: int) -> "Image.Image | None":
    """The whole image within SIDE×SIDE; None where it cannot be read."""
    try:
        return _shrunk(source[index], SIDE)
    except DataError:
        return None


def _shrunk(image: "Tensor", side: int) -> "Image.Image":
    from torchvision.transforms.v2.functional import to_pil_image

    picture = to_pil_image(image).convert("RGB")
    picture.thumbnail((side, side))
    return picture


def encoded_thumbnail(image: "Tensor", side: int = 96) -> str:
    """An image, (channels, H, W) uint8, within side×side as JPEG in base 64, for a page's <img>."""
    content = io.BytesIO()
    _shrunk(image, side).save(content, "JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode("ascii")
