#!/usr/bin/env python3
"""Peak memory of one forward and backward pass, beside the peers'.

    python benchmarks/memory.py --output results/memory/cpu.json --peer fast-MPN-COV=../fast-MPN-COV

How it is measured stands in `covpool.bench.memory`. The same command goes on where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import make_parser, run, run_resumable, users_input

from covpool.bench.campaign import Report, pairs
from covpool.bench.cases import Case
from covpool.bench.features import Shape
from covpool.bench.memory import peak_memory
from covpool.bench.report import MEBIBYTE, failures, markdown, ratio
from covpool.bench.settings import Settings
from covpool.cli.bench import read_settings
from covpool.cli.parsers import add_bench_options

SHAPES = "16x256x49,16x256x196,16x256x784"


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--shapes", default=SHAPES, help=f"(default: {SHAPES})")
    add_bench_options(parser)
    parser.set_defaults(floor=False, accuracy_conditions=())
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    with users_input():
        settings = read_settings(options, shapes=tuple(options.shapes.split(",")), floor=False)
    results = run_resumable(settings, options.output, measure)
    for measured in results["shapes"]:
        show(measured)
    print(f"\nresults: {options.output}")
    return 0


def measure(
    settings: Settings, shape: Shape, cases: Sequence[Case], report: Report
) -> dict[str, Any]:
    """The rows of one shape, with memory alone."""
    peaks = peak_memory(settings, shape, cases, report)
    rows = []
    for case in cases:
        peak = peaks[case.name]
        rows.append(
            {
                "name": case.name,
                "kind": case.kind,
                "output": case.output,
                "error": None,
                "median": None,
                "memory": peak if isinstance(peak, int) else None,
                "memory_error": peak if isinstance(peak, str) else None,
                "accuracy": [],
            }
        )
    return {"shape": str(shape), "cases": rows, "pairs": pairs(cases, rows)}


def show(measured: dict[str, Any]) -> None:
    rows = [
        [row["name"], "-" if row["memory"] is None else f"{row['memory'] / MEBIBYTE:.1f}"]
        for row in measured["cases"]
    ]
    print("\n" + markdown(f"{measured['shape']}: peak memory", ["case", "MiB"], rows))
    compared = [[pair["method"], pair["peer"], ratio(pair["memory"])] for pair in measured["pairs"]]
    if compared:
        header = ["ours", "peer", "peer over ours"]
        print("\n" + markdown(f"{measured['shape']}: beside the peers", header, compared))
    for line in failures(measured):
        print(f"\n{line}")


if __name__ == "__main__":
    run(main)
