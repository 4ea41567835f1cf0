"""The figures that the paper prints, to stand beside ours."""

import json
from functools import cache
from importlib import resources
from typing import Any

from covpool.linalg.methods import METHODS

SOURCE = (
    "Song, Sebe, Wang: Why approximate matrix square root outperforms accurate SVD in global "
    "covariance pooling? ICCV 2021"
)

METRICS = ("test_top1", "test_top5")
"""What its tables have of a training, as a run's rows call it."""


@cache
def paper_tables() -> dict[str, Any]:
    """All cells of the paper's six tables, as printed."""
    file = resources.files("covpool.experiments") / "paper_tables.json"
    return json.loads(file.read_text(encoding="utf-8"))


def printed_name(method: str) -> str | None:
    """The method's row in the paper's tables, None where it has none."""
    row = METHODS.get(method)
    return row.paper_name if row else None
