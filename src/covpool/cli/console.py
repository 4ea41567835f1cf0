"""The console on which commands show tables and longer texts."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from covpool.cli import say
from covpool.text import printable_lines


class PlainConsole(Console):
    """A console on which text is text, whatever it holds.

    Rich takes brackets for markup and words between colons for emoji, and lets escape sequences
    through; the names of classes and files may hold all of these.
    """

    def __init__(self, *, soft_wrap: bool = True) -> None:
        super().__init__(
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=soft_wrap,
            # Variables such as FORCE_COLOR, which many services set, make no terminal of a pipe.
            force_terminal=None if sys.stdout.isatty() else False,
        )

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)


def show_list(
    header: Sequence[str], rows: Sequence[Sequence[str]], what: str, narrow: Iterable[str]
) -> bool:
    """Print rows, with tabs between the cells; on a terminal, whose 80 columns do not hold them,
    their first cells alone.

    Args:
        header: of all cells.
        rows: the cells.
        what: the header of what stands beside the first cells.
        narrow: that, for each row.

    Returns:
        Whether it is a terminal.
    """
    console = PlainConsole(soft_wrap=False)
    if console.is_terminal:
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column(header[0], no_wrap=True)
        table.add_column(what)
        for row, text in zip(rows, narrow, strict=True):
            table.add_row(row[0], text)
        console.print(table)
    else:
        for row in (header, *rows):
            say("\t".join(row))
    return console.is_terminal
