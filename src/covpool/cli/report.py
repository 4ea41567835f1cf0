"""`covpool report`."""

import argparse
from pathlib import Path

from covpool.cli import UserError, say
from covpool.cli.output import PAGE, require_ending
from covpool.cli.parsing import users_input
from covpool.report.page import GENERATOR, render
from covpool.report.sources import find_runs, find_sheets
from covpool.text import quantity
from covpool.train.run_directory import replace_text

NAME = "report.html"


def run(own: argparse.Namespace) -> int:
    """Write the page, and return the exit status."""
    output = own.output or (own.paths[0] / NAME if len(own.paths) == 1 else Path(NAME))
    with users_input():
        runs = find_runs(own.paths)  # first: the default output lies in what is named
        check_output(output)
        sheets = find_sheets(own.paths)
        say(f"{quantity(len(runs), 'run')}; drawing", error=True)
        replace_text(output, render(runs, baseline=own.baseline, sheets=sheets))
    say(output)
    return 0


def check_output(path: Path) -> None:
    """Refuse to write over anything but an earlier report.

    Raises:
        UserError: the path is taken, or its folder is not there.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a directory; name a file in it, such as {path / NAME}")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no directory {path.parent}; make it first")
    require_ending("--output", path, PAGE)
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            if f'content="{GENERATOR} ' not in file.read(2000):
                raise UserError(
                    f"--output {path} exists and is no report of covpool; choose another name"
                )
