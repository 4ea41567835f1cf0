"""`covpool methods`.

It shows a file that is made from METHODS and POOLINGS, so that it does without PyTorch.
"""

import argparse
import json
import sys
from importlib import resources

from covpool.cli import say
from covpool.cli.console import show_list
from covpool.cli.parsing import users_input
from covpool.linalg.tables import choose

COLUMNS = ("name", "paper", "forward", "gradient", "constants", "description")


def run(given: argparse.Namespace) -> int:
    """Print the table of poolings, or all about one, and return the exit status."""
    known = facts()
    if given.name is not None:
        with users_input():
            chosen = choose("pooling method", given.name, known)
        for key, value in chosen.items():
            say(f"{key + ':':14}{value}")
        return 0
    rows = [[each[key] for key in COLUMNS] for each in known.values()]
    if show_list(COLUMNS, rows, "what it is", [row[-1] for row in rows]):
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
