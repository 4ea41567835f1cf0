"""What the scripts of this folder share: starting up, going on, and saying what goes on."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from covpool.bench.campaign import Measure, read_results, run_campaign, write_results
from covpool.bench.environment import summary_line
from covpool.bench.progress import Progress
from covpool.bench.settings import Settings
from covpool.cli import ArgumentParser, UserError
from covpool.cli.parsing import users_input

__all__ = ["make_parser", "run", "run_resumable", "users_input"]


def make_parser(doc: str | None) -> ArgumentParser:
    """A parser whose help is the script's docstring as it stands."""
    return ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def run(main: Callable[[], int], resumable: bool = True) -> NoReturn:
    """Run a script; a mistake in what the user gave is told in one line."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        goes_on = "; the same command goes on where it stopped" if resumable else ""
        print(f"\ninterrupted{goes_on}", file=sys.stderr)
        sys.exit(130)


def run_resumable(
    settings: Settings, output: Path, measure: Measure | None = None
) -> dict[str, Any]:
    """Measure what `output` does not hold yet, writing it after each shape."""
    with users_input():
        earlier = read_results(output)
    held = len(earlier["shapes"]) if earlier else 0
    if held:
        print(f"{output}: going on after {held} shapes", file=sys.stderr)
    with users_input(), Progress() as progress:
        results = run_campaign(
            settings,
            progress,
            lambda results: write_results(results, output),
            measure,
            earlier,
        )
    print(summary_line(results["environment"]))
    return results
