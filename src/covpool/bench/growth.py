"""How time grows with the batch and with the size of the matrix, plotted."""

from pathlib import Path
from typing import Any

STYLES = {"covpool": "-", "peer": "--", "floor": ":"}


def plot(series: dict[str, dict[int, str]], results: dict[str, Any], file: Path) -> None:
    """Medians with their quartiles, both axes logarithmic, as SVG or PNG.

    Args:
        series: by title the shapes by what is on the axis; a panel each.
        results: as `run_campaign` gives them.
        file: where.
    """
    from matplotlib.figure import Figure

    by_shape = {measured["shape"]: measured["cases"] for measured in results["shapes"]}
    figure = Figure(figsize=(6.5 * len(series), 5), layout="constrained")
    axes = figure.subplots(1, len(series), squeeze=False)[0]
    for axis, (title, shapes) in zip(axes, series.items(), strict=True):
        values = list(shapes)
        for position, first in enumerate(by_shape[shapes[values[0]]]):
            rows = {value: by_shape[shape][position] for value, shape in shapes.items()}
            points = [(value, row) for value, row in rows.items() if row["median"]]
            if not points:
                continue
            at = [value for value, _ in points]
            medians = [1e3 * row["median"] for _, row in points]
            low = [1e3 * (row["lower_quartile"] or row["median"]) for _, row in points]
            high = [1e3 * (row["upper_quartile"] or row["median"]) for _, row in points]
            (line,) = axis.plot(at, medians, STYLES[first["kind"]], marker=".", label=first["name"])
            axis.fill_between(at, low, high, color=line.get_color(), alpha=0.15)
        axis.set(yscale="log", xlabel=title)
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [str(value) for value in values])
        axis.set_ylabel("forward + backward, ms")
        axis.grid(True, which="major", alpha=0.3)
    axes[0].legend(fontsize="x-small")
    environment = results["environment"]
    name = environment["device_name"] or environment["cpu"]
    figure.suptitle(
        f"{name}, {environment['threads']} threads, {results['settings']['dtype']}, "
        f"torch {environment['versions']['torch']}",
        fontsize="small",
    )
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
