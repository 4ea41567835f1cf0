"""The figures that the paper prints, as text to stand beside ours."""

import json
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

from covpool.experiments.inference import BySeed, Spread, differences
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


METRICS = ("test_top1", "test_top5")
"""What its tables have of a training, as a run's rows call it."""


@cache
def paper_tables() -> dict[str, Any]:
    """All cells of the paper's six tables, as printed."""
    file = resources.files("covpool.experiments") / "paper_tables.json"
    return json.loads(file.read_text(encoding="utf-8"))


TABLE_1 = {"svd": "MPN-COV (SVD)", "isqrt-cov": "iSQRT-COV (Newton-Schulz)"}
"""The methods of the paper's Table 1, and their names in it."""


def beside_table1(
    errors: Callable[[str, str], BySeed], text: Callable[[str, BySeed], str]
) -> list[list[str]]:
    """The cells of the paper's Table 1, each with ours beside it, and a row of their difference.

    Args:
        errors: ours in percent by seed, of a method and a metric.
        text: how those of a method are told.
    """
    printed = paper_tables()["table1_resnet50_imagenet_error"]
    rows: list[list[str]] = [[], [], []]
    for place, metric in enumerate(METRICS):
        theirs = [printed[name][place] for name in TABLE_1.values()]
        ours = [errors(method, metric) for method in TABLE_1]
        for row, cell, method, own in zip(rows, theirs, TABLE_1, ours, strict=False):
            row += [f"{cell:.2f}", text(method, own)]
        gap = Spread.of(differences(*ours)).interval_text()
        rows[-1] += [f"{theirs[0] - theirs[1]:+.2f}", gap]
    return rows


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
