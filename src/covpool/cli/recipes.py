"""`covpool recipes`."""

import argparse

from covpool.cli import say
from covpool.cli.console import show_list
from covpool.cli.parsing import users_input
from covpool.text import quantity
from covpool.train.recipe import read_recipe, read_recipes

COLUMNS = ("name", "network", "data set", "epochs", "reproduces")


def run(given: argparse.Namespace) -> int:
    """Print the table of recipes, or one recipe, and return the exit status."""
    if given.name is not None:
        with users_input():
            say(read_recipe(given.name).text.rstrip())
        return 0
    rows, narrow = [], []
    for recipe in read_recipes():
        model, epochs = recipe.config.model, recipe.config.train.epochs
        stride = f", last stride {model.last_stride}" if model.last_stride else ""
        network = f"{model.backbone}{stride}"
        rows.append([recipe.name, network, recipe.data, str(epochs), recipe.reproduces])
        narrow.append(
            f"{network}, {quantity(epochs, 'epoch')}, on {recipe.data}\n"
            f"reproduces {recipe.reproduces}"
        )
    show_list(COLUMNS, rows, "what it trains", narrow)
    return 0
