"""`covpool bench`."""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from rich.table import Table

from covpool.bench import tables
from covpool.bench.measurement import Measurement, read_results, write_results
from covpool.bench.options import FEWEST_ROUNDS, MEASUREMENTS, ThroughputOptions
from covpool.cli import UserError, say
from covpool.cli.console import PlainConsole
from covpool.cli.output import refuse_file
from covpool.cli.parsing import Given, checking_files, chosen_recipe, users_input
from covpool.text import markdown_table

ALONE: dict[str, dict[str, Any]] = {
    "time": {"memory": False, "accuracy_conditions": ()},
    "memory": {"time": False, "floor": False, "accuracy_conditions": ()},
}
"""What --only leaves out."""


def run(given: argparse.Namespace | Given) -> int:
    """Measure, print and write, and return the exit status: 0 although a case failed."""
    if isinstance(given, Given):
        return throughput(given)
    if given.measurement == "goals":
        return goals(given.results)
    kind, output = MEASUREMENTS[given.measurement], given.output
    more = given.resume or kind.continues
    if more and output is None:
        what = "--resume" if given.resume else f"bench {given.measurement}"
        raise UserError(f"{what} goes on with the results of --output FILE, which is missing")
    if not (more and output.is_file()):
        otherwise = "go on with it by --resume, or " if "shapes" in kind.free else ""
        refuse_file("--output", output, otherwise=otherwise, make=True)
    with users_input():
        options = kind.read(given, **ALONE.get(given.only, {}))
        measurement = options.measurement()
        earlier = read_results(output) if more else None
    rounds = getattr(options, "rounds", FEWEST_ROUNDS)
    if rounds < FEWEST_ROUNDS:
        what = f"a median of fewer than {FEWEST_ROUNDS} is for a first look"
        say(f"covpool: --rounds {rounds}: {what}", error=True)
    return measure(measurement, output, earlier)


def measure(
    measurement: Measurement[Any], output: Path | None, earlier: dict[str, Any] | None = None
) -> int:
    """Measure what the earlier results lack; print and write after each record."""
    console, results = PlainConsole(), {}
    if earlier:
        say(f"{output}: going on after {len(earlier['shapes'])} shapes", error=True)
    with users_input(), Progress() as progress:
        for number, (record, results) in enumerate(measurement.run(progress, earlier)):
            if output is not None:  # before a line that nobody may read any more
                write_results(results, output)
            progress.clear()
            if number == 0:
                console.print(measurement.preamble(results))
            show(measurement.tables(record), console)
            for line in tables.failures(record):
                console.print(f"\n{line}")
    lines, status = measurement.finish(results, output)
    for line in ("", *lines, *([] if output is None else [f"results: {output}"])):
        console.print(line)
    return status


class Progress:
    """What goes on, on standard error: one line that is written over on a terminal; elsewhere a
    line now and then.

    Args:
        seconds: at least between two lines where there is no terminal.
    """

    def __init__(self, seconds: float = 20) -> None:
        self.seconds, self.last = seconds, time.monotonic()
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        elif now - self.last >= self.seconds:
            self.last = now
            say(text, error=True)

    def clear(self) -> None:
        """Empty the line, for other output."""
        if self.terminal:
            self("")


def show(found: Iterable[tables.Table], console: PlainConsole) -> None:
    """Print tables, on a terminal with lines."""
    for title, header, rows in found:
        console.print()
        if not console.is_terminal:
            console.print(f"{title}\n\n{markdown_table(header, rows)}".lstrip())
            continue
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def throughput(given: Given) -> int:
    """The loader against the training step, of a run with any of its options."""
    import torch

    from covpool.bench.throughput import Throughput
    from covpool.train.job import prepare

    own = given.own
    with users_input(), checking_files() as check:
        recipe = chosen_recipe(given)
        config = given.config(recipe and recipe.config)
        if own.output is None:
            raise ValueError("--output is missing: the JSON file to write")
        refuse_file("--output", own.output, make=True)
        if config.train.devices * config.train.nodes > 1:
            raise ValueError("throughput is measured in one process; leave train.devices at 1")
        job = prepare(config, progress=check)
        on_cuda = config.train.accelerator != "cpu" and torch.cuda.is_available()
        options = ThroughputOptions.read(
            own,
            config=config.to_dict(),
            threads=torch.get_num_threads(),
            device="cuda" if on_cuda else "cpu",
        )
        measurement = Throughput(options, job)
    say(job.describe())
    return measure(measurement, own.output)


def goals(files: Iterable[Path]) -> int:
    """Which of the project's goals results meet; 1 where one is missed or could not be judged."""
    from covpool.bench.goals import judge

    judgements = []
    for file in files:
        with users_input():
            content = json.loads(file.read_text(encoding="utf-8"))
        found = list(judge(content))
        say("\n  ".join([str(file), *map(str, found)]))
        judgements += found
    missed = sum(not judgement.met for judgement in judgements)
    say(f"{len(judgements) - missed} of {len(judgements)} met")
    return int(missed > 0 or not judgements)
