"""`covpool recipes`."""

from rich.console import Console
from rich.table import Table

from covpool.cli import ArgumentParser
from covpool.cli.parsing import users_input
from covpool.train.recipe import read_recipe, read_recipes

COLUMNS = ("name", "network", "data set", "epochs", "reproduces")


def run(arguments: list[str]) -> int:
    """Print the table of recipes, or one recipe, and return the exit status."""
    parser = ArgumentParser(
        prog="covpool recipes",
        description="List the recipes that covpool train --recipe takes, or print one, as "
        "--config takes it.",
    )
    parser.add_argument("name", nargs="?", help="the recipe to print")
    name = parser.parse_args(arguments).name
    if name is not None:
        with users_input():
            print(read_recipe(name).text, end="")
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        for row in rows():
            print("\t".join(row))
        return 0
    table = Table()
    for column in COLUMNS:
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows()[1:]:
        table.add_row(*row)
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
