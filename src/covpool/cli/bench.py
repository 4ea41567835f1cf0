"""`covpool bench`."""

import argparse
from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.table import Table

from covpool.bench import report
from covpool.bench.campaign import run_campaign, write_results
from covpool.bench.progress import Progress
from covpool.bench.settings import FEWEST_ROUNDS, Settings
from covpool.cli import say
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import users_input


def run(options: argparse.Namespace) -> int:
    """Measure, print and write, and return the exit status: 0 although a case failed."""
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
