"""`covpool methods`.

It shows METHODS and POOLINGS themselves, whose rows hold what computes, so it imports PyTorch, and
nothing else that is slow (timm to describe a pool of timm's).
"""

import argparse

from rich.box import SIMPLE_HEAD
from rich.table import Table

from covpool.cli import say
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import users_input
from covpool.poolings import POOLINGS, Pooling, check_pooling, method_or_pooling

COLUMNS = ("name", "paper", "forward", "gradient", "constants", "description")


CHANNELS = 256
"""Of which lengths and parameters are told: the paper's number."""


def run(given: argparse.Namespace) -> int:
    """Print the table of poolings, or all about one, and return the exit status."""
    console = PlainConsole(soft_wrap=False)
    if given.name is not None:
        with users_input():
            check_pooling(given.name)
        for key, value in (facts(given.name) | sizes(given.name)).items():
            say(f"{key + ':':14}{value}")
        return 0
    if not console.is_terminal:
        for row in rows():
            say("\t".join(row))
        return 0
    # Six columns do not fit into the 80 of a terminal.
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for row in rows()[1:]:
        table.add_row(row[0], row[-1])
    console.print(table)
    say("covpool methods NAME: forward pass, gradient, constants and source of one")
    return 0


def rows() -> list[tuple[str, ...]]:
    """The header and a row for each pooling."""
    return [COLUMNS, *(tuple(facts(name)[key] for key in COLUMNS) for name in POOLINGS)]


def facts(name: str) -> dict[str, str]:
    """All about a pooling, in words."""
    row = method_or_pooling(name)
    constants = ", ".join(f"{key}={value}" for key, value in row.constants.items())
    if isinstance(row, Pooling):
        return _facts_of_pooling(row, constants or "-")
    method = row
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


def _facts_of_pooling(row: Pooling, constants: str) -> dict[str, str]:
    plain = row.normalisation == "none"
    return {
        "name": row.name,
        "description": row.description,
        "paper": "-",
        "forward": row.representation + ("" if plain else f", {row.normalisation}"),
        "regulariser": row.regulariser,
        "gradient": "its own",
        "constants": constants,
        "reduction": "before it, unless told otherwise" if row.reduced else "none unless asked for",
        "class token": "beside it, where the backbone has one" if row.class_token else "not used",
        "caution": row.caution or "-",
        "source": row.paper,
    }


def sizes(name: str) -> dict[str, str]:
    """The length of a pooling's vector and its parameters, for which it is built."""
    length, parameters = POOLINGS[name].count(CHANNELS)
    return {"vector": f"{length} numbers of {CHANNELS} channels", "parameters": str(parameters)}
