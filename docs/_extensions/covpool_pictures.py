"""The pictures of the documentation and of the README, drawn as the report draws its own.

`python docs/_extensions/covpool_pictures.py` writes two into `docs/pictures`: that of the README,
which GitHub shows without building anything, and that of the studies, for a page without cells.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import covpool
from covpool.experiments.inference import Spread, differences
from covpool.report.figures import logarithmic, title
from covpool.report.svg import SERIES, colour, drawing, inline

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"

LIGHT = ("#0072b2", "#c44e00", "#00805e", "#a03a78", "#7a6300", "#4d4d4d", "#6a3d9a", "#a11d21")
"""The report's colours of series on white, for a file that knows no style sheet."""

SIZE = (4.6, 3.0)
"""Of a panel, in inches at 72 units."""

WIDTH = 410
"""Of a picture in a file, in pixels: one fills a phone."""

_drawn = 0


def pictures(panels: Mapping[str, Callable[[Axes], object]], size=SIZE) -> HTML:
    """Panels side by side where there is room for them, by what a screen reader is to say of each.

    Colours are the page's own, so that they are right on a dark page too.
    """
    global _drawn
    found = []
    for label, draw in panels.items():
        _drawn += 1
        with drawing():
            figure = Figure(figsize=size, layout="constrained")
            draw(figure.subplots())
            found.append(f"<div>{inline(figure, f'picture-{_drawn}', label)}</div>")
    return HTML(f'<div class="pictures">{"".join(found)}</div>')


def series(place: int) -> str:
    """The colour of the series of that number, from 0 on."""
    return colour(f"series-{place % SERIES}")


def rotated(spectrum: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric matrices of these eigenvalues (*, n), and the eigenvectors they were made with."""
    torch.manual_seed(0)
    n = spectrum.shape[-1]
    vectors = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    return (vectors * spectrum.unsqueeze(-2)) @ vectors.mT, vectors


def root_by_eigh(matrix: torch.Tensor) -> torch.Tensor:
    """√A as everybody writes it at first."""
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    return eigenvectors @ torch.diag_embed(eigenvalues.sqrt()) @ eigenvectors.mT


def gradient_error(root: Callable[[torch.Tensor], torch.Tensor], gap: float) -> float:
    """Relative error of the gradient of √A where two eigenvalues of A are so close.

    A has the eigenvalues 1, 1 − gap and 0.3 in a rotated basis that is known, so that the gradient
    is V (L ∘ VᵀGV) Vᵀ with Lij = 1/(√λi + √λj) in closed form.
    """
    spectrum = torch.tensor([1.0, 1.0 - gap, 0.3], dtype=torch.float64)
    matrix, vectors = rotated(spectrum)
    weights = torch.tensor([[1.0, 2, 3], [2, 0, 1], [3, 1, 4]], dtype=torch.float64)
    leaf = matrix.requires_grad_()
    (root((leaf + leaf.mT) / 2) * weights).sum().backward()
    assert leaf.grad is not None
    entries = 1 / (spectrum.sqrt()[:, None] + spectrum.sqrt())
    exact = vectors @ (entries * (vectors.mT @ weights @ vectors)) @ vectors.mT
    return ((leaf.grad - exact).norm() / exact.norm()).item()


def draw_repair(axes: Axes) -> None:
    """The error of the gradient of √A over the gap of two eigenvalues, by eigh and by covpool."""
    gaps = [10.0**exponent for exponent in range(-16, 0)]
    lost = {}
    for place, (name, root) in enumerate(
        {"torch.linalg.eigh": root_by_eigh, "covpool.matrix_sqrt": covpool.matrix_sqrt}.items()
    ):
        errors = [gradient_error(root, gap) for gap in gaps]
        shown = [(gap, max(error, 1e-17)) for gap, error in zip(gaps, errors, strict=True)]
        axes.plot(*zip(*shown, strict=True), "o-", color=series(1 - place), label=name)
        lost[name] = errors
    logarithmic(axes, "x", gaps)
    logarithmic(axes, "y", [1e-17, 1e3])
    axes.set_ylim(1e-17, 1e2)
    axes.invert_xaxis()
    axes.text(1e-7, 1e-5, "torch.linalg.eigh", color=series(1), ha="center")
    axes.text(1e-7, 1e-14, "covpool.matrix_sqrt", color=series(0), ha="center")
    title(
        axes,
        "Gradient of √A: relative error",
        x="relative gap of two eigenvalues of A (float64)",
    )


ARMS = {
    "gap-matched": "average,\nas many parameters",
    "gap-reduced": "average,\nsame reduction",
    "isqrt-cov": "covariance,\nisqrt-cov",
    "exact": "covariance,\nexact",
}


def accuracies(study: str) -> dict[str, dict[int, float]]:
    """By arm of recorded results, top-1 accuracy in percent by seed."""
    lines = (ROOT / "results" / study / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, dict[int, float]] = {}
    for run in map(json.loads, lines):
        if "final" in run:  # it finished
            found.setdefault(run["arm"], {})[run["seed"]] = 100 * run["final"]["test_top1"]
    return found


def above(study: str, reference: str) -> dict[str, Spread]:
    """By arm of recorded results, points of accuracy above a reference, paired by seed."""
    by_arm = accuracies(study)
    base = by_arm.pop(reference)
    found = {arm: Spread.of(differences(own, base)) for arm, own in by_arm.items()}
    return {arm: spread for arm, spread in found.items() if spread.mean is not None}


def draw_spread(axes: Axes, spread: Spread, at: float, place: int, label: str | None) -> None:
    """A mean and its 95% interval as a mark and a bar, in the colour and form of a series."""
    marker = {"fmt": "sod^vP"[place], "color": series(2 + place), "capsize": 2.5}
    mean = spread.mean
    half = 0 if spread.high is None else spread.high - mean  # no bar of a single seed
    axes.errorbar([mean], [at], xerr=[half], **marker, label=label)


def draw_gain(axes: Axes) -> None:
    """What covariance pooling, and average pooling with as rich a head, gain over plain average."""
    studies = {
        "icons, from scratch": "study-icons100-reduced",
        "typefaces, fine-tuned": "study-typefaces200-reduced",
    }
    for place, (name, study) in enumerate(studies.items()):
        found = above(study, "gap")
        for row, arm in enumerate(ARMS):
            if arm in found:
                at, label = row + 0.22 * (place - 0.5), name if row == 2 else None
                draw_spread(axes, found[arm], at, place, label=label)
    axes.axvline(0, color=colour("muted"), linewidth=1)
    axes.set_yticks(range(len(ARMS)), list(ARMS.values()))
    axes.set_ylim(-1.7, len(ARMS) - 0.5)  # with room for the key
    axes.set_xlim(-0.5, None)
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    title(axes, "Accuracy above plain average", x="points; 95% intervals, 5 seeds")


DRAWINGS: Mapping[str, Callable[[Axes], None]] = {
    "gradient.svg": draw_repair,
    "accuracy.svg": draw_gain,
}
"""Pictures that are kept as files, by their name in `docs/pictures`."""


def standing_alone(draw: Callable[[Axes], None]) -> str:
    """A picture as a file of SVG: its text stays text, its colours are those for white."""
    with drawing():
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots())
        found = str(inline(figure, "picture", ""))
    shown = {f"var(--series-{i})": value for i, value in enumerate(LIGHT)}
    shown |= {"var(--muted)": "#5d6670", "var(--grid)": "#d9dde2", "var(--surface)": "#ffffff"}
    for name, value in {**shown, "currentColor": "#1b1f24"}.items():
        found = found.replace(name, value)
    assert "var(" not in found
    width, height = (round(WIDTH * side / SIZE[0]) for side in SIZE)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" '
    )
    ground = '<rect width="100%" height="100%" fill="#ffffff"></rect>'
    return found.replace("<svg ", head, 1).replace(">", f">{ground}", 1) + "\n"


if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (PICTURES / name).write_text(standing_alone(draw), encoding="utf-8")
