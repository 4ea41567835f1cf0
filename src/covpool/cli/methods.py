"""`covpool methods`.

It shows a file that is made from METHODS and POOLINGS, so that it does without PyTorch.
"""

import argparse
import json
import sys
from importlib import resources

from rich.box import SIMPLE_HEAD
from rich.table import Table

from covpool.cli import say
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import users_input
from covpool.linalg.tables import choose

COLUMNS = ("name", "paper", "forward", "gradient", "constants", "description")


def run(given: argparse.Namespace) -> int:
    """Print the table of poolings, or all about one, and return the exit status."""
    console = PlainConsole(soft_wrap=False)
    known = facts()
    if given.name is not None:
        with users_input():
            chosen = choose("pooling method", given.name, known)
        for key, value in chosen.items():
            say(f"{key + ':':14}{value}")
        return 0
    if not console.is_terminal:
        for row in [COLUMNS, *([each[key] for key in COLUMNS] for each in known.values())]:
            say("\t".join(row))
        return 0
    # Six columns do not fit into the 80 of a terminal.
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for each in known.values():
        table.add_row(each["name"], each["description"])
    console.print(table)
    say("covpool methods NAME: forward pass, gradient, constants and source of one")
    return 0


def facts() -> dict[str, dict[str, str]]:
    """All about each pooling in words: of the table itself where it is loaded, as a program that
    adds rows to it has done."""
    if "covpool.linalg.methods" in sys.modules:
        from covpool.cli import method_facts

        return method_facts.facts()
    file = resources.files("covpool.cli") / "methods.json"
    return json.loads(file.read_text(encoding="utf-8"))
