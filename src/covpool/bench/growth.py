"""How time grows with the batch and with the size of the matrix, plotted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from covpool.bench.layers import Layers
from covpool.bench.measurement import Results
from covpool.bench.options import GrowthOptions
from covpool.text import quantity

STYLES = {"covpool": "-", "peer": "--", "floor": ":"}


class Growth(Layers[GrowthOptions]):
    """The layers at the shapes of two series."""

    def check(self, options: GrowthOptions) -> GrowthOptions:
        shapes = dict.fromkeys(shape for one in series(options).values() for shape in one.values())
        return super().check(replace(options, shapes=tuple(shapes)))

    def finish(self, results: Results, output: Path | None) -> tuple[Sequence[str], int]:
        assert output is not None  # without which the results cannot be gone on with
        for suffix in (".svg", ".png"):
            plot(series(self.options), results, output.with_suffix(suffix))
        return [f"plot: {output.with_suffix('.svg')}"], 0


def series(options: GrowthOptions) -> dict[str, dict[int, str]]:
    """By title the shapes by what is on the axis."""
    channels, positions, batch = options.channels, options.positions, options.batch
    return {
        f"batch (C = {channels}, N = {positions})": {
            each: f"{each}x{channels}x{positions}" for each in options.batches
        },
        f"n (batch {batch}, C = n, N = 2n)": {n: f"{batch}x{n}x{2 * n}" for n in options.sizes},
    }


def plot(panels: dict[str, dict[int, str]], results: Results, file: Path) -> None:
    """Medians with their quartiles, both axes logarithmic, as SVG or PNG, by `series`."""
    from matplotlib.figure import Figure

    by_shape = {
        record["shape"]: {row["name"]: row for row in record["cases"]}
        for record in results["shapes"]
    }
    figure = Figure(figsize=(6.5 * len(panels), 5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, shapes) in zip(axes, panels.items(), strict=True):
        values = list(shapes)
        for name, first in by_shape[shapes[values[0]]].items():
            rows = {value: by_shape[shape][name] for value, shape in shapes.items()}
            at = [value for value, row in rows.items() if row["median"]]
            if not at:
                continue
            medians, low, high = (
                [1e3 * (rows[value][key] or rows[value]["median"]) for value in at]
                for key in ("median", "lower_quartile", "upper_quartile")
            )
            (line,) = axis.plot(at, medians, STYLES[first["kind"]], marker=".", label=name)
            axis.fill_between(at, low, high, color=line.get_color(), alpha=0.15)
        axis.set(yscale="log", xlabel=title)
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [str(value) for value in values])
        axis.set_ylabel("forward + backward, ms")
        axis.grid(True, which="major", alpha=0.3)
    axes[0].legend(fontsize="x-small")
    environment = results["environment"]
    figure.suptitle(
        f"{environment['device_name'] or environment['cpu']}, "
        f"{quantity(environment['threads'], 'thread')}, "
        f"{results['settings']['dtype']}, torch {environment['versions']['torch']}",
        fontsize="small",
    )
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
