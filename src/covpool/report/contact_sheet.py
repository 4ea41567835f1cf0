"""One page with a small picture of each image under the class that it was called."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from covpool.report.template import fill

GENERATOR = "covpool predict"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image on the sheet.

    Attributes:
        path: its file.
        picture: JPEG, in base 64; None where it could not be read.
        likeliest: classes with their probabilities, the likeliest first.
        error: why there are none.
    """

    path: str
    picture: str | None
    likeliest: Sequence[tuple[str, float]] = ()
    error: str | None = None


def render_sheet(images: Iterable[Shown], *, model: str) -> str:
    """The page: by class, the surest first; at the end what got no result, and why.

    Args:
        images: in any order.
        model: what called them so.
    """
    everything = list(images)
    called = [image for image in everything if image.likeliest]
    called.sort(key=lambda image: (image.likeliest[0][0], -image.likeliest[0][1], image.path))
    return fill(
        "sheet.html.jinja",
        generator=GENERATOR,
        model=model,
        total=len(called),
        classes=[(n, [*own]) for n, own in groupby(called, lambda image: image.likeliest[0][0])],
        failed=[image for image in everything if not image.likeliest],
    )
