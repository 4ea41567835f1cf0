"""Figures that follow from the methods alone: kernel errors, gradient bounds, gradient fidelity."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes

from covpool.analysis import (
    Fidelity,
    GradientBound,
    approximation_error,
    gap_spectra,
    gradient_bounds,
    rank_spectra,
    spectral_fidelity,
)
from covpool.experiments.paper import paper_tables, printed_name
from covpool.linalg.methods import METHODS
from covpool.report.fidelity_figures import LEAST_DISTANCE, ROUNDING
from covpool.report.figures import (
    ALONE,
    WIDE,
    PageFigure,
    Styles,
    logarithmic,
    mark_bound,
    names,
    number,
    panel,
    power_of_ten,
    ring,
    rows_beside,
    sample,
    title,
)
from covpool.report.svg import colour

GAPS = tuple(10 ** (-step / 4) for step in range(1, 33))
"""Relative gaps 1 − λj/λi, from 0.56 to 1e-8."""

EPS = torch.finfo(torch.float64).eps

LEAST_ERROR = 1e-19
"""Where an error of zero is drawn."""

SIZE = 64
CONDITION_NUMBER = 1e4
RANKS = (4, 8, 16, 24, 32, 40, 48, 56, 60, 64)


def theory_figures(styles: Styles) -> list[PageFigure]:
    """All of them."""
    return [kernel_error(styles), bounds(), fidelity(styles)]


def kernel_error(styles: Styles) -> PageFigure:
    """|K − 1/(λi − λj)| over the eigenvalues' ratio: the paper's Table 3."""
    name = "kernel-error"
    ratios = [1 - gap for gap in GAPS]
    errors = {
        row.name: approximation_error(kernel, ratios)
        for row in METHODS.values()
        if (kernel := row.gradient.pair_kernel) is not None
    }
    faithful = [
        method
        for method, found in errors.items()
        if all(error <= 8 * EPS / gap for error, gap in zip(found.computed, GAPS, strict=True))
    ]
    others = [method for method in errors if method not in faithful]
    printed = paper_tables()["table3_approximation_error_degree100_float64"]

    def draw(axes: Axes) -> None:
        for method, found in errors.items():
            shown = [max(error, LEAST_ERROR) for error in found.computed]
            look = styles.of(method).line()
            axes.plot(GAPS, shown, **{**look, "markevery": 4})
            cells = printed.get(printed_name(method))
            if cells:
                axes.plot([1 - ratio for ratio in printed["ratio"]], cells, **ring(9))
        logarithmic(axes, "x", GAPS)
        logarithmic(axes, "y", [LEAST_ERROR, 1e9])
        axes.set_ylim(LEAST_ERROR / 10, None)
        axes.invert_xaxis()
        title(axes, "|K − 1/(λᵢ − λⱼ)|, λᵢ = 1", x="relative gap 1 − λⱼ/λᵢ")

    of_paper = sample(f"{name}-key-paper", **ring(8)), "the paper's Table 3"
    return PageFigure(
        name=name,
        title="How well the kernels approximate 1/(λᵢ − λⱼ)",
        panels=[panel(f"{name}-panel", "Error of each kernel over the gap", draw, size=ALONE)],
        legend=[*styles.legend(name, errors), of_paper],
        seen=[
            "Each kernel as computed in float64, against rational arithmetic. Eigenvalues come "
            f"closer to the right. {names(faithful)} stay with 1/(λᵢ − λⱼ) to rounding at all gaps "
            f"drawn, and their lines coincide; {names(others)} leave it as the gap closes.",
            f"Errors of zero are drawn at {power_of_ten(LEAST_ERROR)}. The paper's cells for small "
            "ratios are below what float64 holds beside 1: they are errors of the formula.",
        ],
        not_shown=[
            "An error of K is not one of the gradient: K is multiplied by the difference of the "
            "eigenvalues' roots.",
        ],
    )


def bounds() -> PageFigure:
    """The largest |K| that each method can give: the paper's Table 6."""
    name = "bounds"
    by_dtype = {dtype: gradient_bounds(dtype) for dtype in (torch.float64, torch.float32)}
    rows = [row for row in by_dtype[torch.float64] if row.bound is not None]
    order = [row.method for row in rows]
    printed = paper_tables()["table6_gradient_upper_bound"]
    looks = {
        torch.float64: {"marker": "o", "color": colour("series-0"), "ms": 7, "linestyle": "none"},
        torch.float32: {"marker": "s", "color": colour("series-1"), "ms": 6, "linestyle": "none"},
    }

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_xlim(1e5, 1e44)
        for dtype, found in by_dtype.items():
            for row in found:
                if row.bound is None:
                    continue
                place = order.index(row.method) + (0.14 if dtype == torch.float32 else -0.14)
                mark_bound(axes, row.bound, place, looks[dtype])
        for place, method in enumerate(order):
            cell = printed.get(printed_name(method), {}).get("maximum")
            if isinstance(cell, float):
                axes.plot([cell], [place - 0.14], **ring(11))
        logarithmic(axes, "x", [1e5, 1e44])
        rows_beside(axes, order)
        title(axes, "bound of |K|")

    key = [
        (sample(f"{name}-key64", **looks[torch.float64]), "float64"),
        (sample(f"{name}-key32", **looks[torch.float32]), "float32"),
        (sample(f"{name}-key-paper", **ring(8)), "the paper's Table 6"),
    ]
    without = [row.method for row in by_dtype[torch.float64] if row.bound is None]
    size = (WIDE[0] + 0.7, 0.8 + 0.4 * len(order))
    return PageFigure(
        name=name,
        title="Upper bounds of the gradient kernels",
        panels=[panel(f"{name}-panel", "Bound of each method's kernel", draw, size=size)],
        legend=key,
        seen=[
            "The largest |K| possible where eigenvalues below EPS of the type count as EPS: "
            + "; ".join(_bound_text(row) for row in rows)
            + " (float64). A triangle at the edge: no bound.",
            f"{names(without)} divide by no difference of eigenvalues, and have no such kernel.",
        ],
        not_shown=[
            "These are limits, not what training meets: at a tie K is multiplied by zero.",
            "The Padé row's bound depends on the precision in which its coefficients were solved, "
            "not on how well the gradient behaves.",
        ],
    )


def _bound_text(row: GradientBound) -> str:
    assert row.bound is not None
    return f"{row.method} {row.form} = {number(row.bound)}" if row.form else row.method


def fidelity(styles: Styles) -> PageFigure:
    """Angle and distance between each method's gradient and the exact one."""
    name = "fidelity"
    by_gap = spectral_fidelity(gap_spectra(GAPS, size=SIZE, condition_number=CONDITION_NUMBER))
    by_rank = spectral_fidelity(rank_spectra(RANKS, size=SIZE, condition_number=CONDITION_NUMBER))
    exact = [
        method
        for method in by_gap
        if max(_largest(by_gap[method]), _largest(by_rank[method])) < ROUNDING
    ]
    drawn = [method for method in by_gap if method not in exact]
    panels = []
    for found, places, text in (
        (by_gap, GAPS, "relative gap of neighbours"),
        (by_rank, RANKS, f"rank, of {SIZE} eigenvalues"),
    ):
        for figure, heading in (
            ("angle", "angle to the exact gradient (°)"),
            ("relative_distance", "relative distance to it"),
        ):
            panels.append(
                panel(
                    f"{name}-{figure}-{'gap' if found is by_gap else 'rank'}",
                    f"Gradient fidelity: {heading} over {text}",
                    lambda axes, a=found, b=places, c=figure, d=heading, e=text: _draw_fidelity(
                        axes, {method: a[method] for method in drawn}, styles, b, c, d, e
                    ),
                )
            )
    return PageFigure(
        name=name,
        title="Gradient fidelity",
        panels=panels,
        legend=styles.legend(name, drawn),
        seen=[
            "Each method's gradient of the square root with respect to the features, beside the "
            f"exact one, on made-up spectra of {SIZE} eigenvalues with condition number "
            f"{CONDITION_NUMBER:,.0f}: as neighbouring eigenvalues approach, and as the rank "
            "falls.",
            f"{names(exact)} equal the exact gradient to rounding on all of them, and are not "
            f"drawn. Distances of zero are drawn at {power_of_ten(LEAST_DISTANCE)}. The methods "
            "that iterate compute another root too, whose gradient theirs may be.",
        ],
        not_shown=[
            "The spectra are made up: which gaps and ranks a training meets, Conditioning by epoch "
            "shows where it was measured.",
            "A gradient further from the exact one does not mean a worse training.",
        ],
    )


def _largest(found: Fidelity) -> float:
    return found.relative_distance.nan_to_num(nan=math.inf).max().item()


def _draw_fidelity(
    axes: Axes,
    found: Mapping[str, Fidelity],
    styles: Styles,
    places: Sequence[float],
    figure: str,
    heading: str,
    text: str,
) -> None:
    for method, own in found.items():
        values = getattr(own, figure).tolist()
        look = styles.of(method).line()
        every = 4 if len(places) > 12 else 1
        if figure == "relative_distance":
            values = [max(value, LEAST_DISTANCE) for value in values]
        axes.plot(places, values, **{**look, "markevery": every})
    if figure == "relative_distance":
        logarithmic(axes, "y", [LEAST_DISTANCE, 1])
    if max(places) < 1:
        logarithmic(axes, "x", places)
        axes.invert_xaxis()
    title(axes, heading, x=text)
