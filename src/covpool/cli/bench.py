"""`covpool bench`."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from covpool.bench import report
from covpool.bench.campaign import read_results, run_campaign, write_results
from covpool.bench.progress import Progress
from covpool.bench.settings import FEWEST_ROUNDS, Settings
from covpool.cli import ArgumentParser, UserError, say
from covpool.cli.console import PlainConsole
from covpool.cli.output import refuse_file
from covpool.cli.parsers import add_bench_options
from covpool.cli.parsing import RunParser, checking_files, chosen_recipe, nearest, users_input
from covpool.machine import summary_line
from covpool.text import markdown_table

BATCHES, SIZES = "1,2,4,8,16,32,64,128,256", "16,32,64,128,256,512,1024"

ALONE: dict[str, dict[str, Any]] = {
    "time": {"memory": False, "accuracy_conditions": ()},
    "memory": {"time": False, "floor": False, "accuracy_conditions": ()},
}
"""What --only leaves out."""


def run(given: argparse.Namespace | list[str]) -> int:
    """Measure, print and write, and return the exit status: 0 although a case failed."""
    if isinstance(given, argparse.Namespace):
        return layers(given)
    name, *arguments = given
    if name not in MEASUREMENTS:
        raise UserError(
            f"unknown measurement {name!r}; choose from {', '.join(MEASUREMENTS)}, or none for "
            f"the layers alone{nearest(name, MEASUREMENTS)}"
        )
    return MEASUREMENTS[name](arguments)


def layers(options: argparse.Namespace) -> int:
    """Time, memory and errors of the layers at some shapes."""
    if options.resume and options.output is None:
        raise UserError("--resume goes on with the results of --output FILE, which is missing")
    if not options.resume:
        refuse_file(
            "--output", options.output, otherwise="go on with it by --resume, or ", make=True
        )
    with users_input():
        settings = read_settings(options, **ALONE.get(options.only, {}))
    if settings.rounds < FEWEST_ROUNDS:
        say(
            f"covpool: --rounds {settings.rounds}: a median of fewer than {FEWEST_ROUNDS} is "
            "for a first look",
            error=True,
        )
    console = PlainConsole()
    results = measure(settings, options.output, console, resume=options.resume)
    for line in report.peer_notes(results["shapes"][-1]):
        console.print(f"\n{line}")
    if options.output is not None:
        console.print(f"\nresults: {options.output}")
    return 0


def measure(
    settings: Settings, output: Path | None, console: Console, *, resume: bool
) -> dict[str, Any]:
    """Measure what the output does not hold yet; print and write after each shape."""
    with users_input():
        settings.open_peers()  # a mistake is told before anything is measured
        if output is not None and output.is_dir():
            raise ValueError(f"--output {output} is a folder; name a file in it")
        earlier = read_results(output) if resume and output is not None else None
    if earlier:
        say(f"{output}: going on after {len(earlier['shapes'])} shapes", error=True)
    shown, progress = 0, Progress()

    def shape_done(results: dict[str, Any]) -> None:
        nonlocal shown
        progress.clear()
        if shown == 0:
            console.print(report.preamble(results))
        show(report.tables(results["shapes"][-1]), report.failures(results["shapes"][-1]), console)
        shown += 1
        if output is not None:
            with users_input():
                write_results(results, output)

    with users_input(), progress:
        return run_campaign(settings, progress, shape_done, earlier=earlier)


def growth(arguments: list[str]) -> int:
    """time over the batch and over the size of the matrix, plotted"""
    from covpool.bench.growth import plot

    parser = ArgumentParser(
        prog="covpool bench growth",
        description="How time grows in two series: batches at fixed channels and positions; and "
        "channels n with 2n positions, so that the covariance itself, n × n, is decomposed. The "
        "same command goes on where it stopped.",
    )
    parser.add_argument(
        "--batches", type=_whole, default=_whole(BATCHES), help=f"of series 1 (default: {BATCHES})"
    )
    parser.add_argument("--channels", type=int, default=256, help="of series 1 (default: 256)")
    parser.add_argument("--positions", type=int, default=196, help="of series 1 (default: 196)")
    parser.add_argument(
        "--sizes", type=_whole, default=_whole(SIZES), help=f"n of series 2 (default: {SIZES})"
    )
    parser.add_argument("--batch", type=int, default=4, help="of series 2 (default: 4)")
    add_bench_options(parser)
    parser.set_defaults(
        methods=("exact", "svd-pade", "isqrt-cov"), memory=False, accuracy_conditions=(), rounds=7
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the plot beside it")
    own = parser.parse_args(arguments)
    series = {
        f"batch (C = {own.channels}, N = {own.positions})": {
            batch: f"{batch}x{own.channels}x{own.positions}" for batch in own.batches
        },
        f"n (batch {own.batch}, C = n, N = 2n)": {n: f"{own.batch}x{n}x{2 * n}" for n in own.sizes},
    }
    shapes = dict.fromkeys(shape for shapes in series.values() for shape in shapes.values())
    with users_input():
        settings = read_settings(own, shapes=tuple(shapes))
    results = measure(settings, own.output, PlainConsole(), resume=True)
    for suffix in (".svg", ".png"):
        plot(series, results, own.output.with_suffix(suffix))
    say(f"results: {own.output}; plot: {own.output.with_suffix('.svg')}")
    return 0


def step(arguments: list[str]) -> int:
    """the share of the pooling in a training step"""
    from covpool.bench import step as module

    parser = _parser_of(module, "step")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    refuse_file("--output", options.output, make=True)
    with users_input():
        work = module.prepare(options)
    with Progress() as progress:
        results = work(progress)
    if options.output is not None:
        save(results, options.output)
    show(module.tables(results), module.failures(results), PlainConsole())
    return 0


def small(arguments: list[str]) -> int:
    """matrix_sqrt of small matrices beside its peers"""
    from covpool.bench import small as module

    parser = _parser_of(module, "small")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    with users_input(), Progress() as progress:
        results = module.measure(options, progress)
    say(summary_line(results["environment"]))
    show(module.tables(results), module.failures(results), PlainConsole())
    if options.output is not None:
        with users_input():
            write_results(results, options.output)
        say(f"\nresults: {options.output}")
    return 0


def resume(arguments: list[str]) -> int:
    """runs killed at random, resumed, compared"""
    from covpool.bench import resume as module

    options = _parser_of(module, "resume").parse_args(arguments)
    with users_input():
        earlier = module.prepare(options)
    say(summary_line(earlier["environment"]))
    with Progress() as progress:
        status = module.measure(options, earlier, progress)
    say(f"results: {options.output}")
    return status


def throughput(arguments: list[str]) -> int:
    """the loader against the training step"""
    from covpool.bench import throughput as module
    from covpool.train.job import prepare

    about = f"{module.__doc__}\n\nFurther options as in covpool train."
    parser = RunParser("bench throughput", about)
    parser.add_recipe()
    parser.add_argument("--workers", type=str, default="0,1,2", help="numbers of loader processes")
    parser.add_argument("--steps", type=int, default=30, help="timed steps")
    parser.add_argument("--warm_up", type=int, default=5, help="steps before them")
    parser.add_argument("--output", type=Path | None, help="JSON file")
    given = parser.read(arguments)
    own = given.own
    with users_input(), checking_files() as check:
        recipe = chosen_recipe(given)
        config = given.config(recipe and recipe.config)
        if own.output is None:
            raise ValueError("--output is missing: the JSON file to write")
        refuse_file("--output", own.output, make=True)
        if config.train.devices * config.train.nodes > 1:
            raise ValueError("throughput is measured in one process; leave train.devices at 1")
        workers = _whole(own.workers)
        job = prepare(config, progress=check)
    say(job.describe())
    with Progress() as progress:
        results = module.measure(job, workers, own.warm_up, own.steps, progress)
    save(results, own.output)  # before a line that nobody may read any more
    both = results["both"]
    say(summary_line(results["environment"]))
    for number, rate in results["loader"].items():
        say(f"loader alone, {number} workers  {rate:10.1f} images/s")
    say(f"step alone               {results['step']:10.1f} images/s")
    say(f"both, {both['workers']} workers          {both['images_per_second']:10.1f} images/s")
    say(f"the limit is the {results['limit']}")
    return 0


def goals(arguments: list[str]) -> int:
    """which of the project's goals results meet"""
    from covpool.bench import goals as module

    parser = _parser_of(module, "goals")
    parser.add_argument("results", type=Path, nargs="+", help="JSON files")
    judgements = []
    for file in parser.parse_args(arguments).results:
        with users_input():
            content = json.loads(file.read_text(encoding="utf-8"))
        found = list(module.judge(content))
        say("\n  ".join([str(file), *map(str, found)]))
        judgements += found
    missed = sum(not judgement.met for judgement in judgements)
    say(f"{len(judgements) - missed} of {len(judgements)} met")
    return int(missed > 0 or not judgements)


MEASUREMENTS: dict[str, Callable[[list[str]], int]] = {
    measure.__name__: measure for measure in (growth, step, small, resume, throughput, goals)
}
"""What takes longer, by name."""


def _parser_of(module: ModuleType, name: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"covpool bench {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if hasattr(module, "add_options"):
        module.add_options(parser)
    return parser


def read_settings(options: argparse.Namespace, **given: Any) -> Settings:
    """The settings of parsed options, but those given by name.

    Raises:
        ValueError: one that does not fit.
    """
    if options.threads < 1:
        raise ValueError(f"threads must be at least 1, got {options.threads}")
    names = [field.name for field in fields(Settings)]
    values = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if values.get("methods", ()) is None:
        del values["methods"]  # all
    return Settings.from_dict(values | given)


def save(results: dict[str, Any], output: Path) -> None:
    """Write the results, and say where."""
    with users_input():
        write_results(results, output)
    say(f"results: {output}")


def show(tables: Any, failures: Sequence[str], console: Console) -> None:
    """Print tables, each a title, a header and rows, and what is missing from them."""
    for title, header, rows in tables:
        console.print()
        if not console.is_terminal:
            console.print(f"{title}\n\n{markdown_table(header, rows)}")
            continue
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in failures:
        console.print(f"\n{line}")


def _whole(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{text!r} must be whole numbers with commas between") from error
