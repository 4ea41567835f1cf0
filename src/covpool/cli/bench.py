"""`covpool bench`."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from covpool.bench import report
from covpool.bench.campaign import run_campaign, write_results
from covpool.bench.features import SPECTRA
from covpool.bench.peers import PEERS
from covpool.bench.progress import Progress
from covpool.bench.settings import DTYPES, FEWEST_ROUNDS, Settings, available_cores
from covpool.cli import ArgumentParser, UserError, say
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import users_input
from covpool.linalg.methods import METHODS

DEFAULT_SHAPES = "16x256x49,16x256x196,16x256x784"


def run(arguments: list[str]) -> int:
    """Measure, print and write, and return the exit status: 0 although a case failed."""
    options = _parser().parse_args(arguments)
    with users_input():
        settings = read_settings(options)
        settings.open_peers()  # a mistake is told before anything is measured
        if options.output is not None and options.output.is_dir():
            raise ValueError(f"--output {options.output} is a folder; name a file in it")
    console = PlainConsole()
    if settings.rounds < FEWEST_ROUNDS:
        say(
            f"covpool: --rounds {settings.rounds}: a median of fewer than {FEWEST_ROUNDS} is "
            "for a first look",
            error=True,
        )
    done, progress = 0, Progress()

    def shape_done(results: dict[str, Any]) -> None:
        nonlocal done
        progress.clear()
        if done == 0:
            console.print(report.preamble(results))
        show(results["shapes"][-1], console)
        done += 1
        if options.output is not None:
            with users_input():
                write_results(results, options.output)

    with progress:
        results = run_campaign(settings, progress, shape_done)
    for line in report.peer_notes(results["shapes"][-1]):
        console.print(f"\n{line}")
    if options.output is not None:
        console.print(f"\nresults: {options.output}")
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that become `Settings`; scripts of longer measurements share them."""
    parser.add_argument(
        "--methods", type=_names, default=tuple(METHODS), help="ours (default: all)"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        dest="peers",
        metavar="NAME[=CHECKOUT]",
        help="another project to measure beside ours, from your own clone of it (or installed: "
        f"spd-learn); can be given again; {', '.join(PEERS)}",
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each (default: 9)")
    parser.add_argument("--warm-up", type=int, default=2, help="untimed ones before (default: 2)")
    parser.add_argument(
        "--threads", type=int, default=available_cores(), help="of the CPU (default: all cores)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--dtype",
        default="float32",
        help=f"of the features: {', '.join(DTYPES)} (default: float32)",
    )
    parser.add_argument(
        "--compute-dtype", help="of our methods, as for cov_pool (default: its default accuracy)"
    )
    parser.add_argument(
        "--spectrum", default="geometric", help=f"{' or '.join(SPECTRA)} (default: geometric)"
    )
    parser.add_argument(
        "--condition", type=float, default=1e4, help="cond(X) of what is timed (default: 1e4)"
    )
    parser.add_argument(
        "--accuracy-conditions",
        type=_numbers,
        default=(1e4, 1e5, 1e6),
        help="cond(X) at each of which errors are measured (default: 1e4,1e5,1e6)",
    )
    parser.add_argument(
        "--vector", action="store_true", help="gather the upper triangle on all sides"
    )
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--memory", action=switch, default=True, help="measure the peak memory")
    parser.add_argument("--floor", action=switch, default=True, help="measure the least work")
    parser.add_argument("--seed", type=int, default=0, help="of the features (default: 0)")


def read_settings(options: argparse.Namespace, **given: Any) -> Settings:
    """The settings of parsed options, but those given by name.

    Raises:
        ValueError: one that does not fit.
    """
    if options.threads < 1:
        raise ValueError(f"threads must be at least 1, got {options.threads}")
    names = [field.name for field in fields(Settings)]
    values = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return Settings.from_dict(values | given)


def show(measured: dict[str, Any], console: Console) -> None:
    """Print one shape's tables, and what is missing from them."""
    for title, header, rows in report.tables(measured):
        console.print()
        if not console.is_terminal:
            console.print(report.markdown(title, header, rows))
            continue
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in report.failures(measured):
        console.print(f"\n{line}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="covpool bench",
        description="Time, peak memory and errors of each method's forward and backward pass, "
        "with peers beside them and the floor: the eigendecomposition and the matrix products "
        "that cannot be done without.",
    )
    parser.add_argument(
        "--shapes",
        type=_names,
        default=_names(DEFAULT_SHAPES),
        help=f"BATCHxCHANNELSxPOSITIONS, … (default: {DEFAULT_SHAPES})",
    )
    add_options(parser)
    parser.add_argument("--output", type=Path, help="JSON file for all that was measured")
    return parser


def _names(text: str) -> tuple[str, ...]:
    """A list with commas between, without repetitions."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _names(text))
    except ValueError as error:
        raise UserError(f"{text!r} must be numbers with commas between, such as 1e4,1e6") from error
