#!/usr/bin/env python3
"""How time grows with the batch and with the size of the matrix, plotted.

    python benchmarks/growth.py --output results/growth/cpu.json --peer fast-MPN-COV=../fast-MPN-COV

Two series: batches at fixed channels and positions; and channels n with 2n positions, so that the
covariance itself, n × n, is decomposed. The plot is written beside the JSON file, as SVG and PNG.
The same command goes on where it stopped.
"""

from pathlib import Path
from typing import Any

from common import make_parser, run, run_resumable, users_input

from covpool.cli.bench import read_settings
from covpool.cli.parsers import add_bench_options

BATCHES = "1,2,4,8,16,32,64,128,256"
SIZES = "16,32,64,128,256,512,1024"


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--batches", default=BATCHES, help=f"of series 1 (default: {BATCHES})")
    parser.add_argument("--channels", type=int, default=256, help="of series 1 (default: 256)")
    parser.add_argument("--positions", type=int, default=196, help="of series 1 (default: 196)")
    parser.add_argument("--sizes", default=SIZES, help=f"n of series 2 (default: {SIZES})")
    parser.add_argument("--batch", type=int, default=4, help="of series 2 (default: 4)")
    add_bench_options(parser)
    parser.set_defaults(
        methods=("exact", "svd-pade", "isqrt-cov"), memory=False, accuracy_conditions=(), rounds=7
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the plot beside it")
    options = parser.parse_args()
    with users_input():
        batches, sizes = (_numbers(text) for text in (options.batches, options.sizes))
    first = [f"{b}x{options.channels}x{options.positions}" for b in batches]
    second = [f"{options.batch}x{n}x{2 * n}" for n in sizes]
    with users_input():
        settings = read_settings(options, shapes=tuple(dict.fromkeys(first + second)))
    results = run_resumable(settings, options.output)
    by_shape = {measured["shape"]: measured for measured in results["shapes"]}
    for suffix in (".svg", ".png"):
        plot(
            [
                (
                    "batch",
                    batches,
                    [by_shape[shape] for shape in first],
                    f"C = {options.channels}, N = {options.positions}",
                ),
                (
                    "n",
                    sizes,
                    [by_shape[shape] for shape in second],
                    f"batch {options.batch}, C = n, N = 2n",
                ),
            ],
            results,
            options.output.with_suffix(suffix),
        )
    print(f"results: {options.output}; plot: {options.output.with_suffix('.svg')}")
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{text!r} must be whole numbers with commas between") from error


def plot(series: list[Any], results: dict[str, Any], file: Path) -> None:
    """Medians with their quartiles, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles = {"covpool": "-", "peer": "--", "floor": ":"}
    figure, axes = pyplot.subplots(1, len(series), figsize=(6.5 * len(series), 5))
    for axis, (label, values, shapes, title) in zip(axes, series, strict=True):
        for position, first in enumerate(shapes[0]["cases"]):
            rows = [measured["cases"][position] for measured in shapes]
            points = [(v, row) for v, row in zip(values, rows, strict=True) if row["median"]]
            if not points:
                continue
            at = [value for value, _ in points]
            medians = [1e3 * row["median"] for _, row in points]
            low = [1e3 * (row["lower_quartile"] or row["median"]) for _, row in points]
            high = [1e3 * (row["upper_quartile"] or row["median"]) for _, row in points]
            (line,) = axis.plot(at, medians, styles[first["kind"]], marker=".", label=first["name"])
            axis.fill_between(at, low, high, color=line.get_color(), alpha=0.15)
        axis.set(xscale="log", yscale="log", xlabel=label, title=title)
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
    figure.tight_layout()
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main)
