"""`covpool methods`."""

from rich.table import Table

from covpool.cli import ArgumentParser, say
from covpool.cli.console import PlainConsole
from covpool.linalg.methods import METHODS
from covpool.pooling import POOLINGS

COLUMNS = ("name", "paper", "forward", "gradient", "constants", "description")
PLAIN_WIDTH = 200


def run(arguments: list[str]) -> int:
    """Print the table of methods, and return the exit status."""
    parser = ArgumentParser(prog="covpool methods", description=__doc__)
    parser.description = "List the poolings that --model.method takes."
    parser.parse_args(arguments)
    console = PlainConsole(soft_wrap=False)
    if not console.is_terminal:
        for row in rows():
            say("\t".join(row))
        return 0
    table = Table(show_lines=True)
    for column in COLUMNS:
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows()[1:]:
        table.add_row(*row)
    console.print(table)
    return 0


def rows() -> list[tuple[str, ...]]:
    """The header and a row for each pooling."""
    made: list[tuple[str, ...]] = [COLUMNS]
    for name in POOLINGS:
        method = METHODS.get(name)
        if method is None:
            made.append((name, "-", "mean over positions", "its own", "-", "the baseline"))
            continue
        constants = ", ".join(f"{key}={value}" for key, value in method.constants.items())
        made.append(
            (
                name,
                method.paper_name or "-",
                method.forward.title,
                method.gradient.title,
                constants or "-",
                method.description,
            )
        )
    return made
