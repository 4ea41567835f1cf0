"""The figures that the paper prints, as text to stand beside ours."""

import json
from functools import cache
from importlib import resources
from typing import Any

from covpool.linalg.methods import METHODS

SOURCE = (
    "Song, Sebe, Wang: Why approximate matrix square root outperforms accurate SVD in global "
    "covariance pooling? ICCV 2021"
)

NAMES = {"SVD-Padé": "SVD-Pade"}
"""Paper names of `METHODS` that `paper_tables` spells otherwise."""

COLUMNS = (
    "ImageNet, ResNet-50, standalone",
    "ImageNet, ResNet-50, hybrid",
    "Birds",
    "Dogs",
    "Cars",
)
"""Where the accuracies of Tables 4 and 5 were measured."""


DATA = ("imagenet", "birds", "dogs", "cars")
"""The paper's data sets, as `data.name` calls them."""


@cache
def paper_tables() -> dict[str, Any]:
    """All cells of the paper's six tables, as printed."""
    file = resources.files("covpool.experiments") / "paper_tables.json"
    return json.loads(file.read_text(encoding="utf-8"))


def accuracies(name: str | None) -> tuple[str, ...] | None:
    """The cells of a row under `COLUMNS`, or None where Tables 4 and 5 do not have it.

    Table 4 prints top-1 errors, here 100 minus them; Table 5 Final and Best accuracies, here
    Final / Best.
    """
    imagenet = paper_tables()["table4_imagenet_error"]["ResNet-50"].get(name)
    fine_grained = paper_tables()["table5_fine_grained_accuracy"].get(name)
    if imagenet is None and fine_grained is None:
        return None
    cells = ["–", "–"] if imagenet is None else [f"{100 - imagenet[i]:.2f}" for i in (0, 2)]
    for final, best in zip(fine_grained[::2], fine_grained[1::2], strict=True):
        cells.append("did not converge" if final is None else f"{final:.2f} / {best:.2f}")
    return tuple(cells)


def printed_name(method: str) -> str | None:
    """The method's row in the paper's tables, None where it has none."""
    row = METHODS.get(method)
    name = row.paper_name if row else None
    return NAMES.get(name, name) if name else None
