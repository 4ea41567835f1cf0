"""SVG files that are the same for the same figures."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from covpool.train.run_directory import replace_file


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, without the date and with the same names on every run."""
    with matplotlib.rc_context({"svg.hashsalt": "covpool", "svg.fonttype": "none"}):
        replace_file(
            path, lambda partial: figure.savefig(partial, format="svg", metadata={"Date": None})
        )
