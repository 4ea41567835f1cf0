"""`covpool methods`.

It shows METHODS itself, whose rows hold the functions that compute, so it imports PyTorch, and
nothing else that is slow.
"""

import argparse

from covpool.cli import say
from covpool.cli.console import show_list
from covpool.cli.parsing import users_input
from covpool.linalg.methods import METHODS
from covpool.pooling import POOLINGS, check_pooling

COLUMNS = ("name", "paper", "forward", "gradient", "constants", "description")


def run(given: argparse.Namespace) -> int:
    """Print the table of methods, or all about one, and return the exit status."""
    if given.name is not None:
        with users_input():
            check_pooling(given.name)
        for key, value in facts(given.name).items():
            say(f"{key + ':':14}{value}")
        return 0
    rows = [[facts(name)[key] for key in COLUMNS] for name in POOLINGS]
    if show_list(COLUMNS, rows, "what it is", [row[-1] for row in rows]):
        say("covpool methods NAME: forward pass, gradient, constants and source of one")
    return 0


def facts(name: str) -> dict[str, str]:
    """All about a pooling, in words."""
    method = METHODS.get(name)
    if method is None:
        values = (name, "-", "mean over positions", "its own", "-", "the baseline")
        return dict(zip(COLUMNS, values, strict=True))
    constants = ", ".join(f"{key}={value}" for key, value in method.constants.items())
    return {
        "name": name,
        "description": method.description,
        "paper": method.paper_name or "-",
        "forward": method.forward.title,
        "gradient": method.gradient.title,
        "exact": "yes" if method.exact_gradient else "no: not that of its forward pass",
        "constants": constants or "-",
        "functions": ", ".join(method.functions),
        "source": method.reference,
    }
