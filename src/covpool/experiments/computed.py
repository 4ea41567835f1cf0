"""Tables 3 and 6, which are computed: the kernels' errors and their bounds."""

import math
from collections.abc import Sequence
from typing import Any

import mpmath
import torch

from covpool.analysis import approximation_error, gradient_bounds
from covpool.analysis.conditioning import EPS
from covpool.experiments.arms import METHODS_OF_PAPER
from covpool.experiments.paper import paper_tables
from covpool.experiments.sheet import Table
from covpool.linalg.gradients.kernels import Kernel, Pade, Taylor

PADE_DIGITS = (15, 20, 30)
"""Working precisions, in decimal digits, at which the Padé coefficients are solved for Table 6."""


def verdict(ours: float, cell: float) -> str:
    """Ours against a printed cell, of which the last digit printed is rounded; low is good."""
    if ours == cell:
        return "matches"
    unit = _last_digit(cell)
    if abs(ours - cell) <= unit / 2:
        return "matches"
    return "better" if ours < cell else "worse"


def _last_digit(cell: float) -> float:
    """One unit of the last digit that the paper prints: 2e-4 has one, 904 and 36 are whole."""
    if not math.isfinite(cell):
        return 0.0
    return 1.0 if cell >= 10 else 10.0 ** math.floor(math.log10(cell))


def table3() -> dict[str, Any]:
    """The error of |K| over the ratio of eigenvalues, for degree 100 in double precision."""
    printed = paper_tables()["table3_approximation_error_degree100_float64"]
    ratios = printed["ratio"]
    kernels: dict[str, dict[str, Kernel]] = {
        "SVD-Taylor": {"": Taylor(degree=100)},
        "SVD-Padé": {
            " (coefficients)": Pade(evaluation="coefficients"),
            " (closed-form)": Pade(),
        },
    }
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    for name, ways in kernels.items():
        cells = printed[name]
        shown = (f"{cell:.0e}" if cell < 10 else f"{cell:g}" for cell in cells)
        rows.append([f"{name}, the paper", *shown])
        for way, kernel in ways.items():
            found = approximation_error(kernel, ratios)
            assert found.formula is not None
            verdicts = [verdict(o, c) for o, c in zip(found.formula, cells, strict=True)]
            rows += [
                [f"{name}{way}, formula", *map(_short, found.formula)],
                ["beside the paper", *verdicts],
                [f"{name}{way}, in float64", *map(_short, found.computed)],
            ]
            data.append({"row": name, "paper": cells, "verdicts": verdicts, **found.to_dict()})
    found = approximation_error(Pade(), ratios)
    rows.append(["the nearest float64 number", *map(_short, found.nearest)])
    return {
        "tables": [Table(columns=["λj/λi", *map(str, ratios)], rows=rows)],
        "data": {"rows": data},
    }


def _short(value: float) -> str:
    return f"{value:.3g}" if 10 <= abs(value) < 1e6 else f"{value:.1e}" if value else "0"


def pade_bound(digits: int, floor: float = EPS) -> float:
    """|Σp/Σq|/floor of the diagonal Padé approximant [50/50] of 1/(1 − x), solved and summed at so
    many decimal digits, as the paper's code does at 20."""
    with mpmath.workdps(digits):
        one = mpmath.mpf(1)
        p, q = mpmath.pade(mpmath.taylor(lambda x: one / (one - x), 0, 100), 50, 50)
        return float(abs(sum(p) / sum(q)) / mpmath.mpf(floor))


def table6() -> dict[str, Any]:
    """The bound of |K| for each method."""
    printed = paper_tables()["table6_gradient_upper_bound"]
    in_float32 = {row.method: row for row in gradient_bounds(torch.float32)}
    rows: list[Sequence[str]] = []
    data: list[dict[str, Any]] = []
    for row in gradient_bounds():
        if row.method not in METHODS_OF_PAPER:
            continue
        name = row.paper_name
        cell = printed.get(name)
        maximum = cell and cell["maximum"]
        maximum = None if maximum is None else float(maximum)
        judged = "–" if cell is None else _judge(row.bound, maximum)
        single = in_float32[row.method].bound
        bounds = ("–" if cell is None else _bound(maximum), _bound(row.bound), judged)
        named = (row.method, str(name) if cell else "–", row.form or "no K")
        rows.append((*named, *bounds, row.trigger or "–", _bound(single)))
        found = {"verdict": judged, "bound_float32": single, **row.to_dict()}
        data.append({"paper": cell and {"row": name, **cell}, **found})
    by_digits = {digits: pade_bound(digits) for digits in PADE_DIGITS}
    columns = (
        *("method", "paper's name", "bound", "paper", "ours", "beside", "reached at", "float32"),
    )
    return {
        "tables": [
            Table(columns=columns, rows=rows),
            Table(
                heading="The Padé bound by the precision that solved the coefficients",
                columns=("decimal digits", "bound"),
                rows=[(f"{n}", f"{bound:.2e}") for n, bound in by_digits.items()],
            ),
        ],
        "data": {"rows": data, "pade_bound_by_digits": by_digits},
        "about": {"eps": f"{EPS:.2e}"},
    }


def _judge(ours: float | None, cell: float | None) -> str:
    if ours is None or cell is None or math.isinf(cell):
        return "matches" if ours == cell else "differs"
    # The paper prints three digits, and 4.50e15 for 1/EPS = 4.5036e15.
    return "matches" if abs(ours / cell - 1) <= 2e-3 else "differs"


def _bound(value: float | None) -> str:
    if value is None:
        return "none"
    return "∞" if math.isinf(value) else f"{value:.2e}"
