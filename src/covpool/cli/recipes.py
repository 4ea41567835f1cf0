"""`covpool recipes`."""

import argparse

from rich.box import SIMPLE_HEAD
from rich.table import Table

from covpool.cli import say
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import users_input
from covpool.train.recipe import read_recipe, read_recipes

COLUMNS = ("name", "network", "data set", "epochs", "reproduces")


def run(given: argparse.Namespace) -> int:
    """Print the table of recipes, or one recipe, and return the exit status."""
    if given.name is not None:
        with users_input():
            say(read_recipe(given.name).text.rstrip())
        return 0
    console = PlainConsole(soft_wrap=False)
    if not console.is_terminal:
        for row in rows():
            say("\t".join(row))
        return 0
    # Five columns do not fit into the 80 of a terminal.
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("what it trains")
    for name, network, data, epochs, reproduces in rows()[1:]:
        table.add_row(name, f"{network}, {epochs} epochs, on {data}\nreproduces {reproduces}")
    console.print(table)
    return 0


def rows() -> list[tuple[str, ...]]:
    """The header and a row for each recipe."""
    made: list[tuple[str, ...]] = [COLUMNS]
    for recipe in read_recipes():
        model, epochs = recipe.config.model, recipe.config.train.epochs
        stride = f", last stride {model.last_stride}" if model.last_stride else ""
        network = f"{model.backbone}{stride}"
        made.append((recipe.name, network, recipe.data, str(epochs), recipe.reproduces))
    return made
